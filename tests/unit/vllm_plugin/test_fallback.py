"""Whatever a policy does, no request is lost, and the queue goes on first come, first served."""

from __future__ import annotations

import math
from typing import Any

import pytest

from headway.domain.estimate import PointEstimate
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.admission.backfill import Backfill
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


@pytest.mark.parametrize("back", ["before", "at", "after"])
@pytest.mark.parametrize("aside", [("a",), ("b",), ("b", "a"), ("a", "b", "c")])
def test_one_that_was_set_aside_comes_back_ahead_of_later_equals_when_policies_are_disabled(
    aside: tuple[str, ...], back: str
) -> None:
    """Back before the fault, in the call in which it shows, or after it."""
    ordering = Ordering()
    fallback, faults, _ = build(ordering)
    requests = {name: Request(name, 1.0, 50) for name in "abcd"}
    for name in "abc":
        fallback.arrive(requests[name], 1.0)
    for name in aside:
        fallback.set_aside(name)
    fallback.arrive(requests["d"], 1.0)
    if back != "before":
        ordering.wrong = ("rank", fail)
    if back == "after":
        fallback.work_changed("d")
    for name in aside:
        fallback.requeue(requests[name], False)
    ordering.wrong = ("rank", fail)
    fallback.work_changed("d")
    assert len(faults) == 1
    assert drain(fallback) == ["a", "b", "c", "d"]


def test_of_requests_that_have_left_no_place_is_kept() -> None:
    fallback, faults, _ = build(admission=Backfill(inner=Greedy()))
    requests = {name: Request(name, 1.0, 50) for name in "abcdefg"}
    for one in requests.values():
        fallback.arrive(one, 1.0)
    fallback.admit("a", 2.0)
    fallback.remove("b")
    fallback.admit_past(requests["c"], requests["d"], 2.0)
    for name in "defg":
        fallback.set_aside(name)
    fallback.cancel(requests["d"], 2.0)
    fallback.complete(requests["e"], 2.0)
    fallback.preempted(requests["f"], 2.0)
    fallback.requeue(requests["g"], True)
    assert not fallback._entered
    assert not faults
    assert drain(fallback) == ["g", "f"], "the last one of those in front first"


