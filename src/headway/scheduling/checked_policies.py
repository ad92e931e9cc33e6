"""Checked policies: every answer of a policy is checked; a wrong one is raised as `PolicyFault`.

The shells decide what follows a fault: the vLLM plug-in disables all policies, the gateway falls back for one decision.
How a question is put (timed or not) is the shell's `PolicyAsker`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from headway.domain.estimate import LengthEstimate
from headway.domain.event import Event
from headway.domain.replica_view import BatchView, MemoryView, ReplicaView
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
    RoutingPolicy,
)
from headway.scheduling.scheduler import Policies

Answer = TypeVar("Answer")


class PolicyFault(Exception):
    """A wrong answer of a policy: the policy's kind, the reason, and one sentence."""

    def __init__(self, kind: str, reason: str, sentence: str) -> None:
        super().__init__(f"the {kind} policy {sentence}")
        self.kind = kind
        self.reason = reason  # "raised", "stalled" or "nonsense": the metric's label


class PolicyAsker(Protocol):
    """Puts a question to a policy."""

    lanes: int
    """Lanes compared in the last choice of a laned ordering."""

    def ask(self, kind: str, per_step: bool, question: Callable[..., Answer], *arguments: Any) -> Answer:
        """The policy's answer. Raises PolicyFault if it raised, or answered too slowly.

        Args:
            kind: "ordering", "admission", "preemption", "prediction" or "routing".
            per_step: the question is asked many times in a step of an engine.
            question: the policy's method.
            arguments: of the method.
        """


class PlainAsker:
    """Asks without a clock: what a policy raises becomes a `PolicyFault`."""

    lanes = 1

    def ask(self, kind: str, per_step: bool, question: Callable[..., Answer], *arguments: Any) -> Answer:
        """The policy's answer. Raises PolicyFault if it raised."""
        try:
            return question(*arguments)
        except Exception as error:
            raise _raised(kind, error) from error


def _raised(kind: str, error: Exception) -> PolicyFault:
    fault = PolicyFault(kind, "raised", f"raised {type(error).__name__}: {error}")
    fault.__cause__ = error
    return fault


def guarded(policies: Policies, asker: PolicyAsker) -> Policies:
    """The same policies, every answer checked. Their `observe` is `CheckedEvents`' to call."""
    ordering = policies.ordering
    checked: OrderingPolicy
    if isinstance(ordering, RedrawnOrdering):
        checked = _CheckedRedrawn(ordering, asker)
    elif isinstance(ordering, LanedOrdering):
        checked = _CheckedLaned(ordering, asker)
    else:
        checked = _CheckedRanked(ordering, asker)
    return Policies(
        checked,
        _checked_admission(policies.admission, asker),
        _CheckedPreemption(policies.preemption, asker),
        _CheckedPrediction(policies.prediction, asker),
    )


def _checked_admission(admission: AdmissionPolicy, asker: PolicyAsker) -> AdmissionPolicy:
    if isinstance(admission, BackfillingAdmission):
        return _CheckedBackfilling(admission, asker)
    return _CheckedAdmission(admission, asker)


class CheckedEvents:
    """Delivers events to the policies that listen; `heard` is called when an ordering listens.

    A listener's fault is raised, or given to `on_fault` where there is one; then the others still hear the event.
    """

    def __init__(
        self,
        policies: Policies,
        asker: PolicyAsker,
        heard: Callable[[], None],
        on_fault: Callable[[PolicyFault], None] | None = None,
    ) -> None:
        self._asker = asker
        self._heard = heard
        self._on_fault = on_fault
        fanout = policies.fanout()
        kinds = {
            id(policies.preemption): "preemption",
            id(policies.admission): "admission",
            id(policies.ordering): "ordering",
            id(policies.prediction): "prediction",  # of one object that answers several questions the first kind counts
        }
        self._listeners = [(kinds[id(listener)], listener) for listener in fanout.listeners]
        self._ordering_listens = policies.ordering in fanout

    def __bool__(self) -> bool:
        """Whether any policy listens."""
        return bool(self._listeners)

    def observe(self, event: Event) -> None:
        """Pass one event on."""
        on_fault = self._on_fault
        for kind, listener in self._listeners:
            if on_fault is None:
                self._asker.ask(kind, False, listener.observe, event)
                continue
            try:
                listener.observe(event)
            except Exception as error:
                on_fault(_raised(kind, error))
        if self._ordering_listens:
            self._heard()


