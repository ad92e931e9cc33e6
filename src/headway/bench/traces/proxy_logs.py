"""Logs of LLM proxies and of observability: LiteLLM's spend logs, and Langfuse's observations.

Seen: table `LiteLLM_SpendLogs` of LiteLLM's `schema.prisma`; Langfuse's observations API v1 and v2 (camelCase) and
its exports to blob storage (snake_case), pages of 2026.
"""

from __future__ import annotations

from collections.abc import Iterator

from headway.bench.traces.column_map import ColumnMap
from headway.bench.traces.request_logs import Entry, Record, RequestLog, either, seconds_between
from headway.bench.traces.values import Fault, shown

_TOKENS = ("prompt_tokens", "completion_tokens")
_GENERATING = ("completion", "responses", "generate_content", "anthropic_messages")


def _of_litellm(record: Record) -> Iterator[Entry]:
    if record.get("status") not in (None, "", "success"):
        yield f"`status` is {shown(record['status'])}"
        return
    call = record.get("call_type")
    if isinstance(call, str) and call and not any(kind in call for kind in _GENERATING):
        yield f"`call_type` is {shown(call)}"
        return
    start = record.get("startTime")
    yield {
        **record,
        "tenant": either(record, "team_id", "end_user", "user", "api_key"),
        "completionStartTime - startTime": seconds_between(start, either(record, "completionStartTime")),
        "endTime - startTime": seconds_between(start, either(record, "endTime")),
    }


def _of_langfuse(record: Record) -> Iterator[Entry]:
    pages = record.get("data")
    if isinstance(pages, list):  # an answer of the API
        for one in pages:
            if not isinstance(one, dict):
                raise Fault("`data` must be a list of objects", shown(one))
            yield from _of_langfuse(one)
        return
    kind = record.get("type")
    if kind not in (None, "GENERATION"):
        yield f"`type` is {shown(kind)}"
        return
    if record.get("level") == "ERROR":
        yield "`level` is 'ERROR'"
        return
    start = either(record, "startTime", "start_time")
    yield {
        **record,
        "startTime": start,
        "input tokens": either(record, "usageDetails.input", "usage_details.input", "inputUsage", "usage.input"),
        "output tokens": either(record, "usageDetails.output", "usage_details.output", "outputUsage", "usage.output"),
        "tenant": either(record, "userId", "user_id"),
        "time to first token": seconds_between(start, either(record, "completionStartTime", "completion_start_time")),
        "endTime - startTime": seconds_between(start, either(record, "endTime", "end_time")),
    }


LOGS = (
    RequestLog(
        "LiteLLM spend logs",
        (frozenset({"startTime", "endTime", *_TOKENS}),),
        ColumnMap(
            {
                "arrival": "startTime",
                "prompt": "prompt_tokens",
                "output": "completion_tokens",
                "tenant": "tenant",
                "ttft": "completionStartTime - startTime",
                "e2e": "endTime - startTime",
            },
            {"arrival": 1.0, "ttft": 1.0, "e2e": 1.0},
        ),
        _of_litellm,
    ),
    RequestLog(
        "Langfuse observations",
        (
            frozenset({"startTime", "usageDetails"}),
            frozenset({"start_time", "usage_details"}),
            frozenset({"startTime", "traceId", "usage"}),
        ),
        ColumnMap(
            {
                "arrival": "startTime",
                "prompt": "input tokens",
                "output": "output tokens",
                "tenant": "tenant",
                "ttft": "time to first token",
                "e2e": "endTime - startTime",
            },
            {"arrival": 1.0, "ttft": 1.0, "e2e": 1.0},
        ),
        _of_langfuse,
    ),
)
