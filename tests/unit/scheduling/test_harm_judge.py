"""The live estimate of first come, first served, and when it says that we do harm."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from headway.domain.request import Request
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.shortest_prompt_first import ShortestPromptFirst
from headway.policies.prediction.declared_max import DeclaredMax
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.harm_judge import HarmJudge, HarmLimits, WaitComparison, Waits
from headway.scheduling.harm_watch import HarmWatch
from headway.scheduling.scheduler import Policies, Scheduler


def serve(works: list[int], order: list[int]) -> WaitComparison:
    """All come at 0; the engine lets one in at a time, each takes its work in seconds before the next comes in."""
    shadow, now = WaitComparison(), 0.0
    for arrival, work in enumerate(works):
        shadow.arrive(arrival, 0.0, work)
    for arrival in order:
        shadow.admit(arrival, 0.0, now, works[arrival])
        now += works[arrival]
    return shadow


def test_under_fcfs_the_estimate_is_the_truth() -> None:
    waits = serve([5, 1, 3, 2], [0, 1, 2, 3]).waits(11.0)
    assert waits.ours == waits.fcfs == 9.0
    assert waits.requests == 4


def test_one_long_request_kept_waiting_is_seen_while_it_waits() -> None:
    shadow, now = WaitComparison(), 0.0
    shadow.arrive(0, 0.0, 100)
    for arrival in range(1, 60):
        shadow.arrive(arrival, now, 1)
        shadow.admit(arrival, now, now, 1)
        now += 1.0
    waits = shadow.waits(now)
    assert waits.ours == now, "it counts with what it has waited so far"
    assert waits.fcfs <= 1.0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_every_request_is_compared_once_whatever_the_order(works: list[int], chance: random.Random) -> None:
    order = list(range(len(works)))
    chance.shuffle(order)
    shadow = serve(works, order)
    assert shadow.waits(sum(works)).requests == len(works)
    assert not shadow._ours
    assert not shadow._late


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=60))
def test_those_who_leave_are_forgotten(requests: list[tuple[int, bool]]) -> None:
    shadow = WaitComparison()
    for arrival, (work, _) in enumerate(requests):
        shadow.arrive(arrival, 0.0, work)
    for arrival, (work, leaves) in reversed(list(enumerate(requests))):
        if leaves:
            shadow.leave(arrival, 1.0)
        else:
            shadow.admit(arrival, 0.0, 1.0, work)
    assert shadow.waits(1.0).requests == sum(not leaves for _, leaves in requests)
    assert not shadow._ours
    assert not shadow._late


def test_the_population_is_bounded_and_can_be_dropped() -> None:
    shadow = serve([1] * 3_000, list(range(3_000)))
    assert shadow.waits(0.0).requests == 1_000
    shadow.forget()
    assert shadow.waits(0.0) == Waits(0.0, 0.0, 0)


def test_harm_must_last_and_suspends_for_a_while() -> None:
    judge = HarmJudge(HarmLimits(harm_ratio=2.0, harm_slack_seconds=1.0, harm_seconds=10.0, step_back_seconds=30.0))
    bad, good, few, near = Waits(9.0, 3.0, 100), Waits(5.0, 3.0, 100), Waits(9.0, 3.0, 10), Waits(1.0, 0.1, 100)
    for harmless in (good, few, near):
        assert not judge.check(bad, 0.0)
        assert not judge.check(bad, 9.0)
        assert not judge.check(harmless, 10.0)
        assert not judge.check(bad, 10.0)
        assert not judge.check(bad, 19.0)
        assert not judge.suspends
        assert not judge.check(harmless, 19.5)
    assert not judge.check(bad, 20.0)
    assert judge.check(bad, 30.0)
    assert judge.suspends
    assert not judge.check(bad, 59.0), "nothing changes while they are suspended"
    assert judge.check(bad, 60.0)
    assert not judge.suspends
    assert not judge.check(bad, 61.0), "harm has to last again"
    assert judge.check(bad, 71.0)


def test_waits_count_from_arrival() -> None:
    comparison = WaitComparison()
    for number, arrived_at in enumerate([10.0, 11.0]):
        comparison.arrive(number, arrived_at, 5)
    comparison.admit(1, 11.0, 14.0, 5)  # FCFS would have admitted request 0 then, after 4 s
    assert comparison.waits(20.0) == Waits(10.0, 4.0, 1)
    comparison.admit(0, 10.0, 30.0, 5)
    assert comparison.waits(99.0) == Waits(20.0, 19.0, 2)


def test_just_as_much_as_allowed_is_no_harm() -> None:
    judge = HarmJudge(HarmLimits(harm_ratio=2.0, harm_slack_seconds=1.0, harm_seconds=0.0, step_back_seconds=30.0))
    assert not judge.check(Waits(6.0, 3.0, 100), 0.0)
    assert not judge.check(Waits(1.5, 0.5, 100), 0.0)
    assert not judge.check(Waits(9.0, 3.0, 49), 0.0)
    assert judge.check(Waits(6.1, 3.0, 50), 0.0)


def test_the_limits_unless_set() -> None:
    assert HarmLimits() == HarmLimits(2.0, 1.0, 60.0, 300.0)


def test_the_watch_suspends_a_scheduler_and_reinstates_it() -> None:
    """Shortest first keeps one request waiting for 100 s that FCFS would have admitted at once; then all is well."""
    limits = HarmLimits(harm_ratio=2.0, harm_slack_seconds=1.0, harm_seconds=5.0, step_back_seconds=30.0)
    watch = HarmWatch(limits)
    policies = Policies(ShortestPromptFirst(), Greedy(), LatestAdmitted(), DeclaredMax())
    scheduler = Scheduler(policies, listeners=[watch])
    scheduler.arrive(Request("long", 0.0, 20), 0.0)
    for second in range(60):
        scheduler.arrive(Request(second, float(second), 10), float(second))
        assert scheduler.admit(float(second)).id == second
    watch.check(scheduler, 100.0)
    assert not scheduler.suspended
    watch.check(scheduler, 104.0)
    watch.check(scheduler, 106.0)
    assert scheduler.suspended
    assert scheduler.admit(107.0).id == "long"
    watch.check(scheduler, 130.0)
    assert scheduler.suspended
    watch.check(scheduler, 136.0)
    assert not scheduler.suspended
    watch.check(scheduler, 200.0)
    watch.check(scheduler, 300.0)
    assert not scheduler.suspended, "the comparison has started again"


def test_limits_are_by_default_those_that_operators_are_told() -> None:
    """docs/vllm.md, "Harm"."""
    assert HarmLimits() == HarmLimits(
        harm_ratio=2.0, harm_slack_seconds=1.0, harm_seconds=60.0, step_back_seconds=300.0
    )
