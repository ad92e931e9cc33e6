"""OpenTelemetry spans of a request: the whole request, its wait in the queue, and its time at each replica.

Law: a span holds lengths, times, names of the configuration and reasons of a closed list; never text, and nothing that
a client could grow without bound. The caller's W3C trace context is the parent of ours, and ours is the replica's.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headway.gateway.openai.endpoints import Endpoint
from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.settings import TracingSettings
from headway.gateway.wire.messages import TRACE_HEADER, HttpRequest

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

_PARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_NAME_CHARACTERS_MAX = 64
_NANOSECONDS = 1_000_000_000


@dataclass(slots=True)
class _Open:
    """The span of an open request, and when it was sent to which replica."""

    span: Span
    offset: float  # seconds from the dispatcher's clock to wall time, which spans use
    tries: list[tuple[float, str]] = field(default_factory=list)


class Tracing:
    """Observes requests; finished spans are sent in batches, from a thread. `clock` is the dispatcher's."""

    def __init__(self, settings: TracingSettings, clock: Callable[[], float]) -> None:
        """Raises ValueError, one sentence, if the packages are not installed or a setting is wrong."""
        check_tracing(settings)
        from opentelemetry import trace  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415

        self._trace = trace
        self._provider = TracerProvider(resource=Resource.create({"service.name": settings.service_name}))
        self._provider.add_span_processor(_sending(settings))
        self._tracer = self._provider.get_tracer("headway")
        self._share = settings.sample_share
        self._chance = random.Random()  # which requests are traced affects no decision
        self._open: dict[int, _Open] = {}
        self._clock = clock

    def start(self, http: HttpRequest, endpoint: Endpoint, number: int, now: float) -> bytes | None:
        """Begin the span of a request that arrived `now`; returns its `traceparent`, None if it is not traced."""
        parent = _PARENT.fullmatch(http.header(TRACE_HEADER) or b"")
        wanted = int(parent[3], 16) & 1 if parent is not None else self._chance.random() < self._share
        if not wanted:
            return None
        context = self._context(parent) if parent is not None else None
        offset = time.time() - self._clock()
        began = _nanoseconds(now + offset)
        span = self._tracer.start_span(endpoint.span_name, context, self._trace.SpanKind.SERVER, start_time=began)
        self._open[number] = _Open(span, offset)
        own = span.get_span_context()
        return f"00-{own.trace_id:032x}-{own.span_id:016x}-01".encode()

    def dispatched(self, request: GatewayRequest, now: float) -> None:
        """Note the replica and the time."""
        traced, replica = self._open.get(request.arrived.number), request.queued.replica
        if traced is not None and replica is not None:
            traced.tries.append((now, replica.name))

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Finish the request's span and those inside it."""
        traced = self._open.pop(request.arrived.number, None)
        if traced is None:
            return
        sent = [at for at, _ in traced.tries] or [now]
        why = {"headway.why": request.queued.wait_explanation or "not sent to a replica"}
        self._child(traced, "queue", request.arrived.arrived_at, sent[0], why)
        for number, (at, replica) in enumerate(traced.tries):
            is_last = number == len(traced.tries) - 1
            ended = now if is_last else traced.tries[number + 1][0]
            first = request.relayed.first_byte_at if is_last else None
            self._child(traced, "replica", at, ended, {"headway.replica": replica}, first)
        traced.span.set_attributes(_attributes(request, outcome, reason))
        if outcome is Outcome.FAILED:
            traced.span.set_status(self._trace.StatusCode.ERROR, str(reason or f"status {request.relayed.status}"))
        traced.span.end(_nanoseconds(now + traced.offset))

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()

    def _child(
        self, of: _Open, name: str, began: float, ended: float, facts: dict[str, Any], first: float | None = None
    ) -> None:
        kind = self._trace.SpanKind.CLIENT if name == "replica" else self._trace.SpanKind.INTERNAL
        inside = self._trace.set_span_in_context(of.span)
        child = self._tracer.start_span(name, inside, kind, facts, start_time=_nanoseconds(began + of.offset))
        if first is not None:
            child.add_event("first byte", timestamp=_nanoseconds(first + of.offset))
        child.end(_nanoseconds(ended + of.offset))

    def _context(self, parent: re.Match[bytes]) -> Context | None:
        """The caller's span, as the parent of ours."""
        trace = self._trace
        known = trace.SpanContext(int(parent[1], 16), int(parent[2], 16), True, trace.TraceFlags(1))
        return trace.set_span_in_context(trace.NonRecordingSpan(known)) if known.is_valid else None


def check_tracing(settings: TracingSettings) -> None:
    """Raise ValueError, one sentence, if tracing is configured and cannot work."""
    if not 0 <= settings.sample_share <= 1:
        raise ValueError(f"tracing.sample_share must be from 0 to 1, got {settings.sample_share:g}")
    if not (settings.endpoint or "http://").startswith(("http://", "https://")):
        raise ValueError(
            f"tracing.endpoint must be like http://127.0.0.1:4318/v1/traces (OTLP over HTTP), got {settings.endpoint!r}"
        )
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: PLC0415
        import opentelemetry.sdk.trace  # noqa: F401, PLC0415
    except ImportError as error:
        raise ValueError(f"tracing: needs OpenTelemetry ({error}): pip install 'headway[otel]'") from None


def _sending(settings: TracingSettings) -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    return BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.endpoint))


def _attributes(request: GatewayRequest, outcome: Outcome, reason: Reason | None) -> dict[str, Any]:
    """Attributes of the request's span, named by OpenTelemetry's GenAI conventions where these have a name."""
    arrived, queued, relayed = request.arrived, request.queued, request.relayed
    attributes: dict[str, Any] = {
        # The name of a model that no replica lists is not repeated.
        "gen_ai.request.model": queued.adapter or (queued.queue_key.model if queued.queue_key is not None else ""),
        "gen_ai.usage.output_tokens": relayed.output_tokens,
        "http.response.status_code": relayed.status,
        "headway.outcome": str(outcome),
        "headway.reason": str(reason or ""),
        "headway.tenant": arrived.payer[:_NAME_CHARACTERS_MAX],
        "headway.prompt_tokens": queued.prompt_tokens,
        "headway.waiting_at_arrival": queued.waiting_at_arrival,
        "headway.tries": queued.tries,
    }
    if relayed.usage is not None:
        attributes["gen_ai.usage.input_tokens"] = relayed.usage.prompt_tokens
    if queued.predicted_wait_seconds is not None:
        attributes["headway.predicted_wait_seconds"] = queued.predicted_wait_seconds
    return attributes


def _nanoseconds(at: float) -> int:
    return int(at * _NANOSECONDS)
