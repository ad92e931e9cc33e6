"""The self-tuned limits: the long-prefill threshold and the cap on running requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.scheduling.self_tuned_limits import SelfTunedLimits, StepFacts, StepLimits

QUIET = StepFacts(
    token_budget=1000, running=101, prefill_left=[5_000], head=None, memory=MemoryView(1_000, 1_000, 16), waiting=0
)  # fmt: skip


def needs(tokens: int, cached: int = 0) -> Request:
    return Request("next", 0.0, tokens + cached, cached_prompt_tokens=cached)


def threshold(tuned: SelfTunedLimits, facts: StepFacts) -> int:
    return tuned.before_step(facts).long_prefill_threshold


def live(tuned: SelfTunedLimits, facts: StepFacts, *, lost: int = 0, computed: int = 1_000) -> StepLimits:
    """The limits after a step that preempted a request of `lost` tokens, if any."""
    if lost:
        tuned.preempted(lost)
    tuned.after_step(computed)
    return tuned.before_step(facts)


def test_nothing_is_kept_free_for_no_request() -> None:
    tuned = SelfTunedLimits(seats=256)
    waits = QUIET._replace(head=needs(50))
    assert threshold(tuned, QUIET) == 0
    assert threshold(SelfTunedLimits(seats=101), waits) == 0, "no seat is free"
    assert threshold(tuned, waits._replace(prefill_left=[])) == 0
    assert threshold(tuned, waits._replace(prefill_left=[500, 350])) == 0, "all fit beside it"
    assert threshold(tuned, waits._replace(memory=MemoryView(3, 1_000, 16))) == 0, "four blocks are wanted"
    assert threshold(tuned, QUIET._replace(head=needs(501))) == 0, "more than half a step"
    assert threshold(tuned, QUIET._replace(head=needs(500))) > 0


def test_long_prefills_leave_the_tokens_that_the_next_one_needs() -> None:
    tuned = SelfTunedLimits(seats=256)
    assert threshold(tuned, QUIET._replace(head=needs(50))) == 850
    assert threshold(tuned, QUIET._replace(head=needs(50, cached=7_000))) == 850
    assert threshold(tuned, QUIET._replace(running=102, head=needs(50), prefill_left=[5_000] * 2)) == 425
    assert threshold(tuned, QUIET._replace(head=needs(490))) == 450, "half at most"


def test_prefills_share_like_water() -> None:
    facts = QUIET._replace(running=104, head=needs(50), prefill_left=[100, 5_000, 150, 4_000])
    assert threshold(SelfTunedLimits(seats=256), facts) == 300, (
        "100 and 150 are served whole, and 600 of 850 are left for two"
    )


def test_the_operators_own_threshold_is_never_exceeded() -> None:
    tuned = SelfTunedLimits(seats=256, own_threshold=300)
    assert threshold(tuned, QUIET) == 300
    assert threshold(tuned, QUIET._replace(head=needs(50))) == 300
    assert threshold(tuned, QUIET._replace(running=104, head=needs(50), prefill_left=[5_000] * 4)) == 212


def test_the_cap_falls_when_much_is_thrown_away_and_rises_slowly() -> None:
    tuned = SelfTunedLimits(seats=200)
    busy = QUIET._replace(running=100, waiting=5)
    assert live(tuned, busy, lost=200).active_cap == 200, "a fifth: no reason to fall"
    assert live(tuned, busy, lost=900).active_cap == 100, "never below the running requests"
    fewer = busy._replace(running=50)
    caps = [live(tuned, fewer, lost=900).active_cap for _ in range(100)]
    assert caps[:49] == [90] * 49, "nine tenths of 101, once in fifty steps"
    assert caps[49] == caps[-1] == 50, "the running requests stay"
    assert [live(tuned, fewer).active_cap for _ in range(600)][-1] > 50


def test_the_cap_comes_back_to_all_seats_and_no_further() -> None:
    tuned = SelfTunedLimits(seats=8)
    busy = QUIET._replace(running=4, waiting=5)
    tuned.preempted(450)
    assert live(tuned, busy, lost=450).active_cap == 5
    caps = [live(tuned, busy).active_cap for _ in range(600)]
    assert sorted(set(caps)) == [5, 6, 7, 8]
    assert caps == sorted(caps)


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans(), st.integers(0, 9_000)), max_size=30), st.integers(0, 900))
def test_quiet_steps_taken_at_once_leave_what_single_ones_do(runs: list[tuple[int, bool, int]], computed: int) -> None:
    single, at_once = SelfTunedLimits(seats=20), SelfTunedLimits(seats=20)
    for steps, requests_wait, lost in runs:
        facts = QUIET._replace(running=10, prefill_left=[], waiting=int(requests_wait))
        assert single.before_step(facts) == at_once.before_step(facts)
        if lost:
            single.preempted(lost)
            at_once.preempted(lost)
            single.after_step(computed)
            at_once.after_step(computed)
            continue
        unchanged = at_once.steps_unchanged(facts.waiting)
        run = steps if unchanged is None else min(steps, 1 + unchanged)
        at_once.after_step(computed, run)
        for step in range(run):
            if step:
                assert single.before_step(facts).active_cap == max(10, at_once._cap)
            single.after_step(computed)
        assert vars(single) == vars(at_once)


@given(
    st.builds(
        StepFacts,
        token_budget=st.integers(1, 10_000),
        running=st.integers(0, 310),
        prefill_left=st.lists(st.integers(1, 20_000), max_size=10),
        head=st.none() | st.integers(1, 50_000).map(needs),
        memory=st.just(QUIET.memory),
        waiting=st.integers(0, 50),
    ),
    st.integers(0, 9_000),
)
def test_settings_are_always_possible_ones(facts: StepFacts, lost: int) -> None:
    limits = live(SelfTunedLimits(seats=300), facts, lost=lost)
    assert limits.long_prefill_threshold >= 0
    assert limits.active_cap >= max(1, facts.running)


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=8), st.integers(1, 400), st.integers(50, 2_000))
def test_no_token_of_a_step_is_left_over(prefill_left: list[int], next_tokens: int, budget: int) -> None:
    facts = QUIET._replace(
        token_budget=budget, running=len(prefill_left), prefill_left=prefill_left, head=needs(next_tokens)
    )
    limit = threshold(SelfTunedLimits(seats=300), facts)
    taken = sum(min(one, limit or one) for one in prefill_left)
    if limit:
        kept = min(next_tokens, budget // 2)
        assert budget - kept - len(prefill_left) < taken <= budget - kept, "but for rounding, all but what is kept"
    else:
        assert taken <= budget - min(next_tokens, budget // 2) or next_tokens > budget // 2, "all fit beside it"
