"""What a cell of the regret table says: how far an order is behind the best of the catalogue, and who that was.

*Behind* is a ratio that is worse when larger, whatever the metric: seconds ÷ the best's seconds, the best's goodput ÷
goodput. Below 1 the order is better than the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import geometric_mean
from typing import Any

from benchmarks.studies.priced_work.regret_cells import cells_of

METRICS: Mapping[str, str] = {
    "ttft_mean": "mean TTFT",
    "ttft_p99": "p99 TTFT",
    "normalised_mean": "mean normalised latency",
    "goodput": "goodput",
}
ALL_FOUR = "all four"  # the worst of a cell's four ratios
CLOSE = 1.05  # never more than 5 % behind is the target
BETTER = 0.999  # what a thousandth could be is called the same
CALM = 1.05  # in a calm cell no order's mean TTFT is further than this from any other's
HRRN = "highest-response-ratio"


@dataclass(frozen=True)
class Cell:
    """One setting at one load: the rows by order, and which order is judged."""

    setting: Mapping[str, Any]
    load: float
    rows: Mapping[str, Mapping[str, Any]]
    ours: str

    @property
    def name(self) -> str:
        return f"{self.setting['trace']}, {self.setting['replica']}, {self.setting['memory']}, load {self.load:g}"

    @cached_property
    def catalogue(self) -> list[str]:
        """The orders it is measured against: all but ours."""
        return [order for order in self.rows if order != self.ours]

    @cached_property
    def calm(self) -> bool:
        """Whether nothing queues, so that no order makes a difference."""
        means = [self.rows[order]["ttft_mean"] for order in self.catalogue]
        return bool(max(means) <= CALM * min(means))

    def value(self, order: str, metric: str) -> float:
        return float(self.rows[order][metric])

    def best(self, metric: str, among: Iterable[str] | None = None) -> str:
        """The best order of the catalogue there; the first by name where several are equal."""
        sign = -1 if metric == "goodput" else 1
        return min(among or self.catalogue, key=lambda order: (sign * self.value(order, metric), order))

    def behind(self, order: str, metric: str, other: str | None = None) -> float:
        """Of `order` against `other`, or against the best of the catalogue."""
        against = self.best(metric) if other is None else other
        mine, theirs = self.value(order, metric), self.value(against, metric)
        if metric == "goodput":
            mine, theirs = theirs, mine
        if mine == theirs:
            return 1.0
        return mine / theirs if theirs > 0 else math.inf

    def behind_in_the_worst(self, order: str) -> float:
        """Of the four metrics the one in which the order is furthest behind that metric's best."""
        return max(self.behind(order, metric) for metric in METRICS)

    @cached_property
    def all_rounder(self) -> str:
        """The order of the catalogue whose worst metric is the least bad."""
        return min(self.catalogue, key=lambda order: (self.behind_in_the_worst(order), order))

    def against_hrrn(self, metric: str) -> float:
        return self.behind(self.ours, metric, HRRN)

    def times_bound(self, order: str, metric: str) -> float | None:
        """Mean end-to-end seconds, or mean TTFT, ÷ what no policy goes below."""
        bound = self.setting["bounds"].get(str(self.load), {}).get(metric)
        return self.value(order, metric) / bound if bound else None


@dataclass(frozen=True)
class Verdict:
    """One order in one metric over many cells."""

    cells: int
    close: int
    better: int
    median: float
    mean: float  # geometric
    worst: float

    @classmethod
    def of(cls, cells: Sequence[Cell], order: str, metric: str) -> Verdict:
        """Over the cells that hold a row of this order; at least one. `metric` may be ALL_FOUR."""

        def behind(cell: Cell) -> float:
            return cell.behind_in_the_worst(order) if metric == ALL_FOUR else cell.behind(order, metric)

        ratios = sorted(behind(cell) for cell in cells if order in cell.rows)
        return cls(
            cells=len(ratios),
            close=sum(ratio <= CLOSE for ratio in ratios),
            better=sum(ratio < BETTER for ratio in ratios),
            median=ratios[len(ratios) // 2],
            mean=geometric_mean(ratios),
            worst=ratios[-1],
        )


def judged(settings: Sequence[Mapping[str, Any]], ours: str, kind: str = "rows") -> list[Cell]:
    """Every cell in which `ours` and HRRN were measured, in the table's order."""
    cells = [Cell(setting, load, rows, ours) for setting, load, rows in cells_of(settings, kind)]
    return [cell for cell in cells if {ours, HRRN} <= cell.rows.keys()]


def beats_hrrn(cell: Cell) -> bool:
    """Better than HRRN in mean and in p99 TTFT."""
    return all(cell.against_hrrn(metric) < BETTER for metric in ("ttft_mean", "ttft_p99"))
