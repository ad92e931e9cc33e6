"""OpenTelemetry spans of LLM calls, as the collector's file exporter writes them: JSON Lines of OTLP.

Attributes are those of the GenAI semantic conventions (seen: opentelemetry-semantic-conventions 0.66b2), the older
names of their tokens, and those of vLLM 0.32's own span `llm_request`, whose latencies are in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

from headway.bench.traces.column_map import ColumnMap
from headway.bench.traces.request_logs import Entry, Record, RequestLog
from headway.bench.traces.values import Fault, number_of_cell, shown

_CALLS = {"chat", "text_completion", "generate_content"}
_FIRST = ("gen_ai.latency.time_to_first_token", "gen_ai.response.time_to_first_chunk")
_NANOSECONDS_MAX = 2**64  # OTLP's fixed64
_END = "endTimeUnixNano - startTimeUnixNano"


def _entries(record: Record) -> Iterator[Entry]:
    for resource in _list(record, "resourceSpans"):
        for scope in _list(resource, "scopeSpans"):
            for span in _list(scope, "spans"):
                yield _entry(span)


def _entry(span: Record) -> Entry:
    fields = {str(pair.get("key")): _value(pair.get("value")) for pair in _list(span, "attributes")}
    operation = fields.get("gen_ai.operation.name")
    prompt = fields.get("gen_ai.usage.input_tokens", fields.get("gen_ai.usage.prompt_tokens"))
    output = fields.get("gen_ai.usage.output_tokens", fields.get("gen_ai.usage.completion_tokens"))
    if operation is not None and str(operation) not in _CALLS:
        return f"`gen_ai.operation.name` is {shown(operation)}"
    if prompt is None and output is None:
        return "the span has no `gen_ai.usage.input_tokens`"
    status = span.get("status")
    if isinstance(status, dict) and status.get("code") in (2, "STATUS_CODE_ERROR"):
        return "the span's status is an error"
    start, end = _nanoseconds(span, "startTimeUnixNano"), _nanoseconds(span, "endTimeUnixNano")
    first = next((fields[name] for name in _FIRST if fields.get(name) is not None), None)
    known: dict[str, object] = {
        "startTimeUnixNano": start,
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": output,
        "time to first token": first,
        _END: fields.get("gen_ai.latency.e2e", (end - start) / 1e9),
    }
    return {**fields, **known}


def _nanoseconds(span: Record, name: str) -> int:
    value = span.get(name)
    if isinstance(value, str):
        value = number_of_cell(value)
    if type(value) is not int or not 0 <= value < _NANOSECONDS_MAX:
        raise Fault(f"`{name}` of a span must be whole nanoseconds", shown(value))
    return value


def _value(value: object) -> object:
    """The value of an attribute: OTLP's JSON wraps it in its type, and writes whole numbers as text."""
    if not isinstance(value, dict) or len(value) != 1:
        return None
    ((kind, inner),) = value.items()
    return number_of_cell(inner) if kind == "intValue" and isinstance(inner, str) else inner


def _list(record: Record, name: str) -> list[Record]:
    value = record.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise Fault(f"`{name}` must be a list of objects", shown(value))
    return value


LOG = RequestLog(
    "OTLP spans",
    (frozenset({"resourceSpans"}),),
    ColumnMap(
        {
            "arrival": "startTimeUnixNano",
            "prompt": "gen_ai.usage.input_tokens",
            "output": "gen_ai.usage.output_tokens",
            "tenant": "user.id",
            "ttft": "time to first token",
            "e2e": _END,
        },
        {"arrival": 1e-9, "ttft": 1.0, "e2e": 1.0},
    ),
    _entries,
)
