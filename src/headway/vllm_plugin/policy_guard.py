"""Policy guard: times and checks every answer of a policy; a wrong one is raised as `PolicyFault`.

A policy cannot be interrupted from inside its own thread: one that stalls is noticed when it returns.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from headway.domain.estimate import LengthEstimate
from headway.domain.event import Event
from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import RequestView
from headway.policies.contracts import (
    AdmissionPolicy,
    BackfillingAdmission,
    LanedOrdering,
    LaneId,
    LengthPredictor,
    OrderingPolicy,
    PreemptionPolicy,
    Rank,
    RankedOrdering,
    RedrawnOrdering,
)
from headway.scheduling.scheduler import Policies
from headway.vllm_plugin.config import GuardLimits

Answer = TypeVar("Answer")
_GROSS_OVERRUN = 25  # budgets in one answer that need no second strike
_SURE_OVERRUN = 10  # budgets of wall time that a busy machine does not explain


class PolicyFault(Exception):
    """A wrong answer of a policy: the policy's kind, the reason, and one sentence."""

    def __init__(self, kind: str, reason: str, sentence: str) -> None:
        super().__init__(f"the {kind} policy {sentence}")
        self.kind = kind
        self.reason = reason  # "raised", "stalled" or "nonsense": the metric's label


class PolicyTimer:
    """Times every answer, adds the times up by kind of policy, and counts a strike for each that took too long.

    On a busy machine a policy that was not running looks slow. So the first overrun counts only if it is gross. For
    `strike_seconds` after it the thread's CPU time is read too (a microsecond, too dear for always): then a strike is
    one budget of CPU time, or ten budgets of wall time.
    """

    def __init__(self, limits: GuardLimits, clock: Callable[[], float], cpu_clock: Callable[[], float]) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._budget_seconds = limits.budget_ms / 1000
        self._strikes = limits.strikes
        self._strike_seconds = limits.strike_seconds
        self._struck: deque[float] = deque()
        self._suspicious_until = float("-inf")
        self.total_seconds = {"ordering": 0.0, "admission": 0.0, "preemption": 0.0, "prediction": 0.0}
        self._step_seconds = self._step_cpu_seconds = 0.0  # of choices in the present step; entries are judged singly
        self._step_kind = "ordering"
        self.lanes = 1  # compared in the last choice

    def ask(self, kind: str, per_step: bool, question: Callable[..., Answer], *arguments: Any) -> Answer:
        """The policy's answer. Raises PolicyFault if it raised, or stalled too often or too grossly."""
        began = self._clock()
        suspicious = began < self._suspicious_until
        cpu_began = self._cpu_clock() if suspicious else 0.0
        try:
            answer = question(*arguments)
        except Exception as error:
            raise PolicyFault(kind, "raised", f"raised {type(error).__name__}: {error}") from error
        seconds = self._clock() - began
        cpu_seconds = self._cpu_clock() - cpu_began if suspicious else 0.0
        self.total_seconds[kind] += seconds
        if per_step:
            self._step_seconds += seconds
            self._step_cpu_seconds += cpu_seconds
            self._step_kind = kind
        if seconds > self._budget_seconds:
            self._judge(kind, seconds, cpu_seconds, began)
        return answer

    def end_step(self) -> None:
        """Judge the choices of one step together. Raises PolicyFault at the last strike."""
        seconds, cpu_seconds = self._step_seconds, self._step_cpu_seconds
        self._step_seconds = self._step_cpu_seconds = 0.0
        if seconds > self._budget_seconds:
            self._judge(self._step_kind, seconds, cpu_seconds, self._clock())

    def _judge(self, kind: str, seconds: float, cpu_seconds: float, now: float) -> None:
        self._step_seconds = self._step_cpu_seconds = 0.0  # judged once is enough
        budget, suspicious = self._budget_seconds, now < self._suspicious_until
        self._suspicious_until = now + self._strike_seconds
        gross = seconds > _GROSS_OVERRUN * budget
        if not gross and not (suspicious and (cpu_seconds > budget or seconds > _SURE_OVERRUN * budget)):
            return
        while self._struck and now - self._struck[0] > self._strike_seconds:
            self._struck.popleft()
        self._struck.append(now)
        if gross or len(self._struck) >= self._strikes:
            raise PolicyFault(
                kind,
                "stalled",
                f"took {seconds * 1000:.1f} ms where {budget * 1000:g} ms are allowed "
                f"(strike {len(self._struck)} within {self._strike_seconds:g} s)",
            )


def guarded(policies: Policies, timer: PolicyTimer) -> Policies:
    """The same policies, every answer timed and checked. Their `observe` is `TimedEvents`' to call."""
    ordering = policies.ordering
    checked: OrderingPolicy
    if isinstance(ordering, RedrawnOrdering):
        checked = _CheckedRedrawn(ordering, timer)
    elif isinstance(ordering, LanedOrdering):
        checked = _CheckedLaned(ordering, timer)
    else:
        checked = _CheckedRanked(ordering, timer)
    return Policies(
        checked,
        _checked_admission(policies.admission, timer),
        _CheckedPreemption(policies.preemption, timer),
        _CheckedPrediction(policies.prediction, timer),
    )


