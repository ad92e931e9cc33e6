"""The knobs that turn themselves, and who stands last: pure parts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.vllm_plugin.tuning import SelfTuned, StepFacts
from headway.vllm_plugin.victims import blocks_wanted, with_victims_last

QUIET = StepFacts(
    token_budget=1000, decoding=100, prefilling=1, short_tokens=0, seats_free=5, waiting=0, preempted=0
)  # fmt: skip


def test_nothing_is_kept_free_for_nobody() -> None:
    tuned = SelfTuned(seats=256)
    assert tuned.step(QUIET).long_prefill_threshold == 0
    assert tuned.step(QUIET._replace(short_tokens=50, seats_free=0)).long_prefill_threshold == 0
    assert tuned.step(QUIET._replace(short_tokens=50, prefilling=0)).long_prefill_threshold == 0


def test_long_prefills_leave_room_for_the_short_that_wait() -> None:
    tuned = SelfTuned(seats=256)
    assert tuned.step(QUIET._replace(short_tokens=50)).long_prefill_threshold == 850
    assert tuned.step(QUIET._replace(short_tokens=50, prefilling=2)).long_prefill_threshold == 425
    assert tuned.step(QUIET._replace(short_tokens=9_999)).long_prefill_threshold == 450, "half at most"


def test_the_operators_own_threshold_is_never_exceeded() -> None:
    tuned = SelfTuned(seats=256, own_threshold=300)
    assert tuned.step(QUIET).long_prefill_threshold == 300
    assert tuned.step(QUIET._replace(short_tokens=50)).long_prefill_threshold == 300
    assert tuned.step(QUIET._replace(short_tokens=50, prefilling=4)).long_prefill_threshold == 212


def test_the_cap_falls_at_once_and_rises_slowly() -> None:
    tuned = SelfTuned(seats=200, calm_steps=10)
    busy = QUIET._replace(decoding=99, prefilling=1, waiting=5)
    assert tuned.step(busy._replace(preempted=1)).active_cap == 100, "never below those who run"
    fewer = busy._replace(decoding=49)
    assert tuned.step(fewer._replace(preempted=1)).active_cap == 90, "nine tenths of 101, once in ten steps"
    for _ in range(7):
        assert tuned.step(fewer).active_cap == 90
    assert [tuned.step(fewer).active_cap for _ in range(20)][-1] == 92


def test_the_cap_comes_back_to_all_seats_and_no_further() -> None:
    tuned = SelfTuned(seats=8, calm_steps=1)
    busy = QUIET._replace(decoding=3, prefilling=1, waiting=5)
    assert tuned.step(busy._replace(preempted=2)).active_cap == 5
    assert [tuned.step(busy).active_cap for _ in range(5)] == [6, 7, 8, 8, 8]


@given(
    st.builds(
        StepFacts,
        token_budget=st.integers(1, 10_000),
        decoding=st.integers(0, 300),
        prefilling=st.integers(0, 10),
        short_tokens=st.integers(0, 50_000),
        seats_free=st.integers(-5, 300),
        waiting=st.integers(0, 50),
        preempted=st.integers(0, 5),
    )
)
def test_settings_are_always_possible_ones(facts: StepFacts) -> None:
    knobs = SelfTuned(seats=300).step(facts)
    assert knobs.long_prefill_threshold >= 0
    assert knobs.active_cap >= max(1, facts.decoding + facts.prefilling)


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
