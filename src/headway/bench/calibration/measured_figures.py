"""Figures of one day, measured and predicted side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_TITLES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end to end", "throughput": "output tokens/s"}


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
        told = {name: (one.measured, one.predicted, 100 * one.error) for name, one in self.figures.items()}
        keys = ("measured", "simulated", "error_percent")
        figures = {name: dict(zip(keys, map(_number, values), strict=True)) for name, values in told.items()}
        return {
            "requests": self.requests,
            **{f"{name.replace(' ', '_')}": both for name, both in figures.items()},
            "e2e_mean_absolute_percentage_error": 100 * self.e2e_mape,
        }

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """(figure and its unit, measured, simulated, error) of each, as tables and reports print them."""
        for name, one in self.figures.items():
            kind, _, part = name.partition(" ")
            title = f"{_TITLES[kind]} {part}, s" if part else _TITLES[kind]
            yield title, _shown(one.measured), _shown(one.predicted), percent(one.error)

    def sentence(self) -> str:
        """The errors in one line, as tables and reports print it."""
        named = (("mean TTFT", "ttft mean"), ("TPOT", "tpot mean"), ("end to end", "e2e mean"), ("p99", "e2e p99"))
        parts = [f"{label} {percent(self.figures[name].error)}" for label, name in named]
        return f"{', '.join(parts)}; per request {100 * self.e2e_mape:.1f} % ({self.requests:,} requests)"


def percent(share: float) -> str:
    """`+4.1 %`; a dash where there is nothing."""
    return f"{100 * share:+.1f} %" if math.isfinite(share) else "–"


def _shown(value: float) -> str:
    """Three digits; a dash where there is nothing."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
