"""One queue: all that wait for one model, their scheduler, and what is known of how fast it moves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from headway.domain.estimate import LengthEstimate, PointEstimate
from headway.domain.event import Event, Listener
from headway.domain.request import RequestView
from headway.gateway.queueing.queued_request import QueuedRequest
from headway.gateway.queueing.wait_forecast import WaitForecast, work_of
from headway.gateway.relay.exchange import Exchange
from headway.gateway.settings import PolicySettings
from headway.policies.contracts import LengthPredictor
from headway.policies.event_fanout import EventFanout
from headway.scheduling.bundle import bundle
from headway.scheduling.scheduler import Policies, Scheduler

_REMEMBERED = 4_096


class QueueKey(NamedTuple):
    """What a queue is for. `kind` keeps embeddings apart from generation: their lengths teach nothing about it."""

    model: str
    kind: str


Prepare: TypeAlias = Callable[[QueueKey, PolicySettings, Policies], tuple[Listener, ...]]


@dataclass(slots=True)
class Held:
    """What of one payer waits in a queue. `tokens` are those of prompts, `bytes` those of bodies."""

    requests: int = 0
    tokens: int = 0
    bytes: int = 0


class HintedPrediction:
    """The predictor in use, but for requests whose client may say how long the answer will be, and did."""

    def __init__(self, inner: LengthPredictor) -> None:
        self._inner = inner
        self._inner_listeners = EventFanout(inner).listeners

    def predict(self, request: RequestView) -> LengthEstimate:
        """The client's word where it is believed."""
        hinted = request.hinted_output_tokens if isinstance(request, QueuedRequest) else None
        return PointEstimate(hinted, "client") if hinted is not None else self._inner.predict(request)

    def observe(self, event: Event) -> None:
        """Pass it on."""
        for listener in self._inner_listeners:
            listener.observe(event)


class ModelQueue:
    """One queue. Its laws are the scheduler's; here are the sums of those who wait."""

    def __init__(self, key: QueueKey, settings: PolicySettings, prepare: Prepare) -> None:
        """`prepare` is shown the fresh policies before they see a request, and says who else hears their events."""
        self.key = key
        self._prepare = prepare
        self.scheduler = self._scheduler(settings)
        self.forecast = WaitForecast()
        self._waiting = 0
        self.waiting_work = 0.0
        self.waiting_tokens = 0
        self.waiting_bytes = 0
        self.held: dict[str, Held] = {}  # by payer, of those who have somebody waiting
        self._dispatches: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)  # (number, when it had arrived)
        self._dispatched = 0

    def __len__(self) -> int:
        return self._waiting

    def arrive(self, exchange: Exchange, now: float) -> None:
        """It joins the queue."""
        request = exchange.request
        self.scheduler.arrive(request, now)
        request.work = work_of(request)
        exchange.predicted_wait_seconds = self.forecast.wait_seconds(request, self.waiting_work)
        exchange.drain_seconds = self.forecast.drain_seconds(self.waiting_work)
        exchange.dispatches_at_arrival = self._dispatched
        exchange.waiting_at_arrival = self._waiting
        self._add(request, 1, now)

    def back(self, request: QueuedRequest, now: float) -> None:
        """It was sent and has to be sent elsewhere: in front of everybody."""
        self.scheduler.preempted(request, now)
        self._add(request, 1, now)

    def admit(self, now: float) -> QueuedRequest:
        """The head leaves the queue for a replica."""
        request = self.scheduler.admit(now)
        assert isinstance(request, QueuedRequest)
        self._add(request, -1, now)
        self.forecast.dispatched(request.work, now)
        exchange = request.exchange
        if exchange.drain_seconds is not None and exchange.tries == 0:
            self.forecast.waited(request, exchange.drain_seconds, now - request.arrived_at)
        exchange.story = self._story(exchange, now)
        self._dispatched += 1
        request.rank = self._dispatched
        self._dispatches.append((self._dispatched, request.arrived_at))
        return request

    def cancel(self, request: QueuedRequest, now: float) -> None:
        """It leaves the queue for good."""
        if self.scheduler.cancel(request.id, now) is not None:
            self._add(request, -1, now)

    def moved_to(self, settings: PolicySettings, now: float) -> None:
        """Everybody who waits goes over to a scheduler with other policies, in order of arrival."""
        waiting = sorted(self.scheduler.queue, key=lambda request: (request.arrived_at, request.id))
        fresh = self._scheduler(settings)
        for request in waiting:
            fresh.arrive(request, now)
        self.scheduler = fresh

    def _scheduler(self, settings: PolicySettings) -> Scheduler:
        made = _policies(settings)
        self._ordering = settings.ordering
        listeners = self._prepare(self.key, settings, made)
        hinted = Policies(made.ordering, made.admission, made.preemption, HintedPrediction(made.prediction))
        return Scheduler(hinted, listeners=listeners)

    def _add(self, request: QueuedRequest, sign: int, now: float) -> None:
        self._waiting += sign
        self.waiting_work = self.waiting_work + sign * request.work if self._waiting else 0.0
        self.waiting_tokens += sign * request.prompt_tokens
        self.waiting_bytes += sign * request.body_bytes
        held = self.held.get(request.payer)
        if held is None:
            held = self.held[request.payer] = Held()
        held.requests += sign
        held.tokens += sign * request.prompt_tokens
        held.bytes += sign * request.body_bytes
        if not held.requests:
            del self.held[request.payer]
        self.forecast.backlog(self._waiting > 0, now)

    def _story(self, exchange: Exchange, now: float) -> str:
        """Why it waited, in words."""
        if not exchange.has_waited and not exchange.tries:
            return "did not wait"
        waited = now - exchange.arrived_at
        since = self._dispatched - exchange.dispatches_at_arrival
        later = 0
        for number, arrived_at in reversed(self._dispatches):
            if number <= exchange.dispatches_at_arrival:
                break
            later += arrived_at > exchange.arrived_at
        named = (
            (since - later, "that came before it"),
            (later, f"that came later but rank sooner by {self._ordering}"),
        )
        ahead = " and ".join(f"{number} {who}" for number, who in named if number)
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
