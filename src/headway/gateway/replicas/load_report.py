"""Load report of a replica, and the load header of an answer that carries one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

FIGURE_MAX = 1e15
"""Above this a figure is no count of anything."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One replica's own figures, None where it reports none.

    Attributes:
        waiting: requests in its queue.
        running: requests in its batch.
        kv_share: share of its KV memory in use, from 0 to 1.
        kv_tokens_max: its KV memory in tokens.
        reads_hints: Headway's plug-in schedules there.
        preemptions: since its start.
        steps: since its start; of several engines behind one address the mean.
    """

    waiting: int | None = None
    running: int | None = None
    kv_share: float | None = None
    kv_tokens_max: int | None = None
    reads_hints: bool = False
    preemptions: int | None = None
    steps: float | None = None


def is_figure(value: float) -> bool:
    """Whether a number that an engine reports can be a count or a share; NaN and infinity cannot."""
    return 0 <= value <= FIGURE_MAX


def read_load_header(value: bytes) -> LoadReport | None:
    """ORCA's `endpoint-load-metrics` as vLLM sends it, JSON or text; None if it holds no figure we know."""
    text = value.decode("latin-1").strip()
    if text.startswith("JSON"):
        text = text[4:].strip()
    if text.startswith("{"):
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            return None
        metrics = header.get("named_metrics") if isinstance(header, dict) else None
        named = _figures(metrics) if isinstance(metrics, dict) else {}
    else:
        named = _figures(dict(re.findall(r"named_metrics\.(\w+)=([0-9.eE+-]+)", text)))
    waiting, share = named.get("num_requests_waiting"), named.get("kv_cache_usage_perc")
    if waiting is None and share is None:
        return None
    return LoadReport(
        waiting=None if waiting is None else int(waiting), kv_share=None if share is None else min(1.0, share)
    )


def _figures(values: Mapping[str, object]) -> dict[str, float]:
    """The values that are figures: numbers, neither negative nor infinite."""
    figures = {}
    for name, value in values.items():
        try:
            number = float(value) if isinstance(value, int | float | str) else -1.0
        except (ValueError, OverflowError):
            continue
        if is_figure(number):
            figures[name] = number
    return figures
