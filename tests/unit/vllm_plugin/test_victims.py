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


def test_a_decode_wants_a_block_where_its_last_one_is_full() -> None:
    assert blocks_wanted([(15, 16), (16, 17), (17, 18), (32, 32)], 8_192, 16) == 2


def test_prompts_want_what_they_lack_and_no_more_than_the_budget_fills() -> None:
    assert blocks_wanted([(0, 17)], 8_192, 16) == 2
    assert blocks_wanted([(0, 100_000)], 8_192, 16) == 512
    assert blocks_wanted([(15, 17)] * 10, 8_192, 16) == 10, "each ends in a block of its own"


@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70), st.integers(1, 70)), max_size=6),
    st.integers(6, 90),
    st.integers(1, 17),
)
def test_no_split_of_a_step_takes_more_blocks(lives: list[tuple[int, int, int]], budget: int, block: int) -> None:
    """`lives`: computed, lacking, and at most so many tokens of it in this step."""
    taken, left = 0, budget
    for computed, lacking, most in lives:
        tokens = min(max(1, lacking), most, left)
        taken += -(-(computed + tokens) // block) - -(-computed // block)
        left -= tokens
    assert taken <= blocks_wanted([(computed, computed + lacking) for computed, lacking, _ in lives], budget, block)
