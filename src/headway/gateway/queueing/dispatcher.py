"""The dispatcher: admits requests to queues, sends them to replicas in the order of the policies, and ends them.

Laws: `Counts` (no request is lost, none ends twice); a request leaves its queue only for a replica with room; with
nothing waiting a request is sent at once; a refused client learns when to retry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Protocol

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Counts, Outcome
from headway.gateway.queueing.deadlines import Deadlines
from headway.gateway.queueing.model_queue import ModelQueue, Prepare
from headway.gateway.queueing.outages import Demand, Outages, can_be_served, demand_of
from headway.gateway.queueing.refusals import NO_REPLICA_SECONDS, Refusal, RetryDelays, broken_bound
from headway.gateway.queueing.request_state import (
    GatewayRequest,
    PromptSize,
    QueuedRequest,
    QueueKey,
    RequestMove,
    RequestStage,
)
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import Settings
from headway.policies.catalog import build
from headway.policies.contracts import DispatchListener, RoutingPolicy

_PREFILL_SECONDS = 1.0
_FIRST_BYTE_FLOOR_SECONDS = 0.02  # of any answer, however short its prompt


class Relay(Protocol):
    """What carries one request to a replica and the answer back; an `Exchange`."""

    @property
    def request(self) -> GatewayRequest:
        """The request it carries."""

    def dispatch(self, replica: UpstreamReplica) -> None:
        """Send the request; the answer comes back by itself."""

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error; nothing was sent to the client before."""

    def check_silence(self, now: float) -> None:
        """Give up on a replica that has sent nothing for too long."""

    def cut_off(self, refusal: Refusal) -> None:
        """End the request now: with this refusal, or an answer that has begun with an error."""


class RequestObserver(Protocol):
    """Takes note of requests: metrics, logs, traces."""

    def dispatched(self, request: GatewayRequest, now: float) -> None:
        """A request left its queue for a replica."""

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """A request ended."""


