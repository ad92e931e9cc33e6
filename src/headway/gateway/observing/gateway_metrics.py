"""Prometheus metrics of the gateway. Names follow llm-d's flow control under our prefix; label values are bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from headway.gateway.observing.histograms import BucketHistograms, Counters
from headway.gateway.observing.logging_setup import lines_dropped
from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.request_state import GatewayRequest

LABEL_VALUES_MAX = 1_000
OTHER = "other"
_FAIRNESS_HELP = "Jain's index of the tenants' mean speed over the last 1,000 streams; 1 is fair"
_FAIR_OVER = 1_000  # latest streams that the fairness index is computed over


class BoundedLabels:
    """The first `LABEL_VALUES_MAX` values of a label; later ones become "other"."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """The value, or "other" beyond the limit."""
        if value in self._known:
            return value
        if len(self._known) >= LABEL_VALUES_MAX:
            return OTHER
        self._known.add(value)
        return value


class GatewayMetrics:
    """Counters and histograms, updated at the end of each request; gauges are read at each scrape."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._model, self._tenant = BoundedLabels(), BoundedLabels()
        labels = ["model_name", "fairness_id"]
        ended = [*labels, "outcome", "reason"]
        self._requests = Counters("headway_flow_control_requests", "Requests that ended, by outcome and reason", ended)
        self._rejected = Counters(
            "headway_rejected_requests",
            "Requests rejected before the queue: malformed, or without a valid API key",
            ["status"],
        )
        self._queue = BucketHistograms(
            "headway_flow_control_request_queue_duration_seconds", "Seconds from arrival to dispatch", labels
        )
        self._ttft = BucketHistograms(
            "headway_request_ttft_seconds", "Seconds from arrival to the first event of a stream (TTFT)", labels
        )
        self._duration = BucketHistograms(
            "headway_request_duration_seconds", "Seconds from arrival to the end of the response", labels
        )
        self._forecast = BucketHistograms(
            "headway_wait_forecast_error_seconds",
            "Absolute difference of predicted and actual queue time, in seconds",
            [],
        )
        self._tokens = Counters(
            "headway_tokens", "Tokens as counted by the replicas, by type: input or output", [*labels, "type"]
        )
        self._registry.register(self)
        self._recent: deque[tuple[str, float]] = deque(maxlen=_FAIR_OVER)

    def watch(self, dispatcher: Dispatcher) -> None:
        """Read the gauges from this dispatcher."""
        self._registry.register(_Gauges(dispatcher, self))

    def collect(self) -> Iterator[Metric]:
        """The metrics at this scrape (prometheus_client)."""
        for counters in (self._requests, self._rejected, self._tokens):
            yield from counters.collect()
        for histograms in (self._queue, self._ttft, self._duration, self._forecast):
            yield from histograms.collect()

    def rejected(self, status: int) -> None:
        """Count a request that never entered the queue."""
        self._rejected[str(status),] += 1

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def fairness(self) -> float | None:
        """Jain's index of the tenants' mean speed (1 / TTFT) over the latest streams; None without any.

        Source: Jain, Chiu, Hawe, "A quantitative measure of fairness" (1984).
        """
        speeds: dict[str, list[float]] = {}
        for tenant, seconds in self._recent:
            speeds.setdefault(tenant, []).append(1.0 / max(seconds, 1e-3))
        means = [sum(values) / len(values) for values in speeds.values()]
        squares = sum(mean * mean for mean in means)
        return sum(means) ** 2 / (len(means) * squares) if squares else None

    def dispatched(self, request: GatewayRequest, now: float) -> None:
        """Observe the wait, and how wrong its forecast was."""
        waited, predicted = now - request.arrived.arrived_at, request.queued.predicted_wait_seconds
        self._queue[self._labels(request)].observe(waited)
        if predicted is not None:
            self._forecast[()].observe(abs(predicted - waited))

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Count the request; observe the times and tokens of one that was answered."""
        labels, relayed, arrived_at = self._labels(request), request.relayed, request.arrived.arrived_at
        self._requests[*labels, str(outcome), str(reason or "")] += 1
        if outcome is not Outcome.COMPLETED or relayed.status != 200:
            return
        self._duration[labels].observe(now - arrived_at)
        if request.arrived.streams and relayed.first_byte_at is not None:
            ttft = relayed.first_byte_at - arrived_at
            self._ttft[labels].observe(ttft)
            self._recent.append((labels[1], ttft))
        if relayed.usage is not None:
            self._tokens[*labels, "input"] += relayed.usage.prompt_tokens
            self._tokens[*labels, "output"] += relayed.usage.output_tokens

    def _labels(self, request: GatewayRequest) -> tuple[str, str]:
        # A client may invent model names: only those that a replica lists become values of the label.
        key = request.queued.queue_key
        return self._model(key.model if key is not None else ""), self._tenant(request.arrived.tenant)


class _Gauges:
    """Gauges, read from the dispatcher at each scrape."""

    def __init__(self, dispatcher: Dispatcher, metrics: GatewayMetrics) -> None:
        self._dispatcher = dispatcher
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """The metrics at this scrape (prometheus_client)."""
        yield from self._queues()
        yield from self._replicas()
        yield from self._faults()
        yield CounterMetricFamily(
            "headway_log_lines_dropped", "Log lines dropped because the reader of the log is too slow", lines_dropped()
        )
        fairness = self._metrics.fairness()
        if fairness is not None:
            yield GaugeMetricFamily("headway_jains_fairness_index", _FAIRNESS_HELP, fairness)
        yield GaugeMetricFamily("headway_requests_inside", "Requests queued or running", self._dispatcher.counts.inside)

    def _faults(self) -> Iterator[Metric]:
        errors = self._dispatcher.errors
        contained = CounterMetricFamily(
            "headway_internal_errors", "Exceptions contained in the request they belong to", labels=["place"]
        )
        faults = CounterMetricFamily(
            "headway_policy_faults", "Decisions in which a policy raised or made no sense", labels=["kind", "reason"]
        )
        for place, number in errors.by_place.items():
            contained.add_metric([place], number)
        for (kind, reason), number in errors.policy_faults.items():
            faults.add_metric([kind, reason], number)
        yield from (contained, faults)

    def _queues(self) -> Iterator[Metric]:
        size = GaugeMetricFamily("headway_flow_control_queue_size", "Requests queued", labels=["model_name", "kind"])
        bytes_ = GaugeMetricFamily(
            "headway_flow_control_queue_bytes", "Bytes of queued request bodies", labels=["model_name", "kind"]
        )
        drain = GaugeMetricFamily(
            "headway_queue_drain_seconds", "Predicted seconds until the queue is empty", labels=["model_name", "kind"]
        )
        for key, queue in self._dispatcher.queues.items():
            size.add_metric(list(key), len(queue))
            bytes_.add_metric(list(key), queue.waiting.bytes)
            seconds = queue.drain_seconds()
            if seconds is not None:
                drain.add_metric(list(key), seconds)
        yield from (size, bytes_, drain)

    def _replicas(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "headway_replica_up", "1 if the replica is healthy and may be sent requests, else 0", labels=["replica"]
        )
        running = GaugeMetricFamily(
            "headway_replica_requests", "Requests dispatched to the replica and not ended", labels=["replica"]
        )
        limit = GaugeMetricFamily(
            "headway_replica_requests_max",
            "Limit of concurrent requests at the replica, adaptive or configured",
            labels=["replica"],
        )
        labels = ["replica", "signal"]
        age = GaugeMetricFamily(
            "headway_replica_report_age_seconds", "Seconds since the replica last reported this signal", labels=labels
        )
        saturation = GaugeMetricFamily(
            "headway_flow_control_pool_saturation", "Mean over the replicas that are up of requests / limit of requests"
        )
        ejections = CounterMetricFamily(
            "headway_replica_ejections", "Times the replica was ejected or not reached", labels=["replica"]
        )
        withheld = CounterMetricFamily(
            "headway_replica_ejections_withheld",
            "Times the replica stayed although it failed, because too few others were up",
            labels=["replica"],
        )
        delayed = CounterMetricFamily(
            "headway_connections_delayed",
            "Tries to connect to a replica that wait for descriptors, memory or ports of this process",
            value=self._dispatcher.shortages.delayed,
        )
        seats = [(r.ledger.requests, r.ledger.requests_max) for r in self._dispatcher.replicas if r.is_up]
        for replica in self._dispatcher.replicas:
            up.add_metric([replica.name], float(replica.is_up))
            running.add_metric([replica.name], replica.ledger.requests)
            limit.add_metric([replica.name], replica.ledger.requests_max)
            for signal, seconds in replica.ages_seconds().items():
                age.add_metric([replica.name, signal], seconds)
            ejections.add_metric([replica.name], replica.state.ejections_total)
            withheld.add_metric([replica.name], replica.state.ejections_withheld)
        if seats:
            saturation.add_metric([], sum(used / most for used, most in seats) / len(seats))
        yield from (up, running, limit, age, saturation, ejections, withheld, delayed)
