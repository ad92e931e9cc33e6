"""The gateway's brain: who may wait, who goes next and where, and what is said to those who are turned away.

Laws: `Counts` (nothing is lost, nothing ends twice); a request leaves the queue only for a replica with room; with
nobody waiting a request is sent at once; who is refused is told when to come back.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Protocol

from headway.gateway.openai.error_responses import RETRY_SECONDS_MAX, Reason
from headway.gateway.queueing.counts import Counts, Outcome
from headway.gateway.queueing.deadlines import Deadlines
from headway.gateway.queueing.model_queue import ModelQueue, Prepare, QueueKey
from headway.gateway.queueing.outages import Kind, Outages, kind_of, lives
from headway.gateway.queueing.queued_request import QueuedRequest
from headway.gateway.relay.exchange import Exchange, ExchangeStage
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import Settings
from headway.policies.catalog import build
from headway.policies.contracts import DispatchListener, RoutingPolicy

_JITTER = 0.2  # Retry-After is drawn within ± this share, so that those turned away together do not return together
_RETRY_UNKNOWN_SECONDS = 1.0
_RETRY_NO_REPLICA_SECONDS = 5.0
_PREFILL_SECONDS = 1.0
_FIRST_BYTE_FLOOR_SECONDS = 0.02  # of any answer, however short its prompt


class RequestObserver(Protocol):
    """Whoever keeps figures."""

    def ended(self, exchange: Exchange, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """A request ended."""

    def dispatched(self, exchange: Exchange, now: float) -> None:
        """A request left the queue."""


class Dispatcher:
    """One per process. `clock` gives seconds; everything is called from the event loop's one thread."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        watchers: Sequence[RequestObserver] = (),
        prepare: Prepare = lambda key, chosen, policies: (),
    ) -> None:
        """`prepare` is shown every queue's fresh policies, see `ModelQueue`."""
        self.settings = settings
        self._prepare = prepare
        self.counts = Counts()
        self.replicas: list[UpstreamReplica] = []
        self.lines: dict[QueueKey, ModelQueue] = {}
        self.exchanges: dict[Exchange, None] = {}  # every one that has not ended, in order of arrival
        self._sent: dict[Exchange, None] = {}  # those at a replica
        self._waiting: Counter[Kind] = Counter()  # those in a queue
        self.is_draining = False
        self.now = clock  # an attribute, because it is asked many times a request
        self._watchers = watchers
        self._chance = random.Random(settings.policies.seed)
        self._routing = _routing(settings)
        self._dispatch_listener = _dispatch_listener(self._routing)
        self._outages = Outages()
        self._deadlines = Deadlines()
        self._is_pumping = False
        self._pump_again = False
        self._turn = 0

    # Coming in

    def announce(self, exchange: Exchange) -> bool:
        """A request came and counts from now on; False if it was told that we are going. Else `arrive` follows."""
        self.counts.arrive()
        self.exchanges[exchange] = None
        if self.is_draining:
            retry = self._jittered(_RETRY_NO_REPLICA_SECONDS)
            exchange.answer_error(503, "this gateway is shutting down", Reason.DRAINING, Outcome.REFUSED, retry)
        return not self.is_draining

    def arrive(self, exchange: Exchange) -> None:
        """An announced request is refused now, sent now, or waits."""
        now = self.now()
        refusal = self._refusal(exchange)
        if refusal is not None:
            status, message, reason, retry_seconds = refusal
            exchange.answer_error(status, message, reason, Outcome.REFUSED, retry_seconds)
            return
        line = exchange.line = self._line(exchange)
        line.arrive(exchange, now)
        self._queue(exchange)
        if self._misses_deadline(exchange, now):
            wait = exchange.predicted_wait_seconds or 0.0
            bound = (exchange.request.deadline or now) - now
            message = f"the first token is wanted within {bound:.2f} s and would come after about {wait:.2f} s"
            self._turn_away(exchange, message, Reason.DEADLINE_UNMEETABLE, wait - bound)
            return
        self.pump()
        exchange.has_waited = exchange.is_queued

    def _refusal(self, exchange: Exchange) -> tuple[int, str, Reason, float | None] | None:
        """(status, message, reason, seconds until a retry), or None to let it in."""
        serving = [replica for replica in self.replicas if replica.serves(exchange.model)]
        if self.replicas and not serving:
            return 404, f"the model {exchange.model!r} does not exist here", Reason.UNKNOWN_MODEL, None
        if not lives(kind_of(exchange), serving):
            retry = self._jittered(self._seconds_to_next_probe())
            return 503, "no replica that could answer this is up", Reason.NO_REPLICA, retry
        return self._full(exchange)

    def _full(self, exchange: Exchange) -> tuple[int, str, Reason, float | None] | None:
        bounds, request = self.settings.queue, exchange.request
        lines = [line for line in self.lines.values() if len(line)]
        if not lines:
            return None
        sums = (
            (sum(map(len, lines)) + 1, bounds.max_requests, "requests"),
            (sum(line.waiting_tokens for line in lines) + request.prompt_tokens, bounds.max_tokens, "prompt tokens"),
            (sum(line.waiting_bytes for line in lines) + request.body_bytes, bounds.max_bytes, "bytes"),
        )
        for amount, most, what in sums:
            if amount > most:
                retry = self._drain_seconds(exchange)
                return 429, f"the queue is full ({most:,} {what})", Reason.QUEUE_FULL, retry
        held = [line.held[request.payer] for line in lines if request.payer in line.held]
        own = (
            (sum(one.requests for one in held) + 1, bounds.tenant_max_requests, "requests"),
            (sum(one.tokens for one in held) + request.prompt_tokens, bounds.tenant_max_tokens, "prompt tokens"),
            (sum(one.bytes for one in held) + request.body_bytes, bounds.tenant_max_bytes, "bytes"),
        )
        for amount, limit, what in own:
            if limit is not None and amount > limit and held:
                message = f"too much of yours is waiting already ({limit:,} {what})"
                return 429, message, Reason.TENANT_QUEUE_FULL, self._drain_seconds(exchange)
        return None

    def _line(self, exchange: Exchange) -> ModelQueue:
        if exchange.line is not None:
            return exchange.line
        known = any(replica.state.models and exchange.model in replica.state.models for replica in self.replicas)
        kind = "generation" if exchange.is_generation else "other"
        key = QueueKey(exchange.model if known else "", kind)  # unknown names share one line, so that there are few
        line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = ModelQueue(key, self.settings.policies, self._prepare)
        return line

    def _misses_deadline(self, exchange: Exchange, now: float) -> bool:
        deadline, wait = exchange.request.deadline, exchange.predicted_wait_seconds
        if deadline is None or wait is None or self._has_room(exchange):
            return False
        return now + wait > deadline

    def _has_room(self, exchange: Exchange) -> bool:
        return len(self._line(exchange)) <= 1 and bool(self._candidates(exchange.request))

    def _turn_away(
        self, exchange: Exchange, message: str, reason: Reason, seconds: float | None, status: int = 429
    ) -> None:
        retry = self._jittered(_RETRY_UNKNOWN_SECONDS if seconds is None else seconds)
        exchange.answer_error(status, message, reason, Outcome.REFUSED, retry)

    def _strand(self, exchange: Exchange, message: str) -> None:
        self._turn_away(exchange, message, Reason.NO_REPLICA, self._seconds_to_next_probe(), 503)

    # Going out

    def pump(self) -> None:
        """Send whoever may go, in the order of the policies, until nobody may."""
        if self._is_pumping:
            self._pump_again = True
            return
        self._is_pumping = True
        try:
            while True:
                self._pump_again = False
                lines = [line for line in self.lines.values() if len(line)]
                self._turn += 1
                for number in range(len(lines)):
                    self._drain(lines[(number + self._turn) % len(lines)])
                if not self._pump_again:
                    return
        finally:
            self._is_pumping = False

    def _drain(self, line: ModelQueue) -> None:
        now = self.now()
        while (head := line.scheduler.head(now)) is not None:
            assert isinstance(head, QueuedRequest)
            candidates = [
                replica
                for replica in self._candidates(head)
                if not replica.ledger.requests
                or not line.scheduler.hold_steps(head, replica.ledger, replica.memory(), now)
            ]
            if not candidates:
                if head.exchange.avoid is None or lives(kind_of(head.exchange), self.replicas):
                    return
                # Only the replica that failed it is left: it must not keep those behind it waiting.
                self._strand(head.exchange, f"replica {head.exchange.avoid.name} failed, and no other is up")
                continue
            views = {id(replica.ledger): replica for replica in candidates}
            chosen = self._routing.choose(head, head.prefix, [replica.ledger for replica in candidates], now)
            if chosen is None:
                return
            self._dispatch(line, views[id(chosen)], now)

    def _candidates(self, request: QueuedRequest) -> list[UpstreamReplica]:
        exchange = request.exchange
        return [
            replica
            for replica in self.replicas
            if replica.is_up
            and replica is not exchange.avoid
            and replica.has_room(request)
            and replica.serves(exchange.model)
        ]

    def _dispatch(self, line: ModelQueue, replica: UpstreamReplica, now: float) -> None:
        request = line.admit(now)
        exchange = request.exchange
        self._unqueue(exchange)
        self._sent[exchange] = None
        exchange.scheduler = line.scheduler
        replica.ledger.enter(request)
        if self._dispatch_listener is not None:
            self._dispatch_listener.routed(request, request.prefix, replica.ledger)
        exchange.dispatch(replica)
        for watcher in self._watchers:
            watcher.dispatched(exchange, now)

    # What becomes of it

    def first_byte(self, exchange: Exchange) -> None:
        """Of `Dispatching`."""
        replica, now = exchange.replica, self.now()
        assert replica is not None
        replica.ledger.first_token(exchange.request)
        if exchange.scheduler is not None and exchange.status == 200:
            exchange.scheduler.first_token(exchange.request, now)
        if exchange.status == 200 and exchange.streams:
            self._measure(exchange, replica, now, 0)

    def _measure(self, exchange: Exchange, replica: UpstreamReplica, now: float, output_tokens: int) -> None:
        costs, began = self.settings.policies.costs, exchange.dispatched_at or now
        uncached = exchange.request.prompt_tokens - exchange.request.cached_prompt_tokens
        expected = _FIRST_BYTE_FLOOR_SECONDS + uncached * costs.prefill_seconds_per_token
        replica.answered(now - began, expected + output_tokens * costs.decode_seconds_per_token)

    def retry(self, exchange: Exchange, why: str) -> bool:
        """Of `Dispatching`: back to the front of its queue, for another replica; False if there is none."""
        replica, now = exchange.replica, self.now()
        others = [r for r in self.replicas if r.is_up and r is not replica and r.serves(exchange.model)]
        if replica is None or not others:
            return False
        replica.ledger.leave(exchange.request)
        line = self._line(exchange)
        if line.scheduler is exchange.scheduler:
            line.back(exchange.request, now)
        else:  # the policies were changed meanwhile
            if exchange.scheduler is not None:
                exchange.scheduler.left(exchange.request, now)
            line.arrive(exchange, now)
        del self._sent[exchange]
        self._queue(exchange)
        self.counts.retried += 1
        self.pump()
        return True

    def ended(self, exchange: Exchange, outcome: Outcome, reason: Reason | None) -> None:
        """Of `Dispatching`."""
        now, request, replica = self.now(), exchange.request, exchange.replica
        self.exchanges.pop(exchange, None)
        self._sent.pop(exchange, None)
        self.counts.end(outcome, reason)
        if exchange.is_queued:
            self._unqueue(exchange)
            assert exchange.line is not None
            exchange.line.cancel(request, now)
        elif replica is not None:
            request.produced_tokens = exchange.output_tokens
            self._told_end(exchange, outcome, now)
            replica.ledger.leave(request)
        for watcher in self._watchers:
            watcher.ended(exchange, outcome, reason, now)
        del request.exchange  # they name each other: what nobody needs is freed now, not when garbage is collected
        self.pump()

    def _told_end(self, exchange: Exchange, outcome: Outcome, now: float) -> None:
        """The scheduler that admitted it learns of its end; only a whole answer teaches lengths."""
        scheduler, request, replica = exchange.scheduler, exchange.request, exchange.replica
        if scheduler is None or replica is None:
            return
        if outcome is Outcome.COMPLETED and exchange.status == 200 and request.produced_tokens > 0:
            scheduler.complete(request, now)
            if not exchange.streams and exchange.is_generation:
                self._measure(exchange, replica, now, request.produced_tokens)
        else:
            scheduler.left(request, now)

    # As time passes

    def sweep(self, now: float) -> None:
        """Turn away who waited too long, give up on replicas that are silent, and keep the books fresh."""
        self._give_up_stranded(now)
        self._give_up_late(now)
        limit = self.settings.queue.timeout_seconds
        # Only the oldest are looked at: with a hundred thousand waiting a look at all would hold up every stream.
        for exchange in list(takewhile(lambda one: now - one.arrived_at >= limit, self.exchanges)):
            if exchange.is_queued:
                message = f"it waited {now - exchange.arrived_at:.0f} s in the queue, the longest allowed"
                self._turn_away(exchange, message, Reason.QUEUE_TIMEOUT, self._line_drain(exchange))
        for exchange in list(self._sent):
            self._check_silence(exchange, now)
        for replica in self.replicas:
            for request in replica.ledger.running():
                assert isinstance(request, QueuedRequest)
                request.produced_tokens = request.exchange.produced()
            replica.ledger.refresh()
            replica.pool.sweep(now)
        self.pump()

    def _give_up_late(self, now: float) -> None:
        for exchange in self._deadlines.passed(now):
            bound = (exchange.request.deadline or now) - exchange.arrived_at
            message = f"the first token was wanted within {bound:.2f} s, which have passed in the queue"
            self._turn_away(exchange, message, Reason.DEADLINE_UNMEETABLE, self._line_drain(exchange))

    def _give_up_stranded(self, now: float) -> None:
        grace = self.settings.health.no_replica_seconds
        kinds = self._outages.given_up(self._waiting, self.replicas, now, grace)
        if kinds:
            for exchange in [one for one in self.exchanges if one.is_queued and kind_of(one) in kinds]:
                self._strand(exchange, f"no replica that could answer this has been up for {grace:g} s")

    def _queue(self, exchange: Exchange) -> None:
        exchange.is_queued = True
        self._waiting[kind_of(exchange)] += 1
        self._deadlines.queued(exchange)

    def _unqueue(self, exchange: Exchange) -> None:
        exchange.is_queued = False
        kind = kind_of(exchange)
        self._waiting[kind] -= 1
        if not self._waiting[kind]:
            del self._waiting[kind]

    def _check_silence(self, exchange: Exchange, now: float) -> None:
        health, began = self.settings.health, exchange.dispatched_at or now
        if exchange.stage is ExchangeStage.SENT and not exchange.streams and now - began >= _PREFILL_SECONDS:
            # Its first byte is its last: that its prompt is computed has to be assumed.
            assert exchange.replica is not None
            exchange.replica.ledger.first_token(exchange.request)
        if exchange.stage is ExchangeStage.SENT and now - began >= health.first_byte_seconds:
            exchange.gave_up(f"the replica did not answer within {health.first_byte_seconds:g} s")
        elif exchange.stage is ExchangeStage.ANSWERING:
            if exchange.pieces != exchange.pieces_seen or not exchange.client.writable:
                exchange.pieces_seen, exchange.seen_at = exchange.pieces, now
            elif now - exchange.seen_at >= health.silent_seconds:
                exchange.gave_up(f"the replica fell silent for {health.silent_seconds:g} s in its answer")

    def replace(self, settings: Settings, replicas: Iterable[UpstreamReplica], now: float) -> None:
        """Other settings, from now on; nobody is lost. Requests on replicas that go are finished there."""
        before = self.settings
        changed = (settings.policies, settings.tuning) != (before.policies, before.tuning)
        self.settings = settings
        self.replicas = list(replicas)
        if changed:
            self._routing = _routing(settings)
            self._dispatch_listener = _dispatch_listener(self._routing)
            for line in self.lines.values():
                line.moved_to(settings.policies, now)
        self.pump()

    # Coming back later

    def _drain_seconds(self, exchange: Exchange) -> float:
        seconds = self._line_drain(exchange)
        return self._jittered(_RETRY_UNKNOWN_SECONDS if seconds is None else seconds)

    def _line_drain(self, exchange: Exchange) -> float | None:
        line = self._line(exchange)
        return line.forecast.drain_seconds(line.waiting_work)

    def _seconds_to_next_probe(self) -> float:
        probes = [replica.state.probe_at - self.now() for replica in self.replicas]
        return max(1.0, min([_RETRY_NO_REPLICA_SECONDS, *probes]))

    def _jittered(self, seconds: float) -> float:
        return min(RETRY_SECONDS_MAX, max(0.05, seconds) * self._chance.uniform(1 - _JITTER, 1 + _JITTER))


def _dispatch_listener(routing: RoutingPolicy) -> DispatchListener | None:
    return routing if isinstance(routing, DispatchListener) else None


def _routing(settings: Settings) -> RoutingPolicy:
    chosen = settings.policies
    return build("routing", chosen.routing, chosen.options.get("routing"), costs=chosen.costs, seed=chosen.seed)
