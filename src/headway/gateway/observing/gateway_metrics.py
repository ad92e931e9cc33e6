"""Prometheus metrics of the gateway. Names follow llm-d's flow control under our prefix; series are bounded."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from itertools import chain

from headway.gateway.observing import prometheus_text as prometheus
from headway.gateway.observing.class_metrics import ClassMetrics
from headway.gateway.observing.kv_event_metrics import kv_event_metrics
from headway.gateway.observing.logging_setup import lines_dropped
from headway.gateway.observing.loop_watch import LoopWatch
from headway.gateway.observing.replica_metrics import replica_metrics
from headway.gateway.observing.traffic_series import BoundedLabels, SeriesByLabels, TrafficSeries
from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome, RetryCause
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.replicas.inter_token_latency import TOKEN_SECONDS
from headway.gateway.replicas.model_lists import is_listed
from headway.gateway.wire.shared_limits import SharedLimits

# Bound once: on Python 3.11 a member of an enum takes forty times as long through its class.
_COMPLETED = Outcome.COMPLETED
_FAIRNESS_HELP = "Jain's index of the tenants' mean speed over the last 1,000 streams; 1 is fair"
_SLICE = 100  # series written at one turn of the event loop
_FAIR_OVER = 1_000  # latest streams that the fairness index is computed over
_REQUESTS = "headway_flow_control_requests", "Requests that ended, by outcome and reason"
_TOKENS = "headway_tokens", "Tokens as counted by the replicas, by type: input or output"
_QUEUE = prometheus.HistogramFamily(
    "headway_flow_control_request_queue_duration_seconds", "Seconds from arrival to dispatch"
)
_TTFT = prometheus.HistogramFamily(
    "headway_request_ttft_seconds", "Seconds from arrival to the first event of a stream (TTFT)"
)
_TPOT = prometheus.HistogramFamily(
    "headway_request_tpot_seconds",
    "Seconds per output token of a stream after its first one (TPOT)",
    TOKEN_SECONDS,
)
_DURATION = prometheus.HistogramFamily(
    "headway_request_duration_seconds", "Seconds from arrival to the end of the response"
)
_HISTOGRAMS = _QUEUE, _TTFT, _TPOT, _DURATION  # as `TrafficSeries.histograms`
_FORECAST = prometheus.HistogramFamily(
    "headway_wait_forecast_error_seconds", "Absolute difference of predicted and actual queue time, in seconds"
)


class GatewayMetrics:
    """Counters and histograms, updated at the end of each request; gauges are read at each scrape."""

    def __init__(self, series_max: int) -> None:
        self._series = SeriesByLabels(series_max)
        self._series_max = series_max
        self._rejected: Counter[tuple[int, str]] = Counter()
        self._forecast = prometheus.BucketHistogram()
        self._classes = ClassMetrics()
        self._recent: deque[tuple[str, float]] = deque(maxlen=_FAIR_OVER)
        self._dispatcher: Dispatcher | None = None
        self._loop_watch: LoopWatch | None = None
        self._held: Mapping[str, SharedLimits] = {}
        self.further: list[Callable[[], Iterator[str]]] = []  # that write more gauges

    def watch(self, dispatcher: Dispatcher, loop_watch: LoopWatch, held: Mapping[str, SharedLimits]) -> None:
        """Read the gauges from these; `held` is what clients hold, by the name of the address they came to."""
        self._dispatcher = dispatcher
        self._loop_watch = loop_watch
        self._held = held

    def rejected(self, status: int, reason: str) -> None:
        """Count a request that never entered the queue."""
        self._rejected[status, reason] += 1

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return b"".join(self.slices())

    def slices(self) -> Iterator[bytes]:
        """The same, in parts that take a millisecond or two each to write."""
        lines: list[str] = []
        for line in chain(self._traffic(), self._gauges()):
            lines.append(line)
            if len(lines) >= _SLICE:
                yield _encoded(lines)
                lines.clear()
        if lines:
            yield _encoded(lines)

    def _traffic(self) -> Iterator[str]:
        series = self._series.all()
        yield prometheus.counter_head(*_REQUESTS)
        yield from (_text_of(one)[0] for one in series)
        yield prometheus.counter(
            "headway_rejected_requests",
            "Requests rejected before the queue: malformed, without a valid API key, or beyond a limit of [wire]",
            [
                ({"status": str(status), "reason": reason}, number)
                for (status, reason), number in self._rejected.items()
            ],
        )
        yield prometheus.counter_head(*_TOKENS)
        yield from (_text_of(one)[1] for one in series)
        for place, family in enumerate(_HISTOGRAMS, 2):
            yield family.head
            yield from (_text_of(one)[place] for one in series)
        yield _FORECAST.head + _FORECAST.lines(self._forecast)

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
        series = self._series_of(request)
        series.queue.observe(waited)
        self._classes.dispatched(request, now)
        series.text = None
        if predicted is not None:
            self._forecast.observe(abs(predicted - waited))

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Count the request; observe the times and tokens of one that was answered."""
        series, relayed, arrived_at = self._series_of(request), request.relayed, request.arrived.arrived_at
        series.requests[outcome, reason or ""] += 1
        self._classes.ended(request, outcome)
        series.text = None
        if outcome is not _COMPLETED or relayed.status != 200:
            return
        series.duration.observe(now - arrived_at)
        if request.arrived.streams and relayed.first_byte_at is not None:
            ttft = relayed.first_byte_at - arrived_at
            series.ttft.observe(ttft)
            self._recent.append((request.arrived.tenant, ttft))
            tpot = _tpot_seconds(request)
            if tpot is not None:
                series.tpot.observe(tpot)
        if relayed.usage is not None:
            series.input_tokens += relayed.usage.prompt_tokens
            series.output_tokens += relayed.usage.output_tokens

    def _series_of(self, request: GatewayRequest) -> TrafficSeries:
        # A client may invent model names: only those that a replica lists become values of the label.
        key, model = request.queued.queue_key, request.arrived.model
        if key is None or key.model != model:  # it came before the first list, or was refused
            model = model if self._dispatcher is not None and is_listed(self._dispatcher.replicas, model) else ""
        return self._series.of(model, request.arrived.tenant)

    # Gauges

    def _gauges(self) -> Iterator[str]:
        dispatcher = self._dispatcher
        if dispatcher is None:
            return
        yield from self._queues(dispatcher)
        yield from self._classes.lines(dispatcher, dispatcher.now())
        for write in self.further:
            yield from write()
        yield from replica_metrics(dispatcher.replicas)
        yield from kv_event_metrics(dispatcher.replicas)
        yield from _dispatches(dispatcher)
        yield from _budgets(dispatcher)
        yield from _faults(dispatcher)
        yield prometheus.counter(
            "headway_log_lines_dropped",
            "Log lines dropped because the reader of the log is too slow",
            [({}, lines_dropped())],
        )
        if self._loop_watch is not None:
            yield from self._loop_watch.metrics()
        yield prometheus.gauge(
            "headway_connections",
            "Open connections of clients, by the address they came to: public, admin or envoy",
            [({"listener": name}, shared.connections) for name, shared in self._held.items()],
        )
        yield prometheus.gauge(
            "headway_connections_max",
            "Limit of open connections: `wire.connections`, or less where the process may open too few descriptors",
            [({"listener": name}, shared.limits.connections) for name, shared in self._held.items()],
        )
        yield prometheus.gauge(
            "headway_tls_handshakes",
            "Those of the open connections whose TLS handshake is not done",
            [({"listener": name}, shared.handshakes) for name, shared in self._held.items()],
        )
        yield prometheus.counter(
            "headway_tls_handshakes_failed",
            "TLS handshakes that ended without a connection: not valid, broken off or too slow",
            [({"listener": name}, shared.handshakes_failed) for name, shared in self._held.items()],
        )
        yield prometheus.gauge(
            "headway_body_bytes",
            "Bytes of request bodies that are coming, that wait, or whose answer has not begun",
            [({}, sum(shared.body_bytes for shared in self._held.values()))],
        )
        yield prometheus.gauge(
            "headway_body_bytes_max",
            "Limit of those bytes: `wire.bodies_bytes`",
            [({}, dispatcher.settings.wire.bodies_bytes)],
        )
        fairness = self.fairness()
        if fairness is not None:
            yield prometheus.gauge("headway_jains_fairness_index", _FAIRNESS_HELP, [({}, fairness)])
        yield prometheus.counter(
            "headway_answers_unread",
            "Answers that Envoy carried without showing them: their tokens and TTFT are in no other metric",
            [({}, dispatcher.counts.unread)],
        )
        yield prometheus.counter(
            "headway_keep_alives",
            "Keep-alives that waiting streams were sent (`queue.keep_alive_seconds`)",
            [({}, dispatcher.counts.keep_alives)],
        )
        yield prometheus.gauge(
            "headway_requests_inside", "Requests queued or running", [({}, dispatcher.counts.inside)]
        )

    def _queues(self, dispatcher: Dispatcher) -> Iterator[str]:
        """Queues of one model and kind are added up, as are those beyond the bound; the longest drain time counts."""
        sizes: Counter[tuple[str, str]] = Counter()
        sums: Counter[tuple[str, str]] = Counter()
        drains: dict[tuple[str, str], float] = {}
        model = BoundedLabels(self._series_max)
        for (name, kind, *_), queue in dispatcher.queues.items():
            key = model(name), kind
            sizes[key] += len(queue)
            sums[key] += queue.waiting.bytes
            seconds = queue.drain_seconds()
            if seconds is not None:
                drains[key] = max(seconds, drains.get(key, 0.0))
        for name, help_text, figures in (
            ("headway_flow_control_queue_size", "Requests queued", sizes),
            ("headway_flow_control_queue_bytes", "Bytes of queued request bodies", sums),
            ("headway_queue_drain_seconds", "Predicted seconds until the queue is empty", drains),
        ):
            samples = [({"model_name": name, "kind": kind}, float(figure)) for (name, kind), figure in figures.items()]
            yield prometheus.gauge(name, help_text, samples)
        yield prometheus.gauge(
            "headway_flow_control_queue_size_max",
            "Limit of requests queued, of all models together: `queue.max_requests`",
            [({}, dispatcher.settings.queue.max_requests)],
        )


