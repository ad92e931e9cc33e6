"""A switch of the order loses no request, and sets none that waits back beyond the stated bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.costs import ServiceCosts
from headway.domain.request import Request
from headway.scheduling.bundle import bundle
from headway.scheduling.queue import WaitingQueue
from headway.scheduling.scheduler import Policies, Scheduler
from headway.scheduling.switch_line import ALLOWANCE_TOKENS, SETBACK_FACTOR, SwitchLine

COSTS = ServiceCosts(1e-4, 1e-2)
ORDERS = ("fcfs", "shortest-prompt-first", "highest-response-ratio", "priced-work", "ewsjf", "boost", "fair-share/fcfs")
RANKED = ("fcfs", "shortest-prompt-first", "boost")
"""Their order of those that wait does not depend on when it is asked for."""
prompts = st.lists(st.integers(1, 60_000), min_size=1, max_size=25)


def policies(ordering: str) -> Policies:
    return bundle(ordering=ordering, costs=COSTS, seed=0)


def scheduler_with(ordering: str, sizes: list[int]) -> Scheduler:
    scheduler = Scheduler(policies(ordering))
    for number, size in enumerate(sizes):
        scheduler.arrive(Request(number, float(number), size, tenant=f"t{number % 3}"), float(number))
    return scheduler


@given(prompts, prompts, st.sampled_from(RANKED), st.sampled_from(ORDERS), st.lists(st.booleans(), max_size=60))
def test_none_that_waits_is_set_back_beyond_the_bound(
    waiting: list[int], later: list[int], old: str, new: str, arrives: list[bool]
) -> None:
    line, at = scheduler_with(old, waiting), float(len(waiting))
    before: dict[object, float] = {}
    ahead = 0.0
    while len(line.queue):
        request = line.admit(at)
        before[request.id] = ahead
        ahead += request.prompt_tokens
    scheduler = scheduler_with(old, waiting)
    scheduler.switch(policies(new), at)
    served, number, turns = 0.0, 1_000, iter(arrives)
    arriving = iter(later)
    seen = set()
    while len(scheduler.queue):
        at += 1.0
        size = next(arriving, None) if next(turns, True) else None
        if size is not None:
            scheduler.arrive(Request(number, at, size), at)
            number += 1
        head = scheduler.head(at)
        request = scheduler.admit(at)
        assert request is head
        if request.id in before:
            assert served <= SETBACK_FACTOR * before[request.id] + ALLOWANCE_TOKENS
        served += request.prompt_tokens
        seen.add(request.id)
    assert set(before) <= seen
    assert not scheduler.is_switching


@given(prompts, st.sampled_from(ORDERS), st.sampled_from(ORDERS), st.data())
def test_no_request_is_lost_or_served_twice(sizes: list[int], old: str, new: str, data: st.DataObject) -> None:
    scheduler, at = scheduler_with(old, sizes), float(len(sizes))
    front = scheduler.admit(at)
    front.produced_tokens = 5
    scheduler.preempted(front, at)
    scheduler.switch(policies(new), at)
    assert scheduler.head(at) is front, "the preempted come first, as always"
    ended: list[object] = []
    while len(scheduler.queue):
        at += 1.0
        waiting = sorted(request.id for request in scheduler.queue)
        how = data.draw(st.sampled_from(("admit", "take", "cancel")))
        if how == "admit":
            ended.append(scheduler.admit(at).id)
            continue
        chosen = data.draw(st.sampled_from(waiting))
        gone = scheduler.take(chosen, at) if how == "take" else scheduler.cancel(chosen, at)
        assert gone is not None
        ended.append(gone.id)
    assert sorted(map(str, ended)) == sorted(map(str, range(len(sizes))))
    assert scheduler.line is None


def test_half_of_the_service_goes_to_the_line_and_the_rest_to_the_new_order() -> None:
    scheduler = scheduler_with("fcfs", [20_000, 20_000])
    scheduler.switch(policies("shortest-prompt-first"), 2.0)
    for number in range(10, 20):
        scheduler.arrive(Request(number, 3.0, 10_000), 3.0)
    # At first the new order has its allowance of 16,384; each request of the line brings it twice its own size more.
    assert [scheduler.admit(4.0).id for _ in range(7)] == [10, 0, 11, 12, 1, 13, 14]


def test_a_second_switch_waits_until_the_line_is_gone() -> None:
    scheduler = scheduler_with("fcfs", [10, 20])
    scheduler.switch(policies("shortest-prompt-first"), 2.0)
    with pytest.raises(ValueError, match="last switch goes on"):
        scheduler.switch(policies("fcfs"), 2.0)
    scheduler.admit(3.0)
    scheduler.cancel(1, 3.0)
    scheduler.switch(policies("fcfs"), 3.0)
    assert not scheduler.is_switching


def test_a_suspension_ends_the_line() -> None:
    scheduler = scheduler_with("shortest-prompt-first", [10, 20])
    scheduler.switch(policies("priced-work"), 2.0)
    scheduler.suspend()
    assert not scheduler.is_switching
    assert scheduler.admit(3.0).id == 0


def test_a_factor_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 1, got 0\.5"):
        SwitchLine(WaitingQueue(policies("fcfs").ordering), 0.5)


def test_a_new_predictor_estimates_what_waits() -> None:
    scheduler = scheduler_with("fcfs", [10])
    before = scheduler.head(1.0)
    assert before is not None
    stamped = before.estimate
    same = policies("shortest-prompt-first")
    scheduler.switch(Policies(same.ordering, same.admission, same.preemption, scheduler._policies.prediction), 1.0)
    assert before.estimate is stamped
    scheduler.cancel(0, 1.0)
    scheduler.arrive(Request("late", 2.0, 10), 2.0)
    late = scheduler.head(2.0)
    assert late is not None
    stamped = late.estimate
    scheduler.switch(policies("fcfs"), 2.0)
    assert late.estimate is not stamped
