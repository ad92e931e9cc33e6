"""Whatever a policy does, no request is lost, and the queue goes on first come, first served."""

from __future__ import annotations

import math
from typing import Any

import pytest

from headway.domain.estimate import PointEstimate
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.shortest_prompt_first import ShortestPromptFirst
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.checked_policies import PolicyFault
from headway.scheduling.scheduler import Policies
from headway.testing.scripted import ScriptedBatch
from headway.vllm_plugin.config import GuardLimits
from headway.vllm_plugin.fallback import FallbackScheduler
from headway.vllm_plugin.policy_guard import PolicyTimer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Ordering:
    """Shortest first, until `wrong` is set."""

    wrong: Any = None

    def lane(self, request: Any) -> Any:
        return self._answer("lane", request.prompt_tokens)

    def rank(self, request: Any) -> Any:
        return self._answer("rank", 0.0)

    def choose(self, heads: Any, now: float) -> Any:
        return self._answer("choose", min(heads))

    def next_change(self, heads: Any, now: float) -> Any:
        return self._answer("next_change", now)

    def observe(self, event: Any) -> None:
        self._answer("observe", None)

    def _answer(self, question: str, right: Any) -> Any:
        if self.wrong is None or self.wrong[0] != question:
            return right
        return self.wrong[1]()


def fail() -> None:
    raise LookupError("a slip")


WRONG = {
    "lane raises": ("lane", fail, "raised"),
    "lane is a list": ("lane", list, "nonsense"),
    "rank raises": ("rank", fail, "raised"),
    "rank is nan": ("rank", lambda: math.nan, "nonsense"),
    "rank has nan inside": ("rank", lambda: (1.0, math.nan), "nonsense"),
    "rank is a text": ("rank", lambda: "first", "nonsense"),
    "choose raises": ("choose", fail, "raised"),
    "choose names an empty lane": ("choose", lambda: -1, "nonsense"),
    "choose gives a list": ("choose", list, "nonsense"),
    "next_change is nan": ("next_change", lambda: math.nan, "nonsense"),
    "observe raises": ("observe", fail, "raised"),
}


def build(ordering: Any = None, cpu: Any = None, **others: Any) -> tuple[FallbackScheduler, list[PolicyFault], Clock]:
    clock, faults = Clock(), list[PolicyFault]()
    policies = Policies(
        ordering or ShortestPromptFirst(),
        others.get("admission", Greedy()),
        others.get("preemption", LatestAdmitted()),
        others.get("prediction", RunningMean()),
    )
    limits = GuardLimits(budget_ms=10, strikes=3, strike_seconds=5)
    return FallbackScheduler(policies, PolicyTimer(limits, clock, cpu or clock), faults.append), faults, clock


def arrive(fallback: FallbackScheduler, *prompts: int) -> None:
    for prompt in prompts:
        fallback.arrive(Request(f"r{prompt}", -prompt / 1e6, prompt), 0.0)


def drain(fallback: FallbackScheduler) -> list[str]:
    order, now = [], 1.0
    while fallback.head(now) is not None:
        head = fallback.head(now + 0.5)  # asked again later, as an engine does that had no room
        assert head is not None
        fallback.admit(head.id, now)
        order.append(str(head.id))
        now += 1.0
    assert len(fallback) == 0
    return order


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("after", [0, 1])
def test_a_wrong_answer_disables_the_policies_and_loses_no_request(wrong: str, after: int) -> None:
    question, answer, reason = WRONG[wrong]
    ordering = Ordering()
    fallback, faults, _ = build(ordering)
    arrive(fallback, 40, 10)
    order = []
    for _ in range(after):
        head = fallback.head(1.0)
        assert head is not None
        fallback.admit(head.id, 1.0)
        order.append(str(head.id))
    ordering.wrong = (question, answer)
    arrive(fallback, 30, 20)
    order += drain(fallback)
    assert sorted(order) == ["r10", "r20", "r30", "r40"]
    assert [fault.reason for fault in faults] == [reason]
    assert fallback.disabled
    waited = order[after:]
    assert waited == sorted(waited, key=lambda one: -int(one[1:])), "larger came earlier here"


def test_ranks_that_cannot_be_compared() -> None:
    class Mixed:
        def rank(self, request: Any) -> Any:
            return (1.0,) if request.prompt_tokens == 20 else 1.0

    fallback, faults, _ = build(Mixed())
    arrive(fallback, 10, 20, 30)
    assert sorted(drain(fallback)) == ["r10", "r20", "r30"]
    assert [fault.reason for fault in faults] == ["nonsense"]


def test_preempted_requests_stay_in_front_when_policies_are_disabled() -> None:
    ordering = Ordering()
    fallback, _, _ = build(ordering)
    arrive(fallback, 5, 6)
    fallback.admit("r6", 1.0)
    fallback.preempted(Request("r6", 0.0, 6), 2.0)
    ordering.wrong = ("rank", fail)
    arrive(fallback, 7)
    assert drain(fallback)[0] == "r6"


class Slow:
    """Twenty milliseconds for a prompt of more than a hundred tokens."""

    def __init__(self) -> None:
        self.clock = Clock()

    def rank(self, request: Any) -> float:
        self.clock.now += 0.02 if request.prompt_tokens > 100 else 0.001
        return 0.0