def _tpot_seconds(request: GatewayRequest) -> float | None:
    """(last token - first token) / (output tokens - 1) of each sequence; None where that is not seen.

    It is not seen where the whole answer came at once.
    """
    first, latest = request.relayed.first_byte_at, request.relayed.latest_token_at
    steps = request.relayed.output_tokens / request.queued.sequences - 1
    if first is None or latest is None or latest <= first or steps <= 0:
        return None
    return (latest - first) / steps


def _encoded(lines: list[str]) -> bytes:
    return "".join(lines).encode("utf-8", "replace")  # a model's name may hold a lone surrogate


def _text_of(series: TrafficSeries) -> tuple[str, ...]:
    """The lines of one series in each family, kept until it changes."""
    if series.text is not None:
        return series.text
    labels = series.labels
    requests = [
        prometheus.counter_line(_REQUESTS[0], f'{labels},outcome="{outcome}",reason="{reason}"', number)
        for (outcome, reason), number in series.requests.items()
    ]
    tokens = [
        prometheus.counter_line(_TOKENS[0], f'{labels},type="{kind}"', number)
        for kind, number in (("input", series.input_tokens), ("output", series.output_tokens))
        if number
    ]
    series.text = (
        "".join(requests),
        "".join(tokens),
        *(family.lines(histogram, labels) for family, histogram in zip(_HISTOGRAMS, series.histograms, strict=True)),
    )
    return series.text


