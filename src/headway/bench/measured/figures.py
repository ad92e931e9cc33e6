"""Figures of one day, measured and predicted side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, measured and predicted, in the same unit."""

    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured; NaN where nothing was measured."""
        return self.predicted / self.measured - 1 if self.measured else float("nan")


@dataclass(frozen=True, slots=True)
class Agreement:
    """Predicted against measured over the requests that both have.

    Attributes:
        requests: how many both have.
        figures: `ttft mean`, `ttft p99`, `tpot mean`, `tpot p99`, `e2e mean`, `e2e p99` in seconds and `throughput`
            in output tokens a second.
        e2e_mape: mean over the requests of |predicted - measured| / measured, end to end.
        preemptions: predicted.
    """

    requests: int
    figures: Mapping[str, Figure]
    e2e_mape: float
    preemptions: int

    def to_json(self) -> dict[str, object]:
        """`recorded` of a run."""
        told = {name: [one.measured, one.predicted] for name, one in self.figures.items()}
        figures = {
            name: dict(zip(("measured", "simulated"), map(_number, both), strict=True)) for name, both in told.items()
        }
        return {
            "requests": self.requests,
            **{f"{name.replace(' ', '_')}": both for name, both in figures.items()},
            "e2e_mean_absolute_percentage_error": 100 * self.e2e_mape,
        }

    def sentence(self) -> str:
        """The errors in one line, as tables and reports print it."""
        named = (("mean TTFT", "ttft mean"), ("TPOT", "tpot mean"), ("end to end", "e2e mean"), ("p99", "e2e p99"))
        parts = [f"{label} {percent(self.figures[name].error)}" for label, name in named]
        return f"{', '.join(parts)}; per request {100 * self.e2e_mape:.1f} % ({self.requests:,} requests)"


def percent(share: float) -> str:
    """`+4.1 %`; a dash where there is nothing."""
    return f"{100 * share:+.1f} %" if math.isfinite(share) else "–"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
