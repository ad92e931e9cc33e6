"""The dispatcher: admits requests to queues, sends them to replicas in the order of the policies, and ends them.

Laws: `Counts` (no request is lost, none ends twice); a request leaves its queue only for a replica with room; with
nothing waiting a request is sent at once; a refused client learns when to retry; an exception ends the one request
that it belongs to (`contain`), and never passes through `arrive`, `pump`, `end` or `sweep`.

One file because these laws are kept by the ways in, to the replicas and back together.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, takewhile
from typing import Protocol, runtime_checkable

from headway.domain.request import uncached_prefill_tokens
from headway.gateway.openai.error_responses import Reason
from headway.gateway.openai.stored_objects import StoredObjects
from headway.gateway.queueing.counts import Counts, Outcome
from headway.gateway.queueing.deadlines import Deadlines
from headway.gateway.queueing.internal_errors import InternalErrors
from headway.gateway.queueing.model_queue import CachedTokensOf, ModelQueue, Prepare, SharedAccounts
from headway.gateway.queueing.outages import Demand, Outages, OwnShortages, can_be_served, demand_of
from headway.gateway.queueing.queue_turns import Turns
from headway.gateway.queueing.refusals import NO_REPLICA_SECONDS, Refusal, RetryDelays, broken_bound
from headway.gateway.queueing.request_routing import RequestRouting
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
from headway.policies.contracts import Need
from headway.policies.places import needs_of

log = logging.getLogger("headway.gateway")
# Bound once: on Python 3.11 a member of an enum takes forty times as long through its class.
_QUEUED, _SENT, _ENDED = RequestStage.QUEUED, RequestStage.SENT, RequestStage.ENDED
_MOVE_QUEUED, _MOVE_DISPATCHED, _MOVE_ENDED = RequestMove.QUEUED, RequestMove.DISPATCHED, RequestMove.ENDED
_COMPLETED = Outcome.COMPLETED
TURN_SECONDS = 0.01
"""How long dispatches, or moves to changed policies, may go on before every other connection has its turn."""
_PREFILL_SECONDS = 1.0
_FIRST_BYTE_FLOOR_SECONDS = 0.02  # of any answer, however short its prompt
_OVERDUE = 2.0  # × the expected time of a whole answer: lengths and speeds are guesses


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

    def break_off(self) -> None:
        """End the request after an internal error: answer 500, or cut the answer short."""


class RequestObserver(Protocol):
    """Takes note of requests: metrics, logs, traces. It may be a `DispatchObserver` too."""

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """A request ended."""


@runtime_checkable
class DispatchObserver(Protocol):
    """Takes note of dispatches too."""

    def dispatched(self, request: GatewayRequest, now: float) -> None:
        """A request left its queue for a replica."""


class Dispatcher:
    """One per process. `clock` gives seconds; everything is called from the event loop's one thread."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        observers: Sequence[RequestObserver] = (),
        prepare: Prepare = lambda key, chosen, policies: (),
        forget: Callable[[QueueKey], None] = lambda key: None,
        ask_for_models: Callable[[Callable[[], None]], bool] = lambda then: False,
        held: Callable[[UpstreamReplica, int], None] = lambda replica, steps: None,
        go_on_soon: Callable[[Callable[[], None]], object] | None = None,
        cached_tokens: CachedTokensOf | None = None,
    ) -> None:
        """A dispatcher.

        Args:
            settings: of the gateway.
            clock: gives seconds.
            observers: take note of requests.
            prepare: gets the fresh policies of every queue, see `ModelQueue`.
            forget: hears of a queue that goes.
            ask_for_models: see `ModelLists.ask_again`.
            held: hears for how many steps of a replica a request was refused there; `pump` is to be called then.
            go_on_soon: calls back at the next turn of the event loop; None where work need not be divided.
            cached_tokens: see `ModelQueue`.
        """
        self.settings = settings
        self._prepare = prepare
        self._cached_tokens = cached_tokens
        self._ask_for_models = ask_for_models
        self._held = held
        self._of_unknown_memory: set[str] = set()  # replicas, which the log names
        self._holds = False  # the admission policy refused a request when the queues were served last
        self._forget = forget
        self.counts = Counts()
        self.replicas: list[UpstreamReplica] = []
        self.queues: dict[QueueKey, ModelQueue] = {}
        self.relays: dict[int, Relay] = {}  # of requests that have not ended, by number, in order of arrival
        self._sent: dict[int, Relay] = {}  # of those at a replica
        self._waiting: dict[Demand, int] = {}  # of those in a queue, how many
        self.stored_objects = StoredObjects()
        self.is_draining = False
        self._is_stopped = False
        self.now = clock  # an attribute, because it is asked many times a request
        self._observers = observers
        self._dispatch_observers = [observer for observer in observers if isinstance(observer, DispatchObserver)]
        self._has_room = _room_gate(settings)
        self._costs = settings.policies.costs
        self._retry_delays = RetryDelays(settings.policies.seed)
        self.errors = InternalErrors(clock)
        self._routing = RequestRouting(settings.policies, self.errors)
        self._accounts = SharedAccounts()
        self._unchanged: deque[ModelQueue] = deque()  # whose policies are still those of before the latest reload
        self._turns: Turns[ModelQueue] = Turns()
        self._outages = Outages()
        self.shortages = OwnShortages()
        self._deadlines = Deadlines()
        self._go_on_soon = go_on_soon
        self._is_pumping = False
        self._pump_again = False
        self._pumps_soon = False  # at the next turn of the event loop, with what was left at this one

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
        try:
            self._arrive(relay, prompt)
        except Exception as error:
            self.contain(relay, "arrival", error)

    def _arrive(self, relay: Relay, prompt: PromptSize | None) -> None:
        request, now = relay.request, self.now()
        if request.stage is _ENDED:  # its client left meanwhile
            return
        queued = request.queued
        if prompt is not None:
            queued.prompt_tokens, queued.cached_prompt_tokens, queued.counted = prompt
        refusal = self._refusal(queued)
        if refusal is not None:
            is_unknown = refusal.reason is Reason.UNKNOWN_MODEL
            if not (is_unknown and self._ask_for_models(partial(self.arrive, relay))):
                relay.refuse(refusal)
            return
        queue = self._queue_of(queued)
        queue.arrive(queued, now)
        self._enqueued(request, _MOVE_QUEUED)
        if queued.deadline is not None and self._misses_deadline(queued, queue, now):
            wait = queued.predicted_wait_seconds or 0.0
            bound = (queued.deadline or now) - now
            message = f"the first token is wanted within {bound:.2f} s and is expected after about {wait:.2f} s"
            self._refuse_waiting(relay, message, Reason.DEADLINE_UNMEETABLE, wait - bound)
            return
        self.pump()
        queued.has_waited = request.stage is _QUEUED

    def _refusal(self, queued: QueuedRequest) -> Refusal | None:
        """Why a request may not enter a queue; None if it may."""
        if not can_be_served(demand_of(queued), self.replicas):
            model = queued.arrived.model
            if self.replicas and not any(replica.serves(model) for replica in self.replicas):
                message = f"no replica serves the model {model[:100]!r}; GET /v1/models lists the models"
                return Refusal(404, message, Reason.UNKNOWN_MODEL)
            retry = self._retry_delays.after_probe(self.replicas, self.now())
            message = f"no healthy replica serves the model {model[:100]!r}" if model else "no replica is healthy"
            return Refusal(503, message, Reason.NO_REPLICA, retry)
        if not self._waiting:
            return None
        broken = broken_bound(self.queues.values(), queued, self.settings.queue)
        if broken is None:
            return None
        return Refusal(429, *broken, self._retry_delays.after(self._queue_of(queued).drain_seconds()))

    def _queue_of(self, queued: QueuedRequest) -> ModelQueue:
        key = queued.queue_key or self._key_of(queued)
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = ModelQueue(
                key, self.settings.policies, self._prepare, self.errors, self._accounts, self._cached_tokens
            )
        return queue

    def _key_of(self, queued: QueuedRequest) -> QueueKey:
        model, kind = queued.arrived.model, queued.arrived.endpoint.kind
        home = self._home(queued)  # requests that one replica alone can serve must not hold up the others
        key = QueueKey(model, kind, "" if home is None else home.name)
        if key in self.queues or any(model in (replica.state.models or ()) for replica in self.replicas):
            return key
        return key._replace(model="")  # unknown names share one

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
        if self._is_stopped or self._pumps_soon:
            return
        if not self._waiting:  # as mostly when a request ends
            self._holds = False
            return
        if self._is_pumping:
            self._pump_again = True
            return
        self._is_pumping = True
        try:
            while True:
                self._pump_again = False
                self._serve_queues()
                if not self._pump_again or self._pumps_soon:
                    return
        except Exception as error:
            self.errors.contained("pump", error)
        finally:
            self._is_pumping = False

    def _serve_queues(self) -> None:
        """Dispatch until no head fits, or this turn of the event loop has taken long enough."""
        self._holds = False
        if len(self.queues) == 1:
            (only,) = self.queues.values()
            self._serve_alone(only)
            return
        queues = self._waiting_queues()
        if len(queues) == 1:
            self._serve_alone(queues[0])
        elif queues:
            self._serve_in_turn({queue.key: queue for queue in queues})

    def _serve_alone(self, queue: ModelQueue) -> None:
        """Serve the only queue in which requests wait, as mostly."""
        until = 0.0
        while queue.waiting.requests:
            now = self.now()
            if not until:
                until = now + TURN_SECONDS
            elif now >= until and self._pump_soon():
                return
            try:
                if not self._serve(queue, [], [], now):
                    return
            except Exception as error:
                self.errors.contained("queue", error)
                return

    def _serve_in_turn(self, waiting: dict[QueueKey, ModelQueue]) -> None:
        """Serve several queues in turn, one head each."""
        until = self.now() + TURN_SECONDS
        while waiting:
            now = self.now()
            if now >= until and self._pump_soon():
                return
            passed: list[ModelQueue] = []  # those before in turn, whose heads do not fit
            owed: list[UpstreamReplica] = []  # replicas kept free for some of those
            for queue in self._turns.order(list(waiting.values()), now):
                try:
                    served = self._serve(queue, owed, passed, now)
                except Exception as error:  # the other queues go on
                    self.errors.contained("queue", error)
                    continue
                if served and len(queue):
                    break  # their order has changed
                if served:
                    del waiting[queue.key]
                    break
                passed.append(queue)
                if self._turns.is_owed(queue):
                    owed += self._could_serve(queue, now)
            else:
                return

    def _pump_soon(self) -> bool:
        """Leave the rest to the next turn of the event loop; False where there is none."""
        if self._go_on_soon is None:
            return False
        self._pumps_soon = True
        self._go_on_soon(self._pump_on)
        return True

    def _pump_on(self) -> None:
        self._pumps_soon = False
        self.pump()

    def _waiting_queues(self) -> list[ModelQueue]:
        return [queue for queue in self.queues.values() if queue.waiting.requests]

    def _serve(self, queue: ModelQueue, owed: list[UpstreamReplica], passed: list[ModelQueue], now: float) -> bool:
        """Dispatch the head of a queue, if it fits somewhere, or one that may pass it; False if all have to wait."""
        head = queue.head(now)
        if head is None:
            return False
        asks_admission = queue.asks_admission
        if asks_admission:  # which goes by what the replicas hold now
            for replica in self.replicas:
                _look_at(replica, now)
        candidates = self._candidates(head)
        if owed:
            candidates = [replica for replica in candidates if replica not in owed]
        if asks_admission:
            candidates = [replica for replica in candidates if self._admits(queue, head, replica, now)]
        if not candidates:
            if self._serve_past(queue, head, owed, passed, now):
                return True
            failed = head.failed_replica
            if failed is None or can_be_served(demand_of(head), self.replicas):
                return False
            # Only the replica that failed it is left: it must not keep the requests behind it waiting.
            relay = self.relays[head.arrived.number]
            self._refuse_unserved(relay, f"replica {failed.shown_as} failed, and no other is up")
            return True
        chosen = self._routing.choose(head, candidates, now)
        if chosen is None:
            return False
        if passed or len(self.queues) > 1:
            self._turns.served(queue, [other for other in passed if chosen in self._could_serve(other, now)])
        self._dispatch(queue.admit(now), chosen, now)
        return True

    def _admits(self, queue: ModelQueue, queued: QueuedRequest, replica: UpstreamReplica, now: float) -> bool:
        """Whether the admission policy lets a request go to a replica that has room; an empty one takes any."""
        if not replica.ledger.requests or not queue.asks_admission:
            return True
        if replica.ledger.kv_tokens_max is None:
            self._warn_of_unknown_memory(replica)
        steps = queue.hold_steps(queued, replica.ledger, replica.ledger.memory(), now)
        if steps:
            self._holds = True
            self._held(replica, steps)
        return not steps

    def _warn_of_unknown_memory(self, replica: UpstreamReplica) -> None:
        """Say once that an admission policy has nothing to go by."""
        if replica.name not in self._of_unknown_memory:
            self._of_unknown_memory.add(replica.name)
            message = "replica %s reports no KV memory, so admission %s lets every request go there: set kv_tokens"
            log.warning(message, replica.name, self.settings.policies.admission)

    def _serve_past(
        self,
        queue: ModelQueue,
        head: QueuedRequest,
        owed: list[UpstreamReplica],
        passed: list[ModelQueue],
        now: float,
    ) -> bool:
        """Dispatch a request that may pass the head of its queue, which fits nowhere.

        It may where the admission policy says so of that replica, and has to be admitted there as any head. For the
        turns it is as good as a head, but its head stays owed what it was.
        """
        for queued in queue.behind_head(now):
            candidates = []
            for replica in self._candidates(queued):
                if replica in owed or not replica.ledger.requests:
                    continue
                if queue.may_pass(queued, head, replica.ledger, replica.ledger.memory(), now) and self._admits(
                    queue, queued, replica, now
                ):
                    candidates.append(replica)
            chosen = self._routing.choose(queued, candidates, now) if candidates else None
            if chosen is not None:
                if passed or len(self.queues) > 1:
                    others = [other for other in passed if chosen in self._could_serve(other, now)]
                    self._turns.served(queue, others, is_head=False)
                queue.admit_past(queued, head, now)
                self._dispatch(queued, chosen, now)
                return True
        return False

    def _could_serve(self, queue: ModelQueue, now: float) -> list[UpstreamReplica]:
        """The replicas that have a queue's head to wait for."""
        head = queue.head(now)
        if head is None:
            return []
        model, failed, home = head.arrived.model, head.failed_replica, self._home(head)
        replicas = self.replicas if home is None else [home]
        return [r for r in replicas if r.is_up and r is not failed and r.serves(model)]

    def _candidates(self, queued: QueuedRequest) -> list[UpstreamReplica]:
        model, failed = queued.arrived.model, queued.failed_replica
        home, has_room = self._home(queued), self._has_room
        return [
            replica
            for replica in (self.replicas if home is None else [home])
            if replica.is_up and replica is not failed and has_room(replica, queued) and replica.serves(model)
        ]

    def _home(self, queued: QueuedRequest) -> UpstreamReplica | None:
        """The replica that made what the request is about, while it is up; None where any may serve it."""
        if queued.arrived.stored_object is None:
            return None
        name = self.stored_objects.made_by(queued.arrived.stored_object)
        homes = (r for r in self.replicas if r.name == name and r.is_up and r is not queued.failed_replica)
        return next(homes, None)

    def object_made(self, request: GatewayRequest, answer: bytes) -> None:
        """The answer that begins like this is a new object, which its replica alone knows."""
        replica = request.queued.replica
        assert replica is not None, "only a dispatched request is answered"
        self.stored_objects.note(answer, replica.name, self.settings.queue.stored_objects)

    def _dispatch(self, queued: QueuedRequest, replica: UpstreamReplica, now: float) -> None:
        """Send a request that has left its queue."""
        number = queued.arrived.number
        relay = self._sent[number] = self.relays[number]
        self._leaves_queue(relay.request, _MOVE_DISPATCHED)
        replica.ledger.enter(queued, relay.request.relayed)
        self._routing.routed(queued, replica)
        queued.replica = replica
        queued.tries += 1
        queued.dispatched_at = self.now()
        try:
            relay.dispatch(replica)
        except Exception as error:
            self.contain(relay, "dispatch", error)
            return
        for observer in self._dispatch_observers:
            try:
                observer.dispatched(relay.request, now)
            except Exception as error:
                self.errors.contained("observing", error)

    def _enqueued(self, request: GatewayRequest, move: RequestMove) -> None:
        request.move(move)
        demand = demand_of(request.queued)
        self._waiting[demand] = self._waiting.get(demand, 0) + 1
        self._deadlines.queued(request)

    def _leaves_queue(self, request: GatewayRequest, move: RequestMove) -> None:
        request.move(move)
        demand = demand_of(request.queued)
        left = self._waiting[demand] - 1
        if left:
            self._waiting[demand] = left
        else:
            del self._waiting[demand]

    # The way back

    def first_byte(self, request: GatewayRequest) -> None:
        """The replica produced something."""
        queued, now = request.queued, self.now()
        replica, is_good = queued.replica, request.relayed.status == 200
        assert replica is not None
        replica.ledger.first_token(queued)
        if queued.admitted_by is not None and is_good:
            try:
                queued.admitted_by.first_token(queued, now)
            except Exception as error:
                self.errors.contained("policies", error)
        if is_good and request.arrived.streams:
            self._measure(queued, replica, now, 0)
        if self._holds:  # a refusal stands no longer than the batch is the same
            self.pump()

    def _measure(self, queued: QueuedRequest, replica: UpstreamReplica, now: float, output_tokens: int) -> None:
        began = queued.dispatched_at or now
        replica.first_byte(now - began, self._expected_seconds(queued, output_tokens))

    def _expected_seconds(self, queued: QueuedRequest, output_tokens: float) -> float:
        """How long a replica should take to compute the prompt and so many output tokens."""
        costs = self._costs
        uncached = queued.prompt_tokens - queued.cached_prompt_tokens
        expected = _FIRST_BYTE_FLOOR_SECONDS + uncached * costs.prefill_seconds_per_token
        return expected + output_tokens * costs.decode_seconds_per_token

    def doubt_models(self) -> None:
        """A replica answered that it does not have a model that it lists: ask all replicas for theirs."""
        self._ask_for_models(lambda: None)

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
        queued.produced_tokens = 0
        self._queue_of(queued).take_back(queued, now)
        queued.replica.ledger.leave(queued)
        queued.failed_replica = queued.replica
        del self._sent[queued.arrived.number]
        self._enqueued(request, RequestMove.TAKEN_BACK)
        self.counts.retried += 1
        self.pump()

    def end(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None = None) -> None:
        """The one end of every request, wherever it stands: its place is free. The table refuses a second end."""
        now, queued, replica = self.now(), request.queued, request.queued.replica
        was_queued = request.stage is _QUEUED
        self.relays.pop(queued.arrived.number, None)
        self._sent.pop(queued.arrived.number, None)
        if was_queued:
            self._leaves_queue(request, _MOVE_ENDED)
        else:
            request.move(_MOVE_ENDED)
        self.counts.end(outcome, reason)
        try:
            if was_queued:
                self._queue_of(queued).cancel(queued, now)
            elif replica is not None:
                queued.produced_tokens = -(-request.relayed.output_tokens // queued.sequences)
                self._tell_scheduler(request, replica, outcome, now)
        except Exception as error:
            self.errors.contained("policies", error)
        if not was_queued and replica is not None:
            replica.ledger.leave(queued)
        for observer in self._observers:
            try:
                observer.ended(request, outcome, reason, now)
            except Exception as error:
                self.errors.contained("observing", error)
        self.pump()

    def contain(self, relay: Relay, place: str, error: Exception) -> None:
        """An exception passed through one request: count it, and end that request alone."""
        self.errors.contained(place, error)
        try:
            relay.break_off()
        except Exception as second:
            self.errors.contained(place, second)
        if relay.request.stage is not _ENDED:
            self.end(relay.request, Outcome.FAILED, Reason.INTERNAL_ERROR)

    def _tell_scheduler(self, request: GatewayRequest, replica: UpstreamReplica, outcome: Outcome, now: float) -> None:
        """Tell the scheduler that admitted a request of its end; only a whole answer teaches lengths."""
        queued = request.queued
        scheduler = queued.admitted_by
        if scheduler is None:
            return
        if outcome is _COMPLETED and request.relayed.status == 200 and queued.produced_tokens > 0:
            scheduler.complete(queued, now)
            if not request.arrived.streams and request.arrived.endpoint.is_generation:
                self._measure(queued, replica, now, queued.produced_tokens)
        else:
            scheduler.left(queued, now)

    # As time passes

    def sweep(self, now: float) -> None:
        """Refuse requests that waited too long, give up on silent replicas, refresh the ledgers. Once a second."""
        for _ in self.sweep_in_steps(now):
            pass

    def sweep_in_steps(self, now: float) -> Iterator[None]:
        """The same, a request at a step."""
        for refusing in (self._refuse_all_unserved, self._refuse_late, self._refuse_overdue):
            try:
                yield from refusing(now)
            except Exception as error:
                self.errors.contained("sweep", error)
        self.errors.guard("sweep", self._forget_idle_queues, now)
        for number, relay in list(self._sent.items()):
            if number not in self._sent:  # it ended between two steps
                continue
            try:
                self._assume_prefilled(relay.request, now)
                relay.check_silence(now)
            except Exception as error:
                self.contain(relay, "sweep", error)
            yield
        owing = {relay.request.queued.replica for relay in self._sent.values() if self._is_due(relay.request, now)}
        for replica in self.replicas:
            self.errors.guard("sweep", _look_at, replica, now)
            self.errors.guard("sweep", self._report_preemptions, replica)
            self.errors.guard("sweep", replica.look_for_stall, now, owes=replica in owing)
            self.errors.guard("sweep", replica.ledger.refresh)
            self.errors.guard("sweep", replica.pool.sweep, now)
        self.pump()

    def _report_preemptions(self, replica: UpstreamReplica) -> None:
        """Pass on what a replica's engine preempted: the mean of all requests there, shared out by queue."""
        preemptions = replica.take_preemptions()
        if not preemptions:
            return
        held: Counter[QueueKey] = Counter()
        for queued in replica.ledger.running():
            if isinstance(queued, QueuedRequest) and queued.queue_key is not None:
                held[queued.queue_key] += uncached_prefill_tokens(queued)
        requests = replica.ledger.requests + replica.state.other_requests
        for key, tokens in held.items():
            if key in self.queues:
                self.queues[key].memory_lost(preemptions * tokens // requests)

    def _forget_idle_queues(self, now: float) -> None:
        """A queue without a request for long goes; what its policies learned is kept."""
        longest = self.settings.queue.idle_seconds
        idle = [queue for queue in self.queues.values() if not len(queue) and now - queue.used_at >= longest]
        if not idle:
            return
        at_replicas = {relay.request.queued.queue_key for relay in self._sent.values()}
        for queue in idle:
            if queue.key not in at_replicas:
                del self.queues[queue.key]
                self._turns.forget(queue)
                self._forget(queue.key)

    def _refuse_overdue(self, now: float) -> Iterator[None]:
        limit = self.settings.queue.timeout_seconds
        # Only the oldest are looked at: with 100,000 waiting a look at all would hold up every stream.
        overdue = takewhile(lambda relay: now - relay.request.arrived.arrived_at >= limit, self.relays.values())
        for relay in list(overdue):
            if relay.request.stage is _QUEUED:
                message = f"the request waited in the queue for {limit:g} s, the limit `queue.timeout_seconds`"
                drain_seconds = self._queue_of(relay.request.queued).drain_seconds()
                self._refuse_waiting(relay, message, Reason.QUEUE_TIMEOUT, drain_seconds)
                yield

    def _refuse_late(self, now: float) -> Iterator[None]:
        for request in self._deadlines.passed(now):
            if request.stage is not _QUEUED:  # sent when the one before it was refused
                continue
            bound = (request.arrived.deadline or now) - request.arrived.arrived_at
            message = f"the first token was wanted within {bound:.2f} s, which have passed in the queue"
            drain_seconds = self._queue_of(request.queued).drain_seconds()
            relay = self.relays[request.arrived.number]
            self._refuse_waiting(relay, message, Reason.DEADLINE_UNMEETABLE, drain_seconds)
            yield

    def _refuse_all_unserved(self, now: float) -> Iterator[None]:
        grace = self.settings.health.no_replica_seconds
        demands = self._outages.given_up(self._waiting, self.replicas, now, grace)
        if not demands:
            return
        for relay in list(self.relays.values()):
            request = relay.request
            demand = demand_of(request.queued)
            if request.stage is not _QUEUED or demand not in demands:
                continue
            if not can_be_served(demand, self.replicas):  # none came back between two steps
                self._refuse_unserved(relay, f"no healthy replica has served this model for {grace:g} s")
            yield

    def _is_due(self, request: GatewayRequest, now: float) -> bool:
        """Whether silence tells something of its replica: an answer that is not streamed comes whole, after a while."""
        queued = request.queued
        if request.arrived.streams or request.stage is RequestStage.ANSWERING:
            return True
        # As expected when it arrived: what is expected of it since then grows with what it seems to have produced.
        output_tokens = queued.estimate.remaining_mean(0) if queued.estimate is not None else 0.0
        expected = self._expected_seconds(queued, output_tokens)
        return now - (queued.dispatched_at or now) >= _OVERDUE * expected

    def _assume_prefilled(self, request: GatewayRequest, now: float) -> None:
        """Without a stream the first byte is the last: the prompt counts as computed after a while."""
        queued = request.queued
        is_open = request.stage is _SENT and not request.arrived.streams
        if is_open and now - (queued.dispatched_at or now) >= _PREFILL_SECONDS:
            assert queued.replica is not None
            queued.replica.ledger.first_token(queued)

    def end_all(self) -> None:
        """End every request now: the process stops. Nothing is dispatched any more."""
        self.is_draining = self._is_stopped = True
        for relay in list(self.relays.values()):
            try:
                relay.cut_off(self._draining())
            except Exception as error:
                self.contain(relay, "end", error)

    def replace(self, settings: Settings, replicas: Iterable[UpstreamReplica], now: float) -> None:
        """Other settings from now on; no request is lost. Requests on replicas that go are finished there."""
        before = self.settings
        changed = (settings.policies, settings.tuning) != (before.policies, before.tuning)
        self.settings = settings
        self._has_room = _room_gate(settings)
        self._costs = settings.policies.costs
        self.replicas = list(replicas)
        if changed or self._routing.is_replaced or any(queue.is_replaced for queue in self.queues.values()):
            self._routing = RequestRouting(settings.policies, self.errors)
            self._accounts = SharedAccounts()
            self._unchanged = deque(self.queues.values())
            self._move_waiting()
        self.pump()

    def _move_waiting(self) -> None:
        """Queues, then their requests, the oldest first, go over to changed policies: so many as a turn takes."""
        until = self.now() + TURN_SECONDS
        for _ in chain(self._change_queues(), self._move_requests()):
            if self._go_on_soon is not None and self.now() >= until:
                self._go_on_soon(self._move_waiting)
                break
        self.pump()

    def _change_queues(self) -> Iterator[None]:
        """A queue at a step: what its policies have learned goes over to the changed ones, which takes its time."""
        while self._unchanged:
            queue = self._unchanged.popleft()
            if self.queues.get(queue.key) is queue:  # not forgotten meanwhile
                self.errors.guard("policies", queue.change_policies, self.settings.policies, self._accounts)
                yield

    def _move_requests(self) -> Iterator[None]:
        for queue in list(self.queues.values()):
            while queue.move_one(self.now()):
                yield


def _look_at(replica: UpstreamReplica, now: float) -> None:
    """Write down the tokens that came by now for every request there."""
    for request, tokens in replica.ledger.progress(now):
        request.produced_tokens = tokens


def _room_gate(settings: Settings) -> Callable[[UpstreamReplica, QueuedRequest], bool]:
    """Whether a replica has room; an admission policy that weighs memory decides itself what outputs will need."""
    if Need.MEMORY in needs_of("admission", settings.policies.admission):
        return partial(UpstreamReplica.has_room, for_output=False)
    return UpstreamReplica.has_room