def _budgets(dispatcher: Dispatcher) -> Iterator[str]:
    budgets, queues = dispatcher.budgets, dispatcher.queues.items()
    yield prometheus.counter(
        "headway_over_budget_requests",
        "Requests beyond the budget of their key, by limit, a key of `[tenant.budget]` or `earlier_requests`, and "
        "result: refused or waits",
        [({"limit": key, "result": result}, number) for (key, result), number in budgets.over_budget.items()],
    )
    yield prometheus.counter(
        "headway_budget_corrected_tokens",
        "Tokens by which usage differed from what budgets were debited, by type: added or returned",
        [({"type": kind}, number) for kind, number in budgets.corrected_tokens.items()],
    )
    yield prometheus.gauge(
        "headway_over_budget_queue_size",
        "Requests that wait beyond the budget of their key, behind all others",
        [({}, sum(len(queue) for key, queue in queues if key.is_over_budget))],
    )


def _faults(dispatcher: Dispatcher) -> Iterator[str]:
    errors = dispatcher.errors
    yield prometheus.counter(
        "headway_internal_errors",
        "Exceptions contained in the request they belong to",
        [({"place": place}, number) for place, number in errors.by_place.items()],
    )
    yield prometheus.counter(
        "headway_policy_faults",
        "Decisions in which a policy raised or made no sense",
        [({"kind": kind, "reason": reason}, number) for (kind, reason), number in errors.policy_faults.items()],
    )


def _dispatches(dispatcher: Dispatcher) -> Iterator[str]:
    yield prometheus.counter(
        "headway_request_retries",
        "Requests sent to a second replica after the first one failed or refused them, by reason: refused (status 429, "
        "503 or 529), error (another 5xx) or no-answer",
        [({"reason": reason}, dispatcher.counts.retries[reason]) for reason in RetryCause],
    )
    yield prometheus.counter(
        "headway_request_moves",
        "Requests taken back from an engine's queue for another replica (`policies.rescheduling`)",
        [({}, dispatcher.counts.moved)],
    )
    yield prometheus.counter(
        "headway_request_retries_delayed",
        "Second tries that waited for others to end, because too many were under way (`requests.retry_share`)",
        [({}, dispatcher.retries.delayed)],
    )
    yield prometheus.counter(
        "headway_fallbacks",
        "Requests that went to a fallback of their model, because that had no healthy replica or too long a queue",
        [
            ({"model_name": model, "fallback": other}, number)
            for (model, other), number in dispatcher.model_choice.fallbacks.items()
        ],
    )
    yield prometheus.counter(
        "headway_connections_delayed",
        "Tries to connect to a replica that wait for descriptors, memory or ports of this process",
        [({}, dispatcher.shortages.delayed)],
    )
    seats = [(r.ledger.requests, r.ledger.requests_max) for r in dispatcher.replicas if r.is_up]
    yield prometheus.gauge(
        "headway_flow_control_pool_saturation",
        "Mean over the replicas that are up of requests / limit of requests",
        [({}, sum(used / most for used, most in seats) / len(seats))] if seats else [],
    )