class _CheckedRanked:
    def __init__(self, inner: RankedOrdering, asker: PolicyAsker) -> None:
        self._inner = inner
        self._asker = asker

    def rank(self, request: RequestView) -> Rank:
        rank = self._asker.ask("ordering", False, self._inner.rank, request)
        for number in rank if isinstance(rank, tuple) else (rank,):
            if not isinstance(number, int | float) or math.isnan(number):
                raise PolicyFault("ordering", "nonsense", f"gave request {request.id!r} the rank {rank!r}")
        return rank


class _CheckedLaned(_CheckedRanked):
    def __init__(self, inner: LanedOrdering, asker: PolicyAsker) -> None:
        super().__init__(inner, asker)
        self._laned = inner

    def lane(self, request: RequestView) -> LaneId:
        lane = self._asker.ask("ordering", False, self._laned.lane, request)
        try:
            hash(lane)
        except TypeError:
            raise PolicyFault("ordering", "nonsense", f"gave request {request.id!r} the lane {lane!r}") from None
        return lane

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        self._asker.lanes = len(heads)
        lane = self._asker.ask("ordering", True, self._laned.choose, heads, now)
        try:
            known = lane in heads
        except TypeError:
            known = False
        if not known:
            raise PolicyFault("ordering", "nonsense", f"chose the lane {lane!r}, which is empty")
        return lane

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        at = self._asker.ask("ordering", True, self._laned.next_change, heads, now)
        if not isinstance(at, int | float) or math.isnan(at):
            raise PolicyFault("ordering", "nonsense", f"answered {at!r} when asked how long its choice stands")
        return at


class _CheckedRedrawn(_CheckedLaned):
    def __init__(self, inner: RedrawnOrdering, asker: PolicyAsker) -> None:
        super().__init__(inner, asker)
        self._redrawn = inner

    @property
    def redrawn(self) -> int:
        return self._redrawn.redrawn


class _CheckedAdmission:
    def __init__(self, inner: AdmissionPolicy, asker: PolicyAsker) -> None:
        self._inner = inner
        self._asker = asker

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        steps = self._asker.ask("admission", True, self._inner.hold_steps, request, batch, memory, now)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise PolicyFault("admission", "nonsense", f"held request {request.id!r} for {steps!r} steps")
        return steps


class _CheckedBackfilling(_CheckedAdmission):
    def __init__(self, inner: BackfillingAdmission, asker: PolicyAsker) -> None:
        super().__init__(inner, asker)
        self._backfilling = inner

    @property
    def look_ahead(self) -> int:
        return self._backfilling.look_ahead

    def may_pass(
        self, request: RequestView, head: RequestView, batch: BatchView, memory: MemoryView, now: float
    ) -> bool:
        may = self._asker.ask("admission", True, self._backfilling.may_pass, request, head, batch, memory, now)
        if not isinstance(may, bool):
            raise PolicyFault("admission", "nonsense", f"answered {may!r} when asked what may pass {head.id!r}")
        return may

    def passed(self, head: RequestView) -> None:
        self._asker.ask("admission", True, self._backfilling.passed, head)


class _CheckedPreemption:
    def __init__(self, inner: PreemptionPolicy, asker: PolicyAsker) -> None:
        self._inner = inner
        self._asker = asker

    def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
        chosen = self._asker.ask("preemption", True, self._inner.victim, running, now)
        if not any(chosen is request for request in running):
            raise PolicyFault("preemption", "nonsense", f"named {chosen!r}, which does not run")
        return chosen


class _CheckedPrediction:
    def __init__(self, inner: LengthPredictor, asker: PolicyAsker) -> None:
        self._inner = inner
        self._asker = asker

    def predict(self, request: RequestView) -> LengthEstimate:
        estimate, mean = self._asker.ask("prediction", False, self._both, request)
        if not isinstance(mean, int | float) or not 0 <= mean < math.inf:
            raise PolicyFault("prediction", "nonsense", f"expects {mean!r} output tokens of request {request.id!r}")
        return estimate

    def _both(self, request: RequestView) -> tuple[LengthEstimate, float]:
        estimate = self._inner.predict(request)
        return estimate, estimate.remaining_mean(0)


class CheckedRouting:
    """A routing policy whose choice is one of the replicas that it was given, or None."""

    def __init__(self, inner: RoutingPolicy, asker: PolicyAsker) -> None:
        self._inner = inner
        self._asker = asker

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView | None:
        """The policy's choice. Raises PolicyFault."""
        chosen = self._asker.ask("routing", False, self._inner.choose, request, prefix, replicas, now)
        if chosen is None:
            return None
        for replica in replicas:
            if chosen is replica:
                return chosen
        raise PolicyFault("routing", "nonsense", f"chose {chosen!r} for request {request.id!r}, which has no room")
