"""Checked policies: every answer of a policy is checked; a wrong one is raised as `PolicyFault`.

The shells decide what follows a fault: the vLLM plug-in disables all policies, the gateway falls back for one decision,
the simulator stops and names the policy.
How a question is put (timed or not) is the shell's `PolicyAsker`; it is bound once, for it is asked for every request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar

from headway.domain.estimate import LengthEstimate
from headway.domain.event import Event, Listener, heard_by
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
    follows_what_is_learned,
)
from headway.policies.prediction.conformal import CorrectedEstimate
from headway.scheduling.scheduler import OfflinePolicies, Policies

P = ParamSpec("P")
Answer = TypeVar("Answer")
_NUMBER = (int, float)  # `int | float` would be built again for each question
_PROBABILITIES = (0.1, 0.5, 0.9)
"""At which the quantiles of another package's estimate are looked at as it is made."""


class PolicyFault(Exception):
    """A wrong answer of a policy: the policy's kind, the reason, and one sentence."""

    def __init__(self, kind: str, reason: str, sentence: str) -> None:
        super().__init__(f"the {kind} policy {sentence}")
        self.kind = kind
        self.sentence = sentence  # without its subject
        self.reason = reason  # "raised", "stalled" or "nonsense": the metric's label


class PolicyAsker(Protocol):
    """Puts questions to policies."""

    lanes: int
    """Lanes compared in the last choice of a laned ordering."""

    def bound(self, kind: str, per_step: bool, question: Callable[P, Answer]) -> Callable[P, Answer]:
        """The question as it is put from now on.

        It raises what the policy raises, or a PolicyFault of its own, for example if the answer came too slowly.

        Args:
            kind: "ordering", "admission", "preemption", "prediction" or "routing".
            per_step: the question is asked many times in a step of an engine.
            question: the policy's method.
        """


class PlainAsker:
    """Asks as it is: without a clock, and without a further call."""

    lanes = 1

    def bound(self, kind: str, per_step: bool, question: Callable[P, Answer]) -> Callable[P, Answer]:
        """The question itself."""
        return question


def _fault(kind: str, error: Exception) -> PolicyFault:
    """What a question raised, as a fault of the policy."""
    if isinstance(error, PolicyFault):
        return error
    fault = PolicyFault(kind, "raised", f"raised {type(error).__name__}: {error}")
    fault.__cause__ = error
    return fault


def _fail(kind: str, error: Exception) -> NoReturn:
    raise _fault(kind, error)


def guarded(policies: Policies, asker: PolicyAsker) -> Policies:
    """The same policies, every answer checked. Their `observe` is `CheckedEvents`' to call."""
    offline = policies.offline
    return Policies(
        _checked_ordering(policies.ordering, asker),
        _checked_admission(policies.admission, asker),
        _CheckedPreemption(policies.preemption, asker),
        _CheckedPrediction(policies.prediction, asker),
        OfflinePolicies(_checked_ordering(offline.ordering, asker), _CheckedPrediction(offline.prediction, asker)),
    )


def _checked_ordering(ordering: OrderingPolicy, asker: PolicyAsker) -> OrderingPolicy:
    if isinstance(ordering, RedrawnOrdering):
        return _CheckedRedrawn(ordering, asker)
    if isinstance(ordering, LanedOrdering):
        return _CheckedLaned(ordering, asker)
    return _CheckedRanked(ordering, asker)


def checked(policies: Policies, kinds: Collection[str]) -> Policies:
    """The same policies, every answer of these kinds checked; unlike those of `guarded` they hear events themselves.

    For a shell that ends with the first fault.
    """
    asker = PlainAsker()
    chosen = {kind: wrapper for kind, wrapper in _by_kind(guarded(policies, asker)).items() if kind in kinds}
    hears: set[int] = set()
    for kind, policy in _by_kind(policies).items():
        if kind in chosen and isinstance(policy, Listener) and id(policy) not in hears:
            hears.add(id(policy))  # of one object that answers several questions the first hears, and only once
            vars(chosen[kind]).update(observe=_checked_observe(kind, policy, asker), hears=heard_by(policy))
    return replace(policies, **chosen)


