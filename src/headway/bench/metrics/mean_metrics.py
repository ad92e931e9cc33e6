"""The mean numbers of several runs that repeat each other with other seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from headway.bench.metrics.run_metrics import RunMetrics, Summary


def mean_metrics(runs: Sequence[RunMetrics]) -> RunMetrics:
    """Counts summed, all other numbers averaged over the runs that have them; None where none has."""
    return RunMetrics(
        **{field.name: _joined([getattr(run, field.name) for run in runs]) for field in fields(RunMetrics)}
    )


def _joined(values: Sequence[Any]) -> Any:
    there = [value for value in values if value is not None]
    if not there:
        return None
    first = there[0]
    if isinstance(first, Summary):
        return Summary(*(_joined([getattr(one, part.name) for one in there]) for part in fields(Summary)))
    if isinstance(first, Mapping):
        return dict(sorted(sum(map(Counter, there), Counter()).items()))
    return sum(there) if isinstance(first, int) else sum(there) / len(there)
