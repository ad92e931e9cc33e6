"""The scheduler tells each fact once, to all who listen, and asks again when an ordering has learned something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from headway.domain.estimate import PointEstimate
from headway.domain.event import (
    EVENTS,
    Admitted,
    Arrived,
    Cancelled,
    Completed,
    Event,
    FirstToken,
    Preempted,
    Refused,
    heard_by,
)
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request, RequestView
from headway.policies.admission.greedy import Greedy
from headway.policies.contracts import LaneId
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.declared_max import DeclaredMax
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.scheduler import Policies, Scheduler
from headway.testing.lifecycle_checker import LifecycleChecker
from headway.testing.scripted import ScriptedBatch


class Ears:
    def __init__(self) -> None:
        self.heard: list[Event] = []

    def observe(self, event: Event) -> None:
        self.heard.append(event)


class LearnsAndOrders(Ears):
    """Predictor and ordering in one; serves the tenant with fewer completions."""

    def predict(self, request: RequestView) -> PointEstimate:
        return PointEstimate(7, "test")

    def lane(self, request: RequestView) -> LaneId:
        return request.tenant

    def rank(self, request: RequestView) -> float:
        assert request.estimate is not None, "ranked before it was estimated"
        return 0.0

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        ended = [event.request.tenant for event in self.heard if isinstance(event, Completed)]
        return min(heads, key=lambda lane: (ended.count(lane), lane))

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        return float("inf")


class NamesAStranger:
    def victim(self, running: object, now: float) -> RequestView:
        return Request("stranger", 0.0, 1)


def build(policy: LearnsAndOrders, *listeners: Ears | LifecycleChecker) -> Scheduler:
    return Scheduler(Policies(policy, Greedy(), LatestAdmitted(), policy), listeners=listeners)


def test_a_life_is_told_in_order_once_each() -> None:
    policy, ears, life = LearnsAndOrders(), Ears(), LifecycleChecker()
    scheduler = build(policy, ears, life)
    request, leaver, huge = Request(0, 0.0, 5), Request(1, 1.0, 5), Request(2, 1.5, 10**9)
    scheduler.arrive(request, 0.0)
    assert scheduler.head(0.0) is request
    assert scheduler.admit(0.0) is request
    scheduler.arrive(leaver, 1.0)
    scheduler.refuse(huge, 1.5, "it is larger than all memory")
    request.produced_tokens = 1
    scheduler.first_token(request, 2.0)
    scheduler.preempted(request, 3.0)
    assert scheduler.cancel(1, 4.0) is leaver
    assert scheduler.cancel(1, 4.0) is None
    assert scheduler.admit(5.0) is request
    request.produced_tokens = 3
    scheduler.complete(request, 6.0)
    life.finish()
    assert (
        ears.heard
        == policy.heard
        == [
            Arrived(request, 0.0),
            Admitted(request, 0.0),
            Arrived(leaver, 1.0),
            Refused(huge, 1.5, "it is larger than all memory"),
            FirstToken(request, 2.0),
            Preempted(request, 3.0),
            Cancelled(leaver, 4.0),
            Admitted(request, 5.0),
            Completed(request, 6.0, 3),
        ]
    )
    assert request.estimate is not None
    assert request.estimate.made_by == "test"


def test_a_listener_that_names_what_it_needs_is_spared_the_rest() -> None:
    def life_heard_by(ears: Ears) -> list[type[Event]]:
        scheduler = Scheduler(Policies(Fcfs(), Greedy(), LatestAdmitted(), RunningMean()), listeners=[ears])
        request = Request(0, 0.0, 5)
        scheduler.arrive(request, 0.0)
        scheduler.admit(1.0)
        scheduler.first_token(request, 2.0)
        scheduler.complete(request, 3.0)
        return [type(event) for event in ears.heard]

    class Frugal(Ears):
        hears = (Admitted,)

    heard = life_heard_by(Frugal())
    assert Admitted in heard
    assert Arrived not in heard
    assert FirstToken not in heard
    assert life_heard_by(Ears()) == [Arrived, Admitted, FirstToken, Completed]
    assert heard_by(Frugal(), RunningMean()) == {Admitted, Completed}
    assert heard_by(Frugal(), Ears()) == EVENTS
    assert heard_by() == frozenset()


def test_what_an_ordering_hears_may_change_its_choice() -> None:
    scheduler = build(LearnsAndOrders())
    running = Request(0, 0.0, 5, tenant="a")
    scheduler.arrive(running, 0.0)
    scheduler.admit(0.0)
    for number, tenant in ((1, "a"), (2, "b")):
        scheduler.arrive(Request(number, 0.0, 5, tenant=tenant), 0.0)
    assert scheduler.head(1.0).id == 1
    running.produced_tokens = 1
    scheduler.first_token(running, 1.0)
    scheduler.complete(running, 1.0)
    assert scheduler.head(1.0).id == 2


def test_the_victim_must_run() -> None:
    policy = LearnsAndOrders()
    running = [Request(0, 0.0, 1), Request(1, 0.0, 1)]
    assert build(policy).victim(running, 1.0) is running[1]
    confused = Scheduler(Policies(policy, Greedy(), NamesAStranger(), policy))
    with pytest.raises(ValueError, match="the preemption policy named 'stranger', which is not running"):
        confused.victim(running, 1.0)


def test_the_admission_policy_has_the_last_word() -> None:
    class Never:
        def hold_steps(self, request: object, batch: object, memory: object, now: float) -> int:
            return 3

    policy = LearnsAndOrders()
    scheduler = Scheduler(Policies(policy, Never(), LatestAdmitted(), policy))
    assert scheduler.hold_steps(Request(0, 0.0, 1), ScriptedBatch(), MemoryView(1, 1, 1), 0.0) == 3


def test_a_request_behind_the_head_may_be_taken() -> None:
    policy, ears, life = LearnsAndOrders(), Ears(), LifecycleChecker()
    scheduler = build(policy, ears, life)
    first, second = Request("first", 0.0, 1, tenant="a"), Request("second", 1.0, 1, tenant="a")
    scheduler.arrive(first, 0.0)
    scheduler.arrive(second, 1.0)
    assert scheduler.take("second", 2.0) is second
    assert scheduler.head(2.0) is first
    assert scheduler.take("second", 2.0) is None, "it does not wait any more"
    assert ears.heard[-1] == Admitted(second, 2.0)


def test_the_client_of_a_running_request_may_leave() -> None:
    policy, ears, life = LearnsAndOrders(), Ears(), LifecycleChecker()
    scheduler = build(policy, ears, life)
    request = Request("r", 0.0, 1)
    scheduler.arrive(request, 0.0)
    scheduler.admit(1.0)
    scheduler.left(request, 2.0)
    assert ears.heard[-1] == Cancelled(request, 2.0)


def test_while_suspended_first_come_first_served_rules_and_the_policies_still_listen() -> None:
    class Latest(Ears):
        def rank(self, request: RequestView) -> float:
            return -request.arrived_at

    class HoldsAll:
        look_ahead = 4

        def hold_steps(self, *_: object) -> int:
            return 7

        def may_pass(self, *_: object) -> bool:
            return True

        def passed(self, head: RequestView) -> None: ...

    class First:
        def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
            return running[0]

    scheduler = Scheduler(Policies(Latest(), HoldsAll(), First(), DeclaredMax()))  # type: ignore[arg-type]
    batch = ScriptedBatch([Request(8, 0.0, 1), Request(9, 0.0, 1)])
    running = list(batch.running())
    for number in range(3):
        scheduler.arrive(Request(number, float(number), 1), float(number))
    scheduler.preempted(Request(7, 0.0, 1), 3.0)

    def rules() -> tuple[object, ...]:
        scheduler.queue.remove(7)
        head = scheduler.head(4.0)
        assert head is not None
        behind = scheduler.candidate([head], batch, MemoryView(9, 9, 1), 4.0)
        hold = scheduler.hold_steps(head, batch, MemoryView(9, 9, 1), 4.0)
        return head.id, behind and behind.id, hold, scheduler.victim(running, 4.0).id, scheduler.backfills

    front = scheduler.head(4.0)
    assert rules() == (2, 1, 7, 8, True)
    assert front is not None
    scheduler.queue.resume(front)
    scheduler.suspend()
    assert scheduler.suspended
    assert scheduler.head(4.0) is front, "the preempted stay in front"
    assert rules() == (0, None, 0, 9, False)
    scheduler.reinstate()
    assert not scheduler.suspended
    assert rules() == (2, 1, 7, 8, True)


def test_each_way_of_a_request_is_heard() -> None:
    class Passes:
        look_ahead = 4

        def hold_steps(self, *_: object) -> int:
            return 0

        def may_pass(self, *_: object) -> bool:
            return True

        def passed(self, head: RequestView) -> None: ...

    ears, policy = Ears(), LearnsAndOrders()
    scheduler = Scheduler(Policies(policy, Passes(), LatestAdmitted(), policy), listeners=[ears])
    head, behind = Request(0, 0.0, 1), Request(1, 1.0, 1)
    scheduler.arrive(head, 0.0)
    assert not scheduler.backfills, "none is behind the head"
    scheduler.arrive(behind, 1.0)
    assert scheduler.backfills
    scheduler.admit_past(behind, head, 2.0)
    scheduler.taken_back(behind, 3.0)
    assert scheduler.cancel(99, 4.0) is None
    assert ears.heard[2:] == [Admitted(behind, 2.0), Preempted(behind, 3.0, for_memory=False)]
