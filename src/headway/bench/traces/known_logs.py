"""The request logs that are known. To add one: a file that reads it, and its place in `KNOWN_LOGS`."""

from __future__ import annotations

from collections.abc import Iterable

from headway.bench.traces import benchmark_logs, openai_logs, proxy_logs, span_logs
from headway.bench.traces.request_logs import RequestLog

KNOWN_LOGS: tuple[RequestLog, ...] = (span_logs.LOG, *benchmark_logs.LOGS, *openai_logs.LOGS, *proxy_logs.LOGS)
"""Logs of JSON objects, CSV or Parquet, the most particular first."""


def log_with(fields: Iterable[str]) -> RequestLog | None:
    """The known log that has these fields; None where there is none."""
    given = set(fields)
    return next((log for log in KNOWN_LOGS if any(mark <= given for mark in log.marks)), None)


def log_named(name: str) -> RequestLog | None:
    """The known log of this name; None where there is none."""
    return next((log for log in KNOWN_LOGS if log.name == name), None)