def _by_kind(policies: Policies) -> dict[str, Any]:
    """The ordering first: what it hears moves the queue."""
    return {kind: getattr(policies, kind) for kind in ("ordering", "prediction", "admission", "preemption")}


def _checked_observe(kind: str, policy: Listener, asker: PolicyAsker) -> Callable[[Event], None]:
    heard = asker.bound(kind, False, policy.observe)

    def observe(event: Event) -> None:
        try:
            heard(event)
        except Exception as error:
            _fail(kind, error)

    return observe


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
        self._heard = heard
        self._on_fault = on_fault
        fanout = policies.fanout()
        kinds = {
            id(policies.preemption): "preemption",
            id(policies.admission): "admission",
            id(policies.ordering): "ordering",
            id(policies.prediction): "prediction",  # of one object that answers several questions the first kind counts
        }
        offline = policies.offline.fanout()
        kinds |= {id(policies.offline.ordering): "ordering", id(policies.offline.prediction): "prediction"}
        self.hears = heard_by(*fanout.listeners, *offline.listeners)
        asked = [(kinds[id(listener)], listener.observe) for listener in fanout.listeners]
        self._listeners = [(kind, asker.bound(kind, False, observe)) for kind, observe in asked]
        asked = [(kinds[id(listener)], listener.observe) for listener in offline.listeners]
        self._offline_listeners = [(kind, asker.bound(kind, False, observe)) for kind, observe in asked]
        self._ordering_listens = policies.ordering in fanout
        self._any = bool(self._listeners) or policies.offline.ordering in offline

    def __bool__(self) -> bool:
        """Whether any policy listens, the predictor of offline requests apart."""
        return self._any

    def observe(self, event: Event) -> None:
        """Pass one event on."""
        for kind, observe in self._offline_listeners if event.request.is_offline else self._listeners:
            try:
                observe(event)
            except Exception as error:
                if self._on_fault is None:
                    _fail(kind, error)
                self._on_fault(_fault(kind, error))
        if self._ordering_listens:
            self._heard()


class _CheckedRanked:
    def __init__(self, inner: RankedOrdering, asker: PolicyAsker) -> None:
        self._rank = asker.bound("ordering", False, inner.rank)
        self.follows_what_is_learned = follows_what_is_learned(inner)

    def rank(self, request: RequestView) -> Rank:
        try:
            rank = self._rank(request)
        except Exception as error:
            _fail("ordering", error)
        for number in rank if isinstance(rank, tuple) else (rank,):
            if not isinstance(number, _NUMBER) or math.isnan(number):
                raise PolicyFault("ordering", "nonsense", f"gave request {request.id!r} the rank {rank!r}")
        return rank


class _CheckedLaned(_CheckedRanked):
    def __init__(self, inner: LanedOrdering, asker: PolicyAsker) -> None:
        super().__init__(inner, asker)
        self._asker = asker
        self._lane = asker.bound("ordering", False, inner.lane)
        self._choose = asker.bound("ordering", True, inner.choose)
        self._next_change = asker.bound("ordering", True, inner.next_change)

    def lane(self, request: RequestView) -> LaneId:
        try:
            lane = self._lane(request)
        except Exception as error:
            _fail("ordering", error)
        try:
            hash(lane)
        except TypeError:
            raise PolicyFault("ordering", "nonsense", f"gave request {request.id!r} the lane {lane!r}") from None
        return lane

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        self._asker.lanes = len(heads)
        try:
            lane = self._choose(heads, now)
        except Exception as error:
            _fail("ordering", error)
        try:
            known = lane in heads
        except TypeError:
            known = False
        if not known:
            raise PolicyFault("ordering", "nonsense", f"chose the lane {lane!r}, which is empty")
        return lane

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        try:
            at = self._next_change(heads, now)
        except Exception as error:
            _fail("ordering", error)
        if not isinstance(at, _NUMBER) or math.isnan(at):
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
        self._hold_steps = asker.bound("admission", True, inner.hold_steps)

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        try:
            steps = self._hold_steps(request, batch, memory, now)
        except Exception as error:
            _fail("admission", error)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise PolicyFault("admission", "nonsense", f"held request {request.id!r} for {steps!r} steps")
        return steps


