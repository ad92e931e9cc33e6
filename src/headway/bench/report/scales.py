"""Scales of a chart: from values to places on the drawing, and the ticks of an axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from headway.bench.report.table_columns import significant


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high` onto places from `start` to `end`, in proportion or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    kind: Literal["linear", "log"] = "linear"

    def place(self, value: float) -> float:
        """Where a value is drawn; values outside are drawn at the edge."""
        clipped = min(max(value, self.low), self.high)
        if self.kind == "log":
            share = math.log(clipped / self.low) / math.log(self.high / self.low)
        else:
            share = (clipped - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * share

    def ticks(self) -> list[float]:
        """Round values to write, from three to about seven."""
        return _log_ticks(self.low, self.high) if self.kind == "log" else _linear_ticks(self.low, self.high)


def linear(values: list[float], start: float, end: float, *, high: float | None = None) -> Scale:
    """From 0 to a round value at or above the largest, or to `high`."""
    largest = max(values, default=0.0) if high is None else high
    if largest <= 0:
        return Scale(0.0, 1.0, start, end)
    step = _step(largest)
    return Scale(0.0, largest if high is not None else math.ceil(largest / step - 1e-9) * step, start, end)


def logarithmic(values: list[float], start: float, end: float, *, factor_min: float = 10.0) -> Scale:
    """Over all positive values, widened to this factor at least."""
    positive = [value for value in values if value > 0]
    if not positive:
        return Scale(0.1, 10.0, start, end, "log")
    low, high = min(positive), max(positive)
    widen = max(1.0, math.sqrt(factor_min * low / high))
    return Scale(low / widen, high * widen, start, end, "log")


def duration_label(seconds: float) -> str:
    """`20 ms`, `0.5 s` as `500 ms`, `3 s`."""
    return f"{significant(seconds * 1000, 1)} ms" if seconds < 0.9995 else f"{seconds:,.4g} s"


def count_label(value: float) -> str:
    """`1,200`."""
    return f"{value:,.3g}" if value < 999.5 else f"{value:,.0f}"


def share_label(value: float) -> str:
    """`45 %`."""
    return f"{value * 100:.3g} %"


Label = Callable[[float], str]


def _step(span: float) -> float:
    power = 10.0 ** math.floor(math.log10(span))
    return next(m * power for m in (0.2, 0.5, 1.0, 2.0, 5.0) if span / (m * power) <= 5)


def _linear_ticks(low: float, high: float) -> list[float]:
    step = _step(high - low)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = math.log10(high / low)
    marks: tuple[float, ...]
    if decades <= 0.8:
        marks = (1, 1.5, 2, 3, 4, 5, 7)
    elif decades <= 2:
        marks = (1, 2, 5)
    else:
        marks = (1, 3) if decades <= 3 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [mark * 10.0**e for e in exponents for mark in marks if low <= mark * 10.0**e <= high]
