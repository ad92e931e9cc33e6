"""Confirmed prefixes: held from the answer that computed them until an answer denies them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.replicas import confirmed_prefixes
from headway.gateway.replicas.confirmed_prefixes import ConfirmedPrefixes, share_prefixes


def told() -> ConfirmedPrefixes:
    """It once counted cached tokens."""
    held = ConfirmedPrefixes()
    held.answered([], [], 1, 0, 5.0)
    return held


def test_a_replica_that_never_counted_cached_tokens_has_told_nothing() -> None:
    held = ConfirmedPrefixes()
    held.answered([1, 2], [100, 200], 0, 0, 5.0)
    assert held.tokens([1, 2], 300) is None
    assert held.as_of == -math.inf
    held.answered([1, 2], [100, 200], 200, 0, 6.0)
    assert held.tokens([1, 2], 300) == 200
    assert held.as_of == 6.0


def test_the_longest_prefix_counts_and_never_the_whole_prompt() -> None:
    held = told()
    held.answered([1, 2, 3], [100, 200, 300], 0, 0, 6.0)
    assert held.tokens([1, 2, 9], 1_000) == 200
    assert held.tokens([1, 2, 3], 300) == 299
    assert held.tokens([8, 9], 1_000) == 0
    assert held.tokens([], 0) == 0


def test_an_answer_that_denies_a_prefix_puts_all_older_ones_in_doubt() -> None:
    held = told()
    held.answered([1, 2], [100, 200], 0, 0, 6.0)
    held.answered([11, 12], [100, 200], 0, 0, 7.0)
    held.answered([21, 22], [100, 200], 0, 0, 8.0)
    held.answered([11, 12, 13], [100, 200, 300], 0, 200, 9.0)
    assert held.tokens([1, 2], 500) == 0
    assert held.tokens([11, 12, 13], 500) == 300, "it has just computed this one"
    assert held.tokens([21, 22], 500) == 200


def test_of_a_prompt_whose_end_was_denied_the_beginning_stays() -> None:
    held = told()
    held.answered([1, 2, 3], [100, 200, 300], 0, 0, 6.0)
    held.answered([1, 2, 4], [100, 200, 300], 200, 200, 7.0)
    held.answered([1, 2, 3, 9], [100, 200, 300, 400], 200, 300, 8.0)  # its end was given up; what is common is in use
    assert held.tokens([1, 2, 4], 500) == 300
    held.answered([1, 2, 4], [100, 200, 300], 100, 300, 9.0)
    assert held.tokens([1, 2, 3, 9], 500) == 200


def test_what_was_confirmed_in_the_meantime_is_not_denied() -> None:
    held = told()
    held.answered([1], [100], 0, 0, 6.0)
    held.answered([11, 12], [100, 200], 0, 0, 7.0)
    held.answered([11, 12], [100, 200], 0, 50, 8.0)
    assert held.tokens([1], 500) == 100
    held.answered([11, 12], [100, 200], 170, 200, 9.0)
    assert held.tokens([1], 500) == 100, "a cache holds whole blocks"


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(0, 600), st.booleans()), max_size=60),
    st.integers(1, 12),
)
def test_where_a_prefix_is_held_all_shorter_ones_are(answers: list[tuple[int, int, int, bool]], most: int) -> None:
    """Prompts of a tree: the first prefix is common to all, the second to pairs, the others are their own."""
    held = told()
    prompts = {n: [0, 10 + n // 2, *(100 * (n + 1) + depth for depth in range(4))] for n in range(6)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confirmed_prefixes, "PREFIXES_MAX", most)
        for at, (number, depth, cached, sent_long_ago) in enumerate(answers):
            prefix = prompts[number][:depth]
            believed = 0 if sent_long_ago else held.tokens(prefix, 10**6) or 0
            held.answered(prefix, [100 * (1 + n) for n in range(depth)], cached, believed, float(at))
            assert len(held) <= most
            for other in prompts.values():
                known = [key in held._tokens for key in other]
                assert known == sorted(known, reverse=True)
                assert held.tokens(other, 10**6) == 100 * sum(known)


def test_the_least_recently_confirmed_go_first_and_of_a_prompt_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirmed_prefixes, "PREFIXES_MAX", 3)
    held = told()
    held.answered([1, 2], [100, 200], 0, 0, 6.0)
    held.answered([3], [100], 0, 0, 7.0)
    held.answered([1, 4], [100, 200], 0, 0, 8.0)
    assert len(held) == 3
    assert [held.tokens(prefix, 500) for prefix in ([1], [1, 2], [3], [1, 4])] == [100, 100, 100, 200]


def test_all_replicas_together_keep_so_many_and_each_gets_rid_of_the_rest_in_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(confirmed_prefixes, "ALL_PREFIXES_MAX", 6_000)
    replicas = [told() for _ in range(3)]
    share_prefixes(replicas[:1])
    for key in range(5_000):
        replicas[0].answered([key], [100], 0, 0, 6.0)
    assert len(replicas[0]) == 5_000
    share_prefixes(replicas)
    replicas[0].answered([9_999], [100], 0, 0, 7.0)
    assert len(replicas[0]) == 4_000
    for left in (3_000, 2_000, 2_000):
        replicas[0].forget_excess()
        assert len(replicas[0]) == left
    assert [replicas[0].tokens([key], 500) for key in (0, 4_999, 9_999)] == [0, 100, 100]
    for one in replicas[1:]:
        for key in range(3_000):
            one.answered([key], [100], 0, 0, 6.0)
    assert sum(map(len, replicas)) == 6_000
