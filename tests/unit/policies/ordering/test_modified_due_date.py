"""Modified due date: sums of tardiness by hand and by brute force, its two limits, and how far lanes are from exact."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headway.domain.costs import ServiceCosts
from headway.domain.request import Request
from headway.policies.ordering.earliest_deadline_first import EarliestDeadlineFirst
from headway.policies.ordering.modified_due_date import ModifiedDueDate
from headway.policies.ordering.shortest_uncached_prefill_first import ShortestUncachedPrefillFirst
from headway.scheduling.queue import WaitingQueue
from headway.testing.examples import examples

COSTS = ServiceCosts(prefill_seconds_per_token=0.001, decode_seconds_per_token=0.02)
Job = tuple[int, int]
"""Seconds of work, deadline in seconds; all are there at 0."""


def requests_of(jobs: list[Job]) -> list[Request]:
    return [Request(i, 0.0, seconds * 1_000, deadline=float(deadline)) for i, (seconds, deadline) in enumerate(jobs)]


def served(jobs: list[Job], lane_seconds: float = 1e-6) -> list[Job]:
    """One after another on one machine, in the policy's order."""
    queue = WaitingQueue(ModifiedDueDate(costs=COSTS, lane_seconds=lane_seconds))
    for r in requests_of(jobs):
        queue.add(r)
    order, now = [], 0.0
    while len(queue):
        job = jobs[int(queue.pop(now).id)]
        order.append(job)
        now += job[0]
    return order


def tardiness(order: list[Job]) -> int:
    now = total = 0
    for seconds, deadline in order:
        now += seconds
        total += max(0, now - deadline)
    return total


def test_sums_of_tardiness_by_hand() -> None:
    """One case in which it finds the optimum where EDF (13) and shortest first (10) do not; one in which it fails."""
    jobs = [(9, 9), (9, 12), (2, 13)]
    assert served(jobs) == [(9, 9), (2, 13), (9, 12)]
    assert tardiness(served(jobs)) == 8 == min(tardiness(list(order)) for order in permutations(jobs))
    jobs = [(8, 1), (3, 9), (6, 9)]
    assert tardiness(served(jobs)) == 17 == 1 + min(tardiness(list(order)) for order in permutations(jobs))


jobs = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=6)


@given(jobs)
@settings(max_examples=examples(60))
def test_no_exchange_of_two_neighbours_betters_the_choice(some: list[Job]) -> None:
    order = served(some)
    for i in range(len(order) - 1):
        exchanged = [*order[:i], order[i + 1], order[i], *order[i + 2 :]]
        assert tardiness(order) <= tardiness(exchanged)


@given(jobs)
@settings(max_examples=examples(60))
def test_while_all_are_in_time_it_is_earliest_deadline_first(some: list[Job]) -> None:
    by_deadline = sorted(some, key=lambda job: (job[1], job[0]))
    assume(tardiness(by_deadline) == 0)
    ahead = EarliestDeadlineFirst()
    ranks = [ahead.rank(r) for r in requests_of(served(some))]
    assert ranks == sorted(ranks)


@given(jobs)
@settings(max_examples=examples(60))
def test_once_all_are_late_it_is_shortest_first(some: list[Job]) -> None:
    late = [(seconds, deadline - 40) for seconds, deadline in some]
    ranks = [ShortestUncachedPrefillFirst().rank(r) for r in requests_of(served(late))]
    assert ranks == sorted(ranks)


eighths = st.integers(0, 800).map(lambda number: number / 8)
waiting = st.lists(
    st.builds(
        lambda at, tokens, slack: Request(0, at, tokens, deadline=None if slack is None else at + slack),
        eighths,
        st.integers(1, 40_000),
        st.none() | eighths,
    ),
    min_size=1,
    max_size=8,
)


@given(waiting, st.floats(0, 200), st.sampled_from([0.01, 0.5, 8.0]))
@settings(max_examples=examples(200))
def test_a_choice_is_within_a_lane_of_the_least_modified_due_date(
    some: list[Request], now: float, lane_seconds: float
) -> None:
    order = ModifiedDueDate(costs=COSTS, lane_seconds=lane_seconds)
    heads: dict[object, Request] = {}
    for r in sorted(some, key=order.rank):
        heads.setdefault(order.lane(r), r)

    def due(r: Request) -> float:
        deadline = r.arrived_at + 30.0 if r.deadline is None else r.deadline
        return max(deadline, now + r.prompt_tokens * COSTS.prefill_seconds_per_token)

    assert due(heads[order.choose(heads, now)]) <= min(due(r) for r in some) + lane_seconds + 1e-9  # type: ignore[index]


@given(waiting, st.floats(0, 200), st.floats(0, 1))
@settings(max_examples=examples(200))
def test_a_choice_stands_until_it_is_said_to_change(some: list[Request], now: float, share: float) -> None:
    order = ModifiedDueDate(costs=COSTS)
    heads: dict[object, Request] = dict(enumerate(some))
    change = order.next_change(heads, now)  # type: ignore[arg-type]
    assert change >= now
    if change > now:
        until = min(change, now + 1_000.0)
        later = now + share * (until - now) * (1 - 1e-9)
        assert order.choose(heads, later) == order.choose(heads, now)  # type: ignore[arg-type]
    if now < change < math.inf:
        assert order.choose(heads, change + 1e-6) != order.choose(heads, now)  # type: ignore[arg-type]


def test_without_a_deadline_the_allowance_counts_from_the_arrival() -> None:
    order = ModifiedDueDate(costs=COSTS, no_deadline_seconds=7.0)
    patient, urgent = Request(0, 5.0, 1_000), Request(1, 5.0, 9_000, deadline=11.0)
    heads = {order.lane(r): r for r in (patient, urgent)}
    assert order.choose(heads, 0.0) == order.lane(urgent), "11 s against 12 s"
    assert order.choose(heads, 4.0) == order.lane(patient), "13 s against 12 s"


@pytest.mark.parametrize("option", ["no_deadline_seconds", "lane_seconds"])
def test_options_out_of_bounds_are_told(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be"):
        ModifiedDueDate(costs=COSTS, **{option: -1.0})
