"""Metrics by class, online and offline: requests, tokens, waits; and what holds offline requests back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from headway.domain.request import RequestClass
from headway.gateway.observing import prometheus_text as prometheus
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.request_state import GatewayRequest

_CLASSES: tuple[RequestClass, ...] = ("online", "offline")
_WAIT = prometheus.HistogramFamily(
    "headway_class_queue_duration_seconds", "Seconds from arrival to dispatch, by class: online or offline"
)


class ClassMetrics:
    """Counted at dispatch and at the end of each request."""

    def __init__(self) -> None:
        self._waits = {name: prometheus.BucketHistogram() for name in _CLASSES}
        self._ended: Counter[tuple[RequestClass, Outcome]] = Counter()
        self._tokens: Counter[tuple[RequestClass, str]] = Counter()

    def dispatched(self, request: GatewayRequest, now: float) -> None:
        """Observe its wait."""
        self._waits[request.arrived.request_class].observe(now - request.arrived.arrived_at)

    def ended(self, request: GatewayRequest, outcome: Outcome) -> None:
        """Count it, and its tokens as its replica counted them."""
        name, usage = request.arrived.request_class, request.relayed.usage
        self._ended[name, outcome] += 1
        if usage is not None:
            self._tokens[name, "input"] += usage.prompt_tokens
            self._tokens[name, "output"] += usage.output_tokens

    def lines(self, dispatcher: Dispatcher, now: float) -> Iterator[str]:
        """All of them in Prometheus's text format."""
        yield prometheus.counter(
            "headway_class_requests",
            "Requests that ended, by class and outcome",
            [({"class": name, "outcome": str(outcome)}, number) for (name, outcome), number in self._ended.items()],
        )
        yield prometheus.counter(
            "headway_class_tokens",
            "Tokens as counted by the replicas, by class and type: input or output",
            [({"class": name, "type": kind}, number) for (name, kind), number in self._tokens.items()],
        )
        yield _WAIT.head
        for name, histogram in self._waits.items():
            yield _WAIT.lines(histogram, f'class="{name}"')
        waiting, oldest = offline_waiting(dispatcher, now)
        yield prometheus.gauge(
            "headway_class_queue_size",
            "Requests queued, by class",
            [
                ({"class": "online"}, sum(map(len, dispatcher.queues.values())) - waiting),
                ({"class": "offline"}, waiting),
            ],
        )
        yield prometheus.gauge(
            "headway_offline_oldest_wait_seconds",
            "Seconds that the oldest offline request has waited by now; 0 where none waits",
            [({}, oldest)],
        )
        bound = dispatcher.served_queues.offline
        yield prometheus.counter(
            "headway_offline_held",
            "How often no replica took the next offline request, by reason",
            [({"reason": reason}, number) for reason, number in bound.held.items()],
        )
        watched = [(replica, bound.watch_of(replica)) for replica in dispatcher.replicas]
        yield prometheus.gauge(
            "headway_offline_requests",
            "Offline requests at a replica",
            [({"replica": one.name}, sum(r.is_offline for r in one.ledger.running())) for one, _ in watched],
        )
        yield prometheus.gauge(
            "headway_offline_requests_max",
            "Limit of these, which follows what they add to its decode steps",
            [({"replica": one.name}, watch.offline_max) for one, watch in watched],
        )
        yield prometheus.gauge(
            "headway_offline_step_seconds",
            "Seconds of a decode step with offline requests at the replica, lately",
            [
                ({"replica": one.name}, watch.seconds_beside)
                for one, watch in watched
                if watch.seconds_beside is not None
            ],
        )


def offline_waiting(dispatcher: Dispatcher, now: float) -> tuple[int, float]:
    """How many offline requests wait, and for how many seconds the oldest has."""
    offline = [queue.scheduler.queue.offline for queue in dispatcher.queues.values()]
    oldest = min([request.arrived_at for queue in offline for request in queue], default=now)
    return sum(map(len, offline)), max(0.0, now - oldest)