class Dispatcher:
    """One per process. `clock` gives seconds; everything is called from the event loop's one thread."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        observers: Sequence[RequestObserver] = (),
        prepare: Prepare = lambda key, chosen, policies: (),
    ) -> None:
        """`prepare` gets the fresh policies of every queue, see `ModelQueue`."""
        self.settings = settings
        self._prepare = prepare
        self.counts = Counts()
        self.replicas: list[UpstreamReplica] = []
        self.queues: dict[QueueKey, ModelQueue] = {}
        self.relays: dict[int, Relay] = {}  # of requests that have not ended, by number, in order of arrival
        self._sent: dict[int, Relay] = {}  # of those at a replica
        self._waiting: Counter[Demand] = Counter()  # of those in a queue
        self.is_draining = False
        self._is_stopped = False
        self.now = clock  # an attribute, because it is asked many times a request
        self._observers = observers
        self._retry_delays = RetryDelays(settings.policies.seed)
        self._routing = _routing(settings)
        self._dispatch_listener = _dispatch_listener(self._routing)
        self._outages = Outages()
        self._deadlines = Deadlines()
        self._is_pumping = False
        self._pump_again = False
        self._turn = 0

    # The way in

    def announce(self, relay: Relay) -> bool:
        """Count a request from now on. False if it was refused because the gateway drains; else `arrive` follows."""
        self.counts.arrive()
        self.relays[relay.request.arrived.number] = relay
        if self.is_draining:
            relay.refuse(self._draining())
        return not self.is_draining

    def _draining(self) -> Refusal:
        retry = self._retry_delays.after(NO_REPLICA_SECONDS)
        return Refusal(503, "this gateway is shutting down", Reason.DRAINING, retry)

    def arrive(self, relay: Relay, prompt: PromptSize | None = None) -> None:
        """An announced request is refused, is sent, or waits. `prompt` is its size where that was counted since."""
        request, now = relay.request, self.now()
        if request.stage is RequestStage.ENDED:  # its client left meanwhile
            return
        queued = request.queued
        if prompt is not None:
            queued.prompt_tokens, queued.cached_prompt_tokens, queued.counted = prompt
        refusal = self._refusal(queued)
        if refusal is not None:
            relay.refuse(refusal)
            return
        queue = self._queue_of(queued)
        queue.arrive(queued, now)
        self._enqueued(request, RequestMove.QUEUED)
        if self._misses_deadline(queued, queue, now):
            wait = queued.predicted_wait_seconds or 0.0
            bound = (queued.deadline or now) - now
            message = f"the first token is wanted within {bound:.2f} s and is expected after about {wait:.2f} s"
            self._refuse_waiting(relay, message, Reason.DEADLINE_UNMEETABLE, wait - bound)
            return
        self.pump()
        queued.has_waited = request.stage is RequestStage.QUEUED

    def _refusal(self, queued: QueuedRequest) -> Refusal | None:
        """Why a request may not enter a queue; None if it may."""
        model = queued.arrived.model
        serving = [replica for replica in self.replicas if replica.serves(model)]
        if self.replicas and not serving:
            message = f"no replica serves the model {model[:100]!r}; GET /v1/models lists the models"
            return Refusal(404, message, Reason.UNKNOWN_MODEL)
        if not can_be_served(demand_of(queued), serving):
            retry = self._retry_delays.after_probe(self.replicas, self.now())
            return Refusal(503, "no healthy replica serves this model", Reason.NO_REPLICA, retry)
        broken = broken_bound(self.queues.values(), queued, self.settings.queue)
        if broken is None:
            return None
        return Refusal(429, *broken, self._retry_delays.after(self._queue_of(queued).drain_seconds()))

    def _queue_of(self, queued: QueuedRequest) -> ModelQueue:
        key = queued.queue_key
        if key is None:
            model = queued.arrived.model
            known = any(replica.state.models and model in replica.state.models for replica in self.replicas)
            key = QueueKey(model if known else "", queued.arrived.endpoint.kind)  # unknown names share one queue
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = ModelQueue(key, self.settings.policies, self._prepare)
        return queue

    def _misses_deadline(self, queued: QueuedRequest, queue: ModelQueue, now: float) -> bool:
        deadline, wait = queued.deadline, queued.predicted_wait_seconds
        if deadline is None or wait is None:
            return False
        goes_at_once = len(queue) <= 1 and bool(self._candidates(queued))
        return not goes_at_once and now + wait > deadline

    def _refuse_waiting(self, relay: Relay, message: str, reason: Reason, retry_seconds: float | None) -> None:
        relay.refuse(Refusal(429, message, reason, self._retry_delays.after(retry_seconds)))

    def _refuse_unserved(self, relay: Relay, message: str) -> None:
        retry = self._retry_delays.after_probe(self.replicas, self.now())
        relay.refuse(Refusal(503, message, Reason.NO_REPLICA, retry))

    # To the replicas

    def pump(self) -> None:
        """Dispatch as many requests as there is room for, in the order of the policies."""
        if self._is_stopped:
            return
        if self._is_pumping:
            self._pump_again = True
            return
        self._is_pumping = True
        try:
            while True:
                self._pump_again = False
                queues = [queue for queue in self.queues.values() if len(queue)]
                self._turn += 1
                for number in range(len(queues)):
                    self._drain(queues[(number + self._turn) % len(queues)])
                if not self._pump_again:
                    return
        finally:
            self._is_pumping = False

    def _drain(self, queue: ModelQueue) -> None:
        now = self.now()
        while (head := queue.scheduler.head(now)) is not None:
            assert isinstance(head, QueuedRequest)
            candidates = [
                replica
                for replica in self._candidates(head)
                if not replica.ledger.requests
                or not queue.scheduler.hold_steps(head, replica.ledger, replica.memory(), now)
            ]
            if not candidates:
                failed = head.failed_replica
                if failed is None or can_be_served(demand_of(head), self.replicas):
                    return
                # Only the replica that failed it is left: it must not keep the requests behind it waiting.
                relay = self.relays[head.arrived.number]
                self._refuse_unserved(relay, f"replica {failed.name} failed, and no other is up")
                continue
            by_view = {id(replica.ledger): replica for replica in candidates}
            views = [replica.ledger for replica in candidates]
            chosen = self._routing.choose(head, head.arrived.prefix_hashes, views, now)
            if chosen is None:
                return
            self._dispatch(queue, by_view[id(chosen)], now)

    def _candidates(self, queued: QueuedRequest) -> list[UpstreamReplica]:
        model, failed = queued.arrived.model, queued.failed_replica
        return [
            replica
            for replica in self.replicas
            if replica.is_up and replica is not failed and replica.has_room(queued) and replica.serves(model)
        ]

    def _dispatch(self, queue: ModelQueue, replica: UpstreamReplica, now: float) -> None:
        queued = queue.admit(now)
        number = queued.arrived.number
        relay = self._sent[number] = self.relays[number]
        self._leaves_queue(relay.request, RequestMove.DISPATCHED)
        replica.ledger.enter(queued)
        if self._dispatch_listener is not None:
            self._dispatch_listener.routed(queued, queued.arrived.prefix_hashes, replica.ledger)
        queued.replica = replica
        queued.tries += 1
        queued.dispatched_at = self.now()
        relay.dispatch(replica)
        for observer in self._observers:
            observer.dispatched(relay.request, now)

    def _enqueued(self, request: GatewayRequest, move: RequestMove) -> None:
        request.move(move)
        self._waiting[demand_of(request.queued)] += 1
        self._deadlines.queued(request)

    def _leaves_queue(self, request: GatewayRequest, move: RequestMove) -> None:
        request.move(move)
        demand = demand_of(request.queued)
        self._waiting[demand] -= 1
        if not self._waiting[demand]:
            del self._waiting[demand]

    # The way back

    def first_byte(self, request: GatewayRequest) -> None:
        """The replica produced something."""
        queued, now = request.queued, self.now()
        replica, is_good = queued.replica, request.relayed.status == 200
        assert replica is not None
        replica.ledger.first_token(queued)
        if queued.admitted_by is not None and is_good:
            queued.admitted_by.first_token(queued, now)
        if is_good and request.arrived.streams:
            self._measure(queued, replica, now, 0)

    def _measure(self, queued: QueuedRequest, replica: UpstreamReplica, now: float, output_tokens: int) -> None:
        costs, began = self.settings.policies.costs, queued.dispatched_at or now
        uncached = queued.prompt_tokens - queued.cached_prompt_tokens
        expected = _FIRST_BYTE_FLOOR_SECONDS + uncached * costs.prefill_seconds_per_token
        replica.first_byte(now - began, expected + output_tokens * costs.decode_seconds_per_token)

    def has_alternative(self, request: GatewayRequest) -> bool:
        """Whether a replica other than its own could take the request."""
        own, model = request.queued.replica, request.arrived.model
        return own is not None and any(
            replica.is_up and replica is not own and replica.serves(model) for replica in self.replicas
        )

    def take_back(self, request: GatewayRequest) -> None:
        """Put a dispatched request in front of its queue, for another replica."""
        queued, now = request.queued, self.now()
        assert queued.replica is not None
        queued.replica.ledger.leave(queued)
        queued.failed_replica = queued.replica
        self._queue_of(queued).take_back(queued, now)
        del self._sent[queued.arrived.number]
        self._enqueued(request, RequestMove.TAKEN_BACK)
        self.counts.retried += 1
        self.pump()

    def end(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None = None) -> None:
        """The one end of every request, wherever it stands: its place is free. The table refuses a second end."""
        now, queued, replica = self.now(), request.queued, request.queued.replica
        was_queued = request.stage is RequestStage.QUEUED
        if was_queued:
            self._leaves_queue(request, RequestMove.ENDED)
            self._queue_of(queued).cancel(queued, now)
        else:
            request.move(RequestMove.ENDED)
            if replica is not None:
                queued.produced_tokens = -(-request.relayed.output_tokens // queued.sequences)
                self._tell_scheduler(request, replica, outcome, now)
                replica.ledger.leave(queued)
        self.relays.pop(queued.arrived.number, None)
        self._sent.pop(queued.arrived.number, None)
        self.counts.end(outcome, reason)
        for observer in self._observers:
            observer.ended(request, outcome, reason, now)
        self.pump()

    def _tell_scheduler(self, request: GatewayRequest, replica: UpstreamReplica, outcome: Outcome, now: float) -> None:
        """Tell the scheduler that admitted a request of its end; only a whole answer teaches lengths."""
        queued = request.queued
        scheduler = queued.admitted_by
        if scheduler is None:
            return
        if outcome is Outcome.COMPLETED and request.relayed.status == 200 and queued.produced_tokens > 0:
            scheduler.complete(queued, now)
            if not request.arrived.streams and request.arrived.endpoint.is_generation:
                self._measure(queued, replica, now, queued.produced_tokens)
        else:
            scheduler.left(queued, now)

    # As time passes

    def sweep(self, now: float) -> None:
        """Refuse requests that waited too long, give up on silent replicas, refresh the ledgers. Once a second."""
        self._refuse_all_unserved(now)
        self._refuse_late(now)
        self._refuse_overdue(now)
        for relay in list(self._sent.values()):
            self._assume_prefilled(relay.request, now)
            relay.check_silence(now)
        for relay in self._sent.values():
            queued = relay.request.queued
            queued.produced_tokens = relay.request.relayed.events // queued.sequences
        for replica in self.replicas:
            replica.ledger.refresh()
            replica.pool.sweep(now)
        self.pump()

    def _refuse_overdue(self, now: float) -> None:
        limit = self.settings.queue.timeout_seconds
        # Only the oldest are looked at: with 100,000 waiting a look at all would hold up every stream.
        overdue = takewhile(lambda relay: now - relay.request.arrived.arrived_at >= limit, self.relays.values())
        for relay in list(overdue):
            if relay.request.stage is RequestStage.QUEUED:
                waited = now - relay.request.arrived.arrived_at
                message = f"the request waited {waited:.0f} s in the queue, the longest allowed"
                drain_seconds = self._queue_of(relay.request.queued).drain_seconds()
                self._refuse_waiting(relay, message, Reason.QUEUE_TIMEOUT, drain_seconds)

    def _refuse_late(self, now: float) -> None:
        for request in self._deadlines.passed(now):
            if request.stage is not RequestStage.QUEUED:  # sent when the one before it was refused
                continue
            bound = (request.arrived.deadline or now) - request.arrived.arrived_at
            message = f"the first token was wanted within {bound:.2f} s, which have passed in the queue"
            drain_seconds = self._queue_of(request.queued).drain_seconds()
            relay = self.relays[request.arrived.number]
            self._refuse_waiting(relay, message, Reason.DEADLINE_UNMEETABLE, drain_seconds)

    def _refuse_all_unserved(self, now: float) -> None:
        grace = self.settings.health.no_replica_seconds
        demands = self._outages.given_up(self._waiting, self.replicas, now, grace)
        if not demands:
            return
        for relay in list(self.relays.values()):
            request = relay.request
            if request.stage is RequestStage.QUEUED and demand_of(request.queued) in demands:
                self._refuse_unserved(relay, f"no healthy replica has served this model for {grace:g} s")

    def _assume_prefilled(self, request: GatewayRequest, now: float) -> None:
        """Without a stream the first byte is the last: the prompt counts as computed after a while."""
        queued = request.queued
        is_open = request.stage is RequestStage.SENT and not request.arrived.streams
        if is_open and now - (queued.dispatched_at or now) >= _PREFILL_SECONDS:
            assert queued.replica is not None
            queued.replica.ledger.first_token(queued)

    def end_all(self) -> None:
        """End every request now: the process stops. Nothing is dispatched any more."""
        self.is_draining = self._is_stopped = True
        for relay in list(self.relays.values()):
            relay.cut_off(self._draining())

    def replace(self, settings: Settings, replicas: Iterable[UpstreamReplica], now: float) -> None:
        """Other settings from now on; no request is lost. Requests on replicas that go are finished there."""
        before = self.settings
        changed = (settings.policies, settings.tuning) != (before.policies, before.tuning)
        self.settings = settings
        self.replicas = list(replicas)
        if changed:
            self._routing = _routing(settings)
            self._dispatch_listener = _dispatch_listener(self._routing)
            for queue in self.queues.values():
                queue.change_policies(settings.policies, now)
        self.pump()


def _dispatch_listener(routing: RoutingPolicy) -> DispatchListener | None:
    return routing if isinstance(routing, DispatchListener) else None


def _routing(settings: Settings) -> RoutingPolicy:
    chosen = settings.policies
    return build("routing", chosen.routing, chosen.options.get("routing"), costs=chosen.costs, seed=chosen.seed)
