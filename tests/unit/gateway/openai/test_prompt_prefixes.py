"""Prefixes of a prompt: what two prompts share, seen by hashes over the whole of both."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.openai.prompt_prefixes import prefix_bounds, prefix_hashes, prefix_hashes_in_steps

KIB = 1_024


def test_prefixes_hash_alike_as_far_as_they_are_alike() -> None:
    one, two = prefix_hashes("m", b"a" * 5_000), prefix_hashes("m", b"a" * 3_000 + b"b" * 2_000)
    assert len(one) == 4
    assert one[:2] == two[:2]
    assert not set(one[2:]) & set(two[2:])
    assert prefix_hashes("other", b"a" * 5_000)[0] != one[0]
    assert prefix_hashes("m", b"short") == ()


@given(st.integers(KIB, 1 << 36))
def test_the_bounds_of_a_shorter_prompt_are_the_first_of_a_longer_one_and_miss_an_eighth_at_most(size: int) -> None:
    bounds = prefix_bounds(size)
    assert bounds == prefix_bounds(2 * size)[: len(bounds)]
    assert size - bounds[-1] <= max(KIB, size / 8)
    assert all(one < other for one, other in pairwise(bounds))
    assert len(bounds) <= 160


def test_two_prompts_that_part_after_a_megabyte_share_almost_all_of_it() -> None:
    shared = bytes(range(256)) * 4_096
    one, two = prefix_hashes("m", shared + b"one" * 9_999), prefix_hashes("m", shared + b"two" * 9_999)
    alike = sum(a == b for a, b in zip(one, two, strict=True))
    assert one[:alike] == two[:alike]
    assert prefix_bounds(len(shared) + 29_997)[alike - 1] >= len(shared) * 8 / 9


def test_a_long_prompt_is_hashed_in_bounded_steps_to_the_same_end() -> None:
    prompt = bytes(range(256)) * (5 << 12)
    steps = list(prefix_hashes_in_steps("m", prompt))
    assert len(steps) == prefix_bounds(len(prompt))[-1] // (1 << 20) + 1
    assert steps[-1] == prefix_hashes("m", prompt)
    assert len(steps[-1]) == len(prefix_bounds(len(prompt)))