class _CheckedBackfilling(_CheckedAdmission):
    def __init__(self, inner: BackfillingAdmission, asker: PolicyAsker) -> None:
        super().__init__(inner, asker)
        self._backfilling = inner
        self._may_pass = asker.bound("admission", True, inner.may_pass)
        self._passed = asker.bound("admission", True, inner.passed)

    @property
    def look_ahead(self) -> int:
        return self._backfilling.look_ahead

    def may_pass(
        self, request: RequestView, head: RequestView, batch: BatchView, memory: MemoryView, now: float
    ) -> bool:
        try:
            may = self._may_pass(request, head, batch, memory, now)
        except Exception as error:
            _fail("admission", error)
        if not isinstance(may, bool):
            raise PolicyFault("admission", "nonsense", f"answered {may!r} when asked what may pass {head.id!r}")
        return may

    def passed(self, head: RequestView) -> None:
        try:
            self._passed(head)
        except Exception as error:
            _fail("admission", error)


class _CheckedPreemption:
    def __init__(self, inner: PreemptionPolicy, asker: PolicyAsker) -> None:
        self._victim = asker.bound("preemption", True, inner.victim)

    def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
        try:
            chosen = self._victim(running, now)
        except Exception as error:
            _fail("preemption", error)
        if not any(chosen is request for request in running):
            raise PolicyFault("preemption", "nonsense", f"named {chosen!r}, which does not run")
        return chosen


class _CheckedPrediction:
    def __init__(self, inner: LengthPredictor, asker: PolicyAsker) -> None:
        self._inner = inner
        self._predict = asker.bound("prediction", False, self._answers)

    def predict(self, request: RequestView) -> LengthEstimate:
        try:
            estimate, mean = self._predict(request)
        except Exception as error:
            _fail("prediction", error)
        if not isinstance(mean, _NUMBER) or not 0 <= mean < math.inf:
            raise PolicyFault("prediction", "nonsense", f"expects {mean!r} output tokens of request {request.id!r}")
        return estimate

    def _answers(self, request: RequestView) -> tuple[LengthEstimate, float]:
        """The estimate and its mean; some quantiles are looked at first where another package has a say in them."""
        estimate = self._inner.predict(request)
        if _may_be_outside(type(estimate)):
            for one in _outside(estimate):
                _check_quantiles(request, one)
        return estimate, estimate.remaining_mean(0)


def _check_quantiles(request: RequestView, estimate: LengthEstimate) -> None:
    """Raise PolicyFault unless some quantiles are whole numbers from 1 that do not fall."""
    least = 1
    for probability in _PROBABILITIES:
        tokens = estimate.remaining_quantile(probability, 0)
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < least:
            said = f"of request {request.id!r} at most {tokens!r} output tokens with probability {probability:g}"
            needed = "1" if least == 1 else f"the {least} of a lower probability"
            raise PolicyFault("prediction", "nonsense", f"expects {said}, not a whole number of at least {needed}")
        least = tokens


@cache
def _may_be_outside(estimate: type) -> bool:
    """Whether it is another package's, or one of Headway's that corrects any."""
    return issubclass(estimate, CorrectedEstimate) or not estimate.__module__.startswith("headway.")


def _outside(estimate: LengthEstimate) -> list[LengthEstimate]:
    """Another package's estimate, after those that correct it: its wrong quantiles may look right in theirs."""
    corrections: list[LengthEstimate] = []
    while isinstance(estimate, CorrectedEstimate):
        corrections.append(estimate)
        estimate = estimate.inner
    return [estimate, *corrections] if _may_be_outside(type(estimate)) else []


class CheckedRouting:
    """A routing policy whose choice is one of the replicas that it was given, or None."""

    def __init__(self, inner: RoutingPolicy, asker: PolicyAsker) -> None:
        self._choose = asker.bound("routing", False, inner.choose)

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView | None:
        """The policy's choice. Raises PolicyFault."""
        try:
            chosen = self._choose(request, prefix, replicas, now)
        except Exception as error:
            _fail("routing", error)
        if chosen is None:
            return None
        for replica in replicas:
            if chosen is replica:
                return chosen
        raise PolicyFault("routing", "nonsense", f"chose {chosen!r} for request {request.id!r}, which has no room")
