"""What each request contributes to the numbers of a run: NaN where it counts in none."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from headway.bench.metrics.paired_draws import Floats
from headway.bench.metrics.run_metrics import (
    Slo,
    completed_rows,
    length_classes,
    meets,
    seconds_per_row,
    tpot_per_row,
)
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.trace import Trace

MEASURED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ttft_seconds": ("mean", "p50", "p99"),
        "ttft_short_half_seconds": ("mean",),
        "ttft_longest_5pct_seconds": ("mean",),
        "tpot_seconds": ("mean",),
        "e2e_seconds": ("mean", "p99"),
        "normalised_latency_seconds_per_token": ("mean",),
        "slowdown": ("p99",),
        "goodput": ("",),
    }
)
"""Metrics that are a statistic over requests, and the parts of each that are drawn; "" for the mean alone."""


def request_values(trace: Trace, outcome: DayOutcome, slo: Slo, unloaded_seconds: Floats | None) -> dict[str, Floats]:
    """Values of each of `MEASURED`, row by row; arguments as of `summarise`. Without the times alone no slowdown."""
    completed, started = completed_rows(outcome), outcome.first_token_ps != NEVER
    online = np.ones(len(trace), bool) if trace.offline is None else ~trace.offline
    completed, started = completed & online, started & online
    ttft, e2e = seconds_per_row(outcome, outcome.first_token_ps), seconds_per_row(outcome, outcome.ended_ps)
    tpot = tpot_per_row(trace, outcome)
    shorter, longest = length_classes(trace)
    values = {
        "ttft_seconds": np.where(started, ttft, np.nan),
        "ttft_short_half_seconds": np.where(started & shorter, ttft, np.nan),
        "ttft_longest_5pct_seconds": np.where(started & longest, ttft, np.nan),
        "tpot_seconds": np.where(completed & (trace.output_tokens > 1), tpot, np.nan),
        "e2e_seconds": np.where(completed, e2e, np.nan),
        "normalised_latency_seconds_per_token": np.where(completed, e2e / trace.output_tokens, np.nan),
        "goodput": np.where(online, completed & meets(slo, ttft, tpot, e2e), np.nan),
    }
    if unloaded_seconds is not None:
        values["slowdown"] = np.where(completed, e2e / unloaded_seconds, np.nan)
    return values


def statistic(part: str, values: Floats) -> float:
    """`mean`, `p50`, … of the values that are there; "" is the mean. NaN where none is."""
    there = values[~np.isnan(values)]
    if not len(there):
        return float("nan")
    return float(np.percentile(there, int(part[1:])) if part.startswith("p") else there.mean())