def test_three_proven_strikes_within_the_time_and_it_is_out() -> None:
    slow = Slow()
    fallback, faults, clock = build(slow)
    slow.clock = clock
    arrive(fallback, 100, 101, 102, 103)
    assert not faults, "the first raises suspicion, two are strikes"
    clock.now += 10.0
    arrive(fallback, 104, 105, 106)
    assert not faults, "those are forgotten"
    arrive(fallback, 107)
    assert [fault.reason for fault in faults] == ["stalled"]
    assert "took 20.0 ms where 10 ms are allowed" in str(faults[0])
    assert sorted(drain(fallback)) == [f"r{prompt}" for prompt in range(100, 108)]


def test_a_policy_that_was_not_running_is_not_slow() -> None:
    """Twenty milliseconds by the clock on the wall, none of CPU time: the machine had others to serve."""
    slow = Slow()
    fallback, faults, clock = build(slow, cpu=lambda: 0.0)
    slow.clock = clock
    arrive(fallback, *range(101, 150))
    assert not faults


def test_one_gross_overrun_is_enough() -> None:
    class Stuck:
        def rank(self, request: Any) -> float:
            clock.now += 1.0
            return 0.0

    fallback, faults, clock = build(Stuck())
    arrive(fallback, 1)
    assert [fault.reason for fault in faults] == ["stalled"]
    assert drain(fallback) == ["r1"]


def test_many_small_choices_of_one_step_count_together() -> None:
    class Slowish(Ordering):
        def choose(self, heads: Any, now: float) -> Any:
            clock.now += 0.008
            return min(heads)

    fallback, faults, clock = build(Slowish())
    for step in range(4):
        assert not faults
        for prompt in range(4):
            arrive(fallback, 100 * step + prompt + 1)
            fallback.head(float(step))
        fallback.end_step()
    assert [fault.reason for fault in faults] == ["stalled"]
    assert len(drain(fallback)) == 16


def test_a_suspension_is_for_a_while() -> None:
    fallback, faults, _ = build()
    arrive(fallback, 40, 10, 30)
    head = fallback.head(0.0)
    assert head is not None
    assert head.id == "r10"
    fallback.suspend()
    head = fallback.head(0.0)
    assert head is not None
    assert head.id == "r40", "first come"
    arrive(fallback, 20)
    fallback.reinstate()
    assert drain(fallback) == ["r10", "r20", "r30", "r40"]
    assert not faults


def test_suspended_policies_still_hear_every_event() -> None:
    heard = []

    class Listens(ShortestPromptFirst):
        def observe(self, event: Any) -> None:
            heard.append(type(event).__name__)

    fallback, _, _ = build(Listens())
    fallback.suspend()
    arrive(fallback, 1)
    drain(fallback)
    assert heard == ["Arrived", "Admitted"]


def test_other_kinds_are_checked_too() -> None:
    class Holds:
        def hold_steps(self, *asked: Any) -> Any:
            return True

    class Names:
        def victim(self, running: Any, now: float) -> Any:
            return Request("x", 0.0, 1)

    class Expects:
        def predict(self, request: Any) -> Any:
            return None

    request = Request("r", 0.0, 1)
    request.estimate = PointEstimate(1, "test")
    fallback, faults, _ = build(admission=Holds())
    assert fallback.holds
    assert fallback.hold_steps(request, ScriptedBatch([request]), MemoryView(1, 1, 1), 0.0) == 0
    assert [fault.kind for fault in faults] == ["admission"]
    assert not fallback.holds
    fallback, faults, _ = build(preemption=Names())
    assert fallback.victim([request], 0.0) is request
    assert [fault.kind for fault in faults] == ["preemption"]
    fallback, faults, _ = build(prediction=Expects())
    arrive(fallback, 3)
    assert [fault.kind for fault in faults] == ["prediction"]
    assert drain(fallback) == ["r3"]


def test_a_fault_while_a_request_passes_the_head_does_not_end_the_engine() -> None:
    """The policy that let it pass is disabled within the very call: the request still joins the batch."""

    class Passes(Greedy):
        look_ahead = 8

        def may_pass(self, *asked: Any) -> bool:
            return True

        def passed(self, head: Any) -> None:
            fail()

    fallback, faults, _ = build(admission=Passes())
    arrive(fallback, 10, 20, 30)
    head = fallback.head(1.0)
    assert head is not None
    batch, memory = ScriptedBatch([Request("runs", 0.0, 1)]), MemoryView(10, 10, 16)
    passing = fallback.candidate([head], batch, memory, 1.0)
    assert passing is not None
    fallback.admit_past(passing, head, 1.0)
    assert [fault.reason for fault in faults] == ["raised"]
    assert str(passing.id) not in drain(fallback)


def test_a_request_whose_work_changed_stays_ahead_of_later_equals() -> None:
    policies = Policies(ShortestPromptFirst(), Greedy(), LatestAdmitted(), RunningMean())
    fallback = FallbackScheduler(policies, PolicyTimer(GuardLimits(), Clock(), Clock()), lambda fault: None)
    first, second, longer = Request("a", 1.0, 50), Request("b", 1.0, 50), Request("c", 0.5, 60)
    for one in (first, second, longer):
        fallback.arrive(one, 1.0)
    fallback.work_changed("a")
    assert fallback.head(2.0) is first
    first.prompt_tokens = 70
    fallback.work_changed("a")
    assert fallback.head(2.0) is second
    assert len(fallback) == 3
