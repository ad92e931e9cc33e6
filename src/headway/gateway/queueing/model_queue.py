"""One queue: the requests that wait for one model, their scheduler, and a forecast of how fast the queue moves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from headway.domain.estimate import LengthEstimate, PointEstimate
from headway.domain.event import Event, Listener
from headway.domain.request import RequestView
from headway.gateway.queueing.request_state import QueuedRequest, QueueKey
from headway.gateway.queueing.wait_forecast import WaitForecast, work_of
from headway.gateway.settings import PolicySettings
from headway.policies.contracts import LengthPredictor
from headway.policies.event_fanout import EventFanout
from headway.scheduling.bundle import bundle
from headway.scheduling.scheduler import Policies, Scheduler

_REMEMBERED = 4_096

Prepare: TypeAlias = Callable[[QueueKey, PolicySettings, Policies], tuple[Listener, ...]]


@dataclass(slots=True)
class WaitingSums:
    """Sums over waiting requests. `tokens` are those of prompts, `bytes` those of bodies."""

    requests: int = 0
    tokens: int = 0
    bytes: int = 0

    def add(self, queued: QueuedRequest, sign: int) -> None:
        """A request joined (+1) or left (-1)."""
        self.requests += sign
        self.tokens += sign * queued.prompt_tokens
        self.bytes += sign * queued.arrived.body_bytes


class HintedPrediction:
    """The predictor in use, but a hinted output length counts as it is: the API key allows the client to give one.

    (The vLLM plug-in's `HintedLengths` corrects hints, because there any client may give one.)
    """

    def __init__(self, inner: LengthPredictor) -> None:
        self._inner = inner
        self._inner_listeners = EventFanout(inner).listeners

    def predict(self, request: RequestView) -> LengthEstimate:
        """The hint as a point, else what the predictor says."""
        hinted = request.hinted_output_tokens if isinstance(request, QueuedRequest) else None
        return PointEstimate(hinted, "client") if hinted is not None else self._inner.predict(request)

    def observe(self, event: Event) -> None:
        """Pass an event to the predictor, if it listens."""
        for listener in self._inner_listeners:
            listener.observe(event)


class ModelQueue:
    """One queue. Its laws are the scheduler's; it adds sums over the waiting requests and a forecast."""

    def __init__(self, key: QueueKey, settings: PolicySettings, prepare: Prepare) -> None:
        """`prepare` gets the fresh policies before they see a request, and returns more listeners to their events."""
        self.key = key
        self._prepare = prepare
        self.scheduler = self._scheduler(settings)
        self.forecast = WaitForecast()
        self.waiting = WaitingSums()
        self.waiting_work = 0.0
        self.waiting_by_payer: dict[str, WaitingSums] = {}  # of payers with a request waiting
        self._dispatches: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)  # (number, when it had arrived)
        self._dispatched = 0

    def __len__(self) -> int:
        return self.waiting.requests

    def __repr__(self) -> str:
        model, kind = self.key
        return f"<queue of {model or 'any model'} ({kind}): {len(self)} waiting, {self._dispatched} dispatched>"

    def arrive(self, queued: QueuedRequest, now: float) -> None:
        """A request joins the queue."""
        self.scheduler.arrive(queued, now)
        queued.queue_key = self.key
        queued.work = work_of(queued)
        queued.predicted_wait_seconds = self.forecast.wait_seconds(queued, self.waiting_work)
        queued.drain_seconds = self.forecast.drain_seconds(self.waiting_work)
        queued.dispatches_at_arrival = self._dispatched
        queued.waiting_at_arrival = len(self)
        self._add(queued, 1, now)

    def take_back(self, queued: QueuedRequest, now: float) -> None:
        """A dispatched request returns, to be sent to another replica: in front of all others."""
        if queued.admitted_by is self.scheduler:
            self.scheduler.preempted(queued, now)
            self._add(queued, 1, now)
        else:  # the policies were changed meanwhile
            if queued.admitted_by is not None:
                queued.admitted_by.left(queued, now)
            self.arrive(queued, now)

    def admit(self, now: float) -> QueuedRequest:
        """The head leaves the queue for a replica."""
        queued = self.scheduler.admit(now)
        assert isinstance(queued, QueuedRequest)
        self._add(queued, -1, now)
        self.forecast.dispatched(queued.work, now)
        if queued.drain_seconds is not None and queued.tries == 0:
            self.forecast.waited(queued, queued.drain_seconds, now - queued.arrived_at)
        queued.wait_explanation = self._explanation(queued, now)
        self._dispatched += 1
        queued.rank = self._dispatched
        queued.admitted_by = self.scheduler
        self._dispatches.append((self._dispatched, queued.arrived_at))
        return queued

    def cancel(self, queued: QueuedRequest, now: float) -> None:
        """A request leaves the queue for good."""
        if self.scheduler.cancel(queued.id, now) is not None:
            self._add(queued, -1, now)

    def drain_seconds(self) -> float | None:
        """Forecast of when the queue will be empty if nothing more arrives; None without one."""
        return self.forecast.drain_seconds(self.waiting_work)

    def change_policies(self, settings: PolicySettings, now: float) -> None:
        """All waiting requests go over to a scheduler with other policies, in order of arrival."""
        waiting = sorted(self.scheduler.queue, key=lambda request: (request.arrived_at, request.id))
        fresh = self._scheduler(settings)
        for request in waiting:
            fresh.arrive(request, now)
        self.scheduler = fresh

    def _scheduler(self, settings: PolicySettings) -> Scheduler:
        policies = _policies(settings)
        self._ordering = settings.ordering
        listeners = self._prepare(self.key, settings, policies)
        hinted = HintedPrediction(policies.prediction)
        return Scheduler(
            Policies(policies.ordering, policies.admission, policies.preemption, hinted), listeners=listeners
        )

    def _add(self, queued: QueuedRequest, sign: int, now: float) -> None:
        self.waiting.add(queued, sign)
        self.waiting_work = self.waiting_work + sign * queued.work if self.waiting.requests else 0.0
        payer = queued.arrived.payer
        own = self.waiting_by_payer.get(payer)
        if own is None:
            own = self.waiting_by_payer[payer] = WaitingSums()
        own.add(queued, sign)
        if not own.requests:
            del self.waiting_by_payer[payer]
        self.forecast.backlog(self.waiting.requests > 0, now)

    def _explanation(self, queued: QueuedRequest, now: float) -> str:
        """Why a request waited, in words."""
        if not queued.has_waited and not queued.tries:
            return "did not wait"
        waited = now - queued.arrived_at
        since = self._dispatched - queued.dispatches_at_arrival
        later = 0
        for number, arrived_at in reversed(self._dispatches):
            if number <= queued.dispatches_at_arrival:
                break
            later += arrived_at > queued.arrived_at
        named = (
            (since - later, "that came before it"),
            (later, f"that came later but rank sooner by {self._ordering}"),
        )
        ahead = " and ".join(f"{number} {which}" for number, which in named if number)
        return f"waited {waited:.2f} s for {ahead or 'room at a replica'}"


def _policies(settings: PolicySettings) -> Policies:
    options = {kind: table for kind, table in settings.options.items() if kind != "routing"}
    return bundle(
        ordering=settings.ordering,
        admission=settings.admission,
        preemption=settings.preemption,
        prediction=settings.prediction,
        options=options,
        costs=settings.costs,
        seed=settings.seed,
    )