def _checked_admission(admission: AdmissionPolicy, timer: PolicyTimer) -> AdmissionPolicy:
    if isinstance(admission, BackfillingAdmission):
        return _CheckedBackfilling(admission, timer)
    return _CheckedAdmission(admission, timer)


class TimedEvents:
    """Delivers events to the policies that listen, each answer timed; `heard` is called when an ordering listens."""

    def __init__(self, policies: Policies, timer: PolicyTimer, heard: Callable[[], None]) -> None:
        self._timer = timer
        self._heard = heard
        fanout = policies.fanout()
        kinds = {
            id(policies.preemption): "preemption",
            id(policies.admission): "admission",
            id(policies.ordering): "ordering",
            id(policies.prediction): "prediction",  # of one object that answers several questions the first kind counts
        }
        self._listeners = [(kinds[id(listener)], listener) for listener in fanout.listeners]
        self._ordering_listens = policies.ordering in fanout

    def observe(self, event: Event) -> None:
        """Pass one event on."""
        for kind, listener in self._listeners:
            self._timer.ask(kind, False, listener.observe, event)
        if self._ordering_listens:
            self._heard()


class _CheckedRanked:
    def __init__(self, inner: RankedOrdering, timer: PolicyTimer) -> None:
        self._inner = inner
        self._timer = timer

    def rank(self, request: RequestView) -> Rank:
        rank = self._timer.ask("ordering", False, self._inner.rank, request)
        for number in rank if isinstance(rank, tuple) else (rank,):
            if not isinstance(number, int | float) or math.isnan(number):
                raise PolicyFault("ordering", "nonsense", f"gave request {request.id!r} the rank {rank!r}")
        return rank


class _CheckedLaned(_CheckedRanked):
    def __init__(self, inner: LanedOrdering, timer: PolicyTimer) -> None:
        super().__init__(inner, timer)
        self._laned = inner

    def lane(self, request: RequestView) -> LaneId:
        lane = self._timer.ask("ordering", False, self._laned.lane, request)
        try:
            hash(lane)
        except TypeError:
            raise PolicyFault("ordering", "nonsense", f"gave request {request.id!r} the lane {lane!r}") from None
        return lane

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        self._timer.lanes = len(heads)
        lane = self._timer.ask("ordering", True, self._laned.choose, heads, now)
        try:
            known = lane in heads
        except TypeError:
            known = False
        if not known:
            raise PolicyFault("ordering", "nonsense", f"chose the lane {lane!r}, which is empty")
        return lane

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        at = self._timer.ask("ordering", True, self._laned.next_change, heads, now)
        if not isinstance(at, int | float) or math.isnan(at):
            raise PolicyFault("ordering", "nonsense", f"answered {at!r} when asked how long its choice stands")
        return at


class _CheckedRedrawn(_CheckedLaned):
    def __init__(self, inner: RedrawnOrdering, timer: PolicyTimer) -> None:
        super().__init__(inner, timer)
        self._redrawn = inner

    @property
    def redrawn(self) -> int:
        return self._redrawn.redrawn


class _CheckedAdmission:
    def __init__(self, inner: AdmissionPolicy, timer: PolicyTimer) -> None:
        self._inner = inner
        self._timer = timer

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        steps = self._timer.ask("admission", True, self._inner.hold_steps, request, batch, memory, now)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise PolicyFault("admission", "nonsense", f"held request {request.id!r} for {steps!r} steps")
        return steps


class _CheckedBackfilling(_CheckedAdmission):
    def __init__(self, inner: BackfillingAdmission, timer: PolicyTimer) -> None:
        super().__init__(inner, timer)
        self._backfilling = inner

    @property
    def look_ahead(self) -> int:
        return self._backfilling.look_ahead

    def may_pass(
        self, request: RequestView, head: RequestView, batch: BatchView, memory: MemoryView, now: float
    ) -> bool:
        may = self._timer.ask("admission", True, self._backfilling.may_pass, request, head, batch, memory, now)
        if not isinstance(may, bool):
            raise PolicyFault("admission", "nonsense", f"answered {may!r} when asked what may pass {head.id!r}")
        return may

    def passed(self, head: RequestView) -> None:
        self._timer.ask("admission", True, self._backfilling.passed, head)


class _CheckedPreemption:
    def __init__(self, inner: PreemptionPolicy, timer: PolicyTimer) -> None:
        self._inner = inner
        self._timer = timer

    def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
        chosen = self._timer.ask("preemption", True, self._inner.victim, running, now)
        if not any(chosen is request for request in running):
            raise PolicyFault("preemption", "nonsense", f"named {chosen!r}, which does not run")
        return chosen


class _CheckedPrediction:
    def __init__(self, inner: LengthPredictor, timer: PolicyTimer) -> None:
        self._inner = inner
        self._timer = timer

    def predict(self, request: RequestView) -> LengthEstimate:
        estimate, mean = self._timer.ask("prediction", False, self._both, request)
        if not isinstance(mean, int | float) or not 0 <= mean < math.inf:
            raise PolicyFault("prediction", "nonsense", f"expects {mean!r} output tokens of request {request.id!r}")
        return estimate

    def _both(self, request: RequestView) -> tuple[LengthEstimate, float]:
        estimate = self._inner.predict(request)
        return estimate, estimate.remaining_mean(0)
