"""Preemption victims stand last in the running list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.vllm_plugin.victims import blocks_wanted, with_victims_last


@given(st.lists(st.integers(), unique=True, min_size=1), st.integers(0, 9))
def test_victims_stand_last_and_the_first_of_them_goes_first(running: list[int], victims: int) -> None:
    ordered = with_victims_last(running, victims, min)
    named = min(victims, len(running) - 1)
    assert sorted(ordered) == sorted(running)
    assert ordered[len(running) - named :] == sorted(running)[:named][::-1]
    assert ordered[: len(running) - named] == [one for one in running if one in ordered[: len(running) - named]]


def test_the_same_object_is_meant_not_an_equal_one() -> None:
    first, second = [1], [1]
    ordered = with_victims_last([first, second], 1, lambda some: some[-1])
    assert ordered[0] is first
    ordered = with_victims_last([first, second], 1, lambda some: some[0])
    assert ordered[1] is first


def test_blocks_wanted() -> None:
    assert blocks_wanted([15, 16, 17, 32], 0, 16) == 2
    assert blocks_wanted([], 17, 16) == 2
