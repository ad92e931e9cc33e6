"""The self-tuned limits: the long-prefill threshold and the cap on running requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.scheduling.self_tuned_limits import SelfTunedLimits, StepFacts

QUIET = StepFacts(
    token_budget=1000, decoding=100, prefill_left=[5_000], next_tokens=0, seats_free=5, waiting=0, preempted=0,
    lost_tokens=0, computed_tokens=1000,
)  # fmt: skip


def test_nothing_is_kept_free_for_no_request() -> None:
    tuned = SelfTunedLimits(seats=256)
    assert tuned.step(QUIET).long_prefill_threshold == 0
    assert tuned.step(QUIET._replace(next_tokens=50, seats_free=0)).long_prefill_threshold == 0
    assert tuned.step(QUIET._replace(next_tokens=50, prefill_left=[])).long_prefill_threshold == 0
    assert tuned.step(QUIET._replace(next_tokens=50, prefill_left=[500, 350])).long_prefill_threshold == 0


def test_long_prefills_leave_the_tokens_that_the_next_one_needs() -> None:
    tuned = SelfTunedLimits(seats=256)
    assert tuned.step(QUIET._replace(next_tokens=50)).long_prefill_threshold == 850
    assert tuned.step(QUIET._replace(next_tokens=50, prefill_left=[5_000] * 2)).long_prefill_threshold == 425
    assert tuned.step(QUIET._replace(next_tokens=9_999)).long_prefill_threshold == 450, "half at most"


def test_prefills_share_like_water() -> None:
    tuned = SelfTunedLimits(seats=256)
    limits = tuned.step(QUIET._replace(next_tokens=50, prefill_left=[100, 5_000, 150, 4_000]))
    assert limits.long_prefill_threshold == 300, "100 and 150 are served whole, and 600 of 850 are left for two"


def test_the_operators_own_threshold_is_never_exceeded() -> None:
    tuned = SelfTunedLimits(seats=256, own_threshold=300)
    assert tuned.step(QUIET).long_prefill_threshold == 300
    assert tuned.step(QUIET._replace(next_tokens=50)).long_prefill_threshold == 300
    assert tuned.step(QUIET._replace(next_tokens=50, prefill_left=[5_000] * 4)).long_prefill_threshold == 212


def test_the_cap_falls_when_much_is_thrown_away_and_rises_slowly() -> None:
    tuned = SelfTunedLimits(seats=200)
    busy = QUIET._replace(decoding=99, waiting=5)
    assert tuned.step(busy._replace(preempted=1, lost_tokens=200)).active_cap == 200, "a fifth: no reason to fall"
    assert tuned.step(busy._replace(preempted=1, lost_tokens=900)).active_cap == 100, "never below the running requests"
    fewer = busy._replace(decoding=49)
    caps = [tuned.step(fewer._replace(preempted=1, lost_tokens=900)).active_cap for _ in range(100)]
    assert caps[:49] == [90] * 49, "nine tenths of 101, once in fifty steps"
    assert caps[49] == caps[-1] == 50, "the running requests stay"
    assert [tuned.step(fewer).active_cap for _ in range(600)][-1] > 50


def test_the_cap_comes_back_to_all_seats_and_no_further() -> None:
    tuned = SelfTunedLimits(seats=8)
    busy = QUIET._replace(decoding=3, waiting=5)
    assert tuned.step(busy._replace(preempted=2, lost_tokens=900)).active_cap == 5
    caps = [tuned.step(busy).active_cap for _ in range(600)]
    assert sorted(set(caps)) == [5, 6, 7, 8]
    assert caps == sorted(caps)


@given(
    st.builds(
        StepFacts,
        token_budget=st.integers(1, 10_000),
        decoding=st.integers(0, 300),
        prefill_left=st.lists(st.integers(1, 20_000), max_size=10),
        next_tokens=st.integers(0, 50_000),
        seats_free=st.integers(-5, 300),
        waiting=st.integers(0, 50),
        preempted=st.integers(0, 5),
        lost_tokens=st.integers(0, 9_000),
        computed_tokens=st.integers(0, 9_000),
    )
)
def test_settings_are_always_possible_ones(facts: StepFacts) -> None:
    limits = SelfTunedLimits(seats=300).step(facts)
    assert limits.long_prefill_threshold >= 0
    assert limits.active_cap >= max(1, facts.decoding + len(facts.prefill_left))


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=8), st.integers(1, 400), st.integers(50, 2_000))
def test_no_token_of_a_step_is_left_over(prefill_left: list[int], next_tokens: int, budget: int) -> None:
    facts = QUIET._replace(token_budget=budget, decoding=0, prefill_left=prefill_left, next_tokens=next_tokens)
    threshold = SelfTunedLimits(seats=300).step(facts).long_prefill_threshold
    taken = sum(min(one, threshold or one) for one in prefill_left)
    if threshold:
        kept = min(next_tokens, budget // 2)
        assert budget - kept - len(prefill_left) < taken <= budget - kept, "but for rounding, all but what is kept"
    else:
        assert taken <= budget - min(next_tokens, budget // 2), "all fit beside the next one"