class Hears(ShortestPromptFirst):
    """Shortest first; notes what it is told, and takes what it is given."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object, float]] = []
        self.values: list[dict[str, float]] = []

    def observe(self, event: Any) -> None:
        self.told.append((type(event).__name__, event.request.id, event.at))

    def retune(self, values: Any) -> None:
        self.values.append(dict(values))


def test_each_event_is_told_once_with_its_time() -> None:
    ordering = Hears()
    fallback, faults, _ = build(ordering)
    one, two = Request("one", 0.0, 10), Request("two", 0.0, 20)
    fallback.arrive(one, 1.0)
    fallback.arrive(two, 2.0)
    assert len(fallback) == 2
    fallback.admit("one", 3.0)
    assert len(fallback) == 1
    fallback.first_token(one, 4.0)
    fallback.preempted(one, 5.0)
    assert len(fallback) == 2
    assert fallback.head(5.0) is one
    fallback.remove("two")
    fallback.remove("two")
    assert len(fallback) == 1
    fallback.cancel(two, 6.0)
    fallback.admit("one", 7.0)
    fallback.complete(one, 8.0)
    assert ordering.told == [
        ("Arrived", "one", 1.0),
        ("Arrived", "two", 2.0),
        ("Admitted", "one", 3.0),
        ("FirstToken", "one", 4.0),
        ("Preempted", "one", 5.0),
        ("Cancelled", "two", 6.0),
        ("Admitted", "one", 7.0),
        ("Completed", "one", 8.0),
    ]
    assert (len(fallback), faults) == (0, [])


def test_one_that_is_queued_again_is_told_of_no_event_and_keeps_its_front() -> None:
    hears, fails = Hears(), Ordering()
    for ordering in (hears, fails):
        fallback, faults, _ = build(ordering)
        for id_, prompt, resumed in (("short", 10, False), ("long", 90, True), ("middle", 50, False)):
            request = Request(id_, 0.0, prompt)
            request.estimate = PointEstimate(1, "test")
            fallback.requeue(request, resumed)
        fails.wrong = ("rank", fail)
        fallback.work_changed("short")
        assert fallback.head(1.0).id == "long"  # type: ignore[union-attr]
        assert len(faults) == (ordering is fails), "also when the policies fail"
    assert hears.told == []
    assert drain(fallback) == ["long", "short", "middle"], "none is lost by the fault"


def test_values_reach_the_ordering_until_it_is_disabled() -> None:
    ordering = Hears()
    fallback, faults, _ = build(ordering)
    fallback.retune({"a": 1.0})
    assert ordering.values == [{"a": 1.0}]
    fallback._fail(PolicyFault("ordering", "raised", "failed"))
    fallback.retune({"a": 2.0})
    assert ordering.values == [{"a": 1.0}]
    assert len(faults) == 1
    plain, faults, _ = build()
    plain.retune({"a": 1.0})
    assert faults == [], "an ordering without parameters has none to take"


def test_an_ordering_that_fails_at_its_values_is_disabled() -> None:
    class Refuses(Hears):
        def retune(self, values: Any) -> None:
            fail()

    fallback, faults, _ = build(Refuses())
    arrive(fallback, 20, 10)
    fallback.retune({"a": 1.0})
    assert [fault.reason for fault in faults] == ["raised"]
    assert drain(fallback) == ["r20", "r10"]


def test_new_values_make_it_choose_anew() -> None:
    class Turned:
        """One lane per prompt; the longest first once it is turned."""

        sign = 1

        def lane(self, request: Any) -> int:
            return int(request.prompt_tokens)

        def rank(self, request: Any) -> float:
            return 0.0

        def choose(self, heads: Any, now: float) -> int:
            return int(min(heads, key=lambda lane: self.sign * lane))

        def next_change(self, heads: Any, now: float) -> float:
            return math.inf

        def retune(self, values: Any) -> None:
            self.sign = -1

    fallback, faults, _ = build(Turned())
    arrive(fallback, 10, 20)
    assert fallback.head(1.0).id == "r10"  # type: ignore[union-attr]
    fallback.retune({})
    assert fallback.head(1.0).id == "r20"  # type: ignore[union-attr]
    assert faults == []


def test_what_rules_is_said(caplog: pytest.LogCaptureFixture) -> None:
    fallback, faults, _ = build()
    assert (fallback.in_force, fallback.holds, fallback.chooses_victims) == (True, False, False)
    fallback.suspend()
    fallback.suspend()
    assert (fallback.in_force, fallback.suspended, fallback.disabled) == (False, True, False)
    fallback.reinstate()
    fallback.reinstate()
    assert fallback.in_force
    fallback.suspend()
    fallback._fail(PolicyFault("ordering", "raised", "slipped"))
    assert (fallback.in_force, fallback.suspended, fallback.disabled) == (False, False, True)
    assert caplog.messages == [
        "headway: the ordering policy slipped; all policies are disabled until the engine restarts, and waiting "
        "requests are served first come, first served"
    ]
    fallback.suspend()
    assert not fallback.suspended, "there is nothing left to suspend"
    assert len(faults) == 1


def test_listeners_hear_what_policies_hear() -> None:
    heard = []

    class Listens:
        def observe(self, event: Any) -> None:
            heard.append(type(event).__name__)

    policies = Policies(ShortestPromptFirst(), Greedy(), LatestAdmitted(), RunningMean())
    timer = PolicyTimer(GuardLimits(), Clock(), Clock())
    fallback = FallbackScheduler(policies, timer, lambda fault: None, [Listens()])
    arrive(fallback, 5)
    fallback._fail(PolicyFault("ordering", "raised", "failed"))
    arrive(fallback, 6)
    assert heard == ["Arrived"], "until a fault"


def test_a_fault_that_first_come_first_served_has_too_is_not_hidden() -> None:
    fallback, faults, _ = build()
    fallback._fail(PolicyFault("ordering", "raised", "failed"))
    with pytest.raises(KeyError):
        fallback.work_changed("nobody waits by this name")
    assert len(faults) == 1
