"""A request as OpenTelemetry spans: the whole of it, its wait in the queue, and its time at a replica.

Law: a span holds lengths, times, names of the configuration and reasons of a closed list; never text, and nothing that
a client could grow without bound. The caller's W3C context is taken up, and the replica is given ours to go on from.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headway.gateway.openai.error_responses import Reason
from headway.gateway.openai.upstream_request import TRACE_HEADER
from headway.gateway.queueing.counts import Outcome
from headway.gateway.relay.exchange import Exchange
from headway.gateway.settings import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

_PARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_NAME_CHARACTERS_MAX = 64
_NANOSECONDS = 1_000_000_000


@dataclass(slots=True)
class _Open:
    """A request's own span, and when it was sent to which replica."""

    span: Span
    offset: float  # seconds from the dispatcher's clock to the wall's, on which spans stand
    tries: list[tuple[float, str]] = field(default_factory=list)


class Tracing:
    """A watcher; finished spans are sent in batches, from a thread. `clock` is the dispatcher's."""

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
        self._chance = random.Random()  # which of them are traced has no bearing on any decision
        self._open: dict[Exchange, _Open] = {}
        self._clock = clock

    def arrived(self, exchange: Exchange) -> None:
        """A request came: begin its span, unless it is not to be traced."""
        parent = _PARENT.fullmatch(exchange.http.header(TRACE_HEADER) or b"")
        wanted = int(parent[3], 16) & 1 if parent is not None else self._chance.random() < self._share
        if not wanted:
            return
        context = self._context(parent) if parent is not None else None
        offset = time.time() - self._clock()
        began = _nanoseconds(exchange.arrived_at + offset)
        span = self._tracer.start_span(
            exchange.endpoint.span_name, context, self._trace.SpanKind.SERVER, start_time=began
        )
        own = span.get_span_context()
        exchange.traceparent = f"00-{own.trace_id:032x}-{own.span_id:016x}-01".encode()
        self._open[exchange] = _Open(span, offset)

    def dispatched(self, exchange: Exchange, now: float) -> None:
        """Of `Watcher`."""
        found = self._open.get(exchange)
        if found is not None and exchange.replica is not None:
            found.tries.append((now, exchange.replica.name))

    def ended(self, exchange: Exchange, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Of `Watcher`."""
        found = self._open.pop(exchange, None)
        if found is None:
            return
        sent = [at for at, _ in found.tries] or [now]
        why = {"headway.why": exchange.story or "not sent to a replica"}
        self._child(found, "queue", exchange.arrived_at, sent[0], why)
        for number, (at, replica) in enumerate(found.tries):
            is_last = number == len(found.tries) - 1
            ended = now if is_last else found.tries[number + 1][0]
            first = exchange.first_byte_at if is_last else None
            self._child(found, "replica", at, ended, {"headway.replica": replica}, first)
        found.span.set_attributes(_attributes(exchange, outcome, reason))
        if outcome is Outcome.FAILED:
            found.span.set_status(self._trace.StatusCode.ERROR, str(reason or f"status {exchange.status}"))
        found.span.end(_nanoseconds(now + found.offset))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _child(
        self, of: _Open, name: str, began: float, ended: float, said: dict[str, Any], first: float | None = None
    ) -> None:
        kind = self._trace.SpanKind.CLIENT if name == "replica" else self._trace.SpanKind.INTERNAL
        inside = self._trace.set_span_in_context(of.span)
        child = self._tracer.start_span(name, inside, kind, said, start_time=_nanoseconds(began + of.offset))
        if first is not None:
            child.add_event("first byte", timestamp=_nanoseconds(first + of.offset))
        child.end(_nanoseconds(ended + of.offset))

    def _context(self, parent: re.Match[bytes]) -> Context | None:
        """The caller's span, to hang ours under."""
        trace = self._trace
        known = trace.SpanContext(int(parent[1], 16), int(parent[2], 16), True, trace.TraceFlags(1))
        return trace.set_span_in_context(trace.NonRecordingSpan(known)) if known.is_valid else None


def check_tracing(settings: TracingSettings) -> None:
    """Raise ValueError, one sentence, if requests are to be traced and cannot be."""
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
        raise ValueError(f"tracing: this needs OpenTelemetry ({error}): pip install 'headway[otel]'") from None


def _sending(settings: TracingSettings) -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    return BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.endpoint))


def _attributes(exchange: Exchange, outcome: Outcome, reason: Reason | None) -> dict[str, Any]:
    """The names are those of OpenTelemetry's GenAI conventions where they have one."""
    request, line = exchange.request, exchange.line
    said: dict[str, Any] = {
        "gen_ai.request.model": line.key.model if line is not None else "",  # what no replica lists is not repeated
        "gen_ai.usage.output_tokens": exchange.output_tokens,
        "http.response.status_code": exchange.status,
        "headway.outcome": str(outcome),
        "headway.reason": str(reason or ""),
        "headway.tenant": request.payer[:_NAME_CHARACTERS_MAX],
        "headway.prompt_tokens": request.prompt_tokens,
        "headway.waiting_at_arrival": exchange.waiting_at_arrival,
        "headway.tries": exchange.tries,
    }
    if exchange.usage is not None:
        said["gen_ai.usage.input_tokens"] = exchange.usage.prompt_tokens
    if exchange.predicted_wait_seconds is not None:
        said["headway.predicted_wait_seconds"] = exchange.predicted_wait_seconds
    return said


def _nanoseconds(at: float) -> int:
    return int(at * _NANOSECONDS)
