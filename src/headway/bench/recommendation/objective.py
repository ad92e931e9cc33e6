"""Objectives: what the operator wants, as weights of measures and bounds on them; read from a name or a TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.bench.metrics.run_metrics import Slo, meets
from headway.bench.user_mistake import as_mistakes
from headway.config.wanted_objective import MEASURES, TAILS, Bound, read_wanted, rests_on_the_tail, shares

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """What became of each request under one candidate: n values each, in the order of the trace.

    A request that was not served counts as if it had waited until the end of the day.
    """

    ttft_seconds: Floats
    e2e_seconds: Floats
    normalised_seconds: Floats
    tpot_seconds: Floats


@dataclass(frozen=True, slots=True)
class OperatorObjective:
    """What is wanted: the least geometric mean of how far each measure is from the best candidate's, within bounds.

    Attributes:
        name: as it was asked for.
        weights: of measures; they need not sum to 1.
        bounds: on measures.
        slo: what `missed` counts by.
    """

    name: str
    weights: Mapping[str, float]
    slo: Slo
    bounds: Mapping[str, Bound] = field(default_factory=dict)

    @property
    def rests_on_the_tail(self) -> bool:
        """Whether half of its weight or more lies on measures that a few requests decide."""
        return rests_on_the_tail(self.weights)

    @property
    def counts_the_tail(self) -> bool:
        """Whether some of its weight lies on measures that a few requests decide."""
        return not TAILS.isdisjoint(self.weights)

    def columns(self, served: RequestTimes) -> dict[str, Floats]:
        """The values of each request that the weighed measures are taken of."""
        good = meets(self.slo, served.ttft_seconds, served.tpot_seconds, served.e2e_seconds)
        every: dict[str, Floats] = {
            "mean-ttft": served.ttft_seconds,
            "p99-ttft": served.ttft_seconds,
            "longest-ttft": served.ttft_seconds,
            "e2e": served.e2e_seconds,
            "normalised-latency": served.normalised_seconds,
            "missed": np.where(good, 0.0, 1.0),
        }
        return {name: every[name] for name in MEASURES}

    def scores(self, columns: Mapping[str, Floats], rows: npt.NDArray[np.int64] | None = None) -> Floats:
        """ln of each candidate's weighted distance from the best of them, at least 0.

        Args:
            columns: by measure, an array of candidates × requests.
            rows: the requests that count, some perhaps several times; None for all once.
        """
        total = np.zeros(len(next(iter(columns.values()))))
        for name, share in shares(self.weights).items():
            values = columns[name] if rows is None else columns[name][:, rows]
            found = measured(name, values)
            floor = 1 / values.shape[1] if name == "missed" else 1e-9  # so that a perfect one has a distance
            logs = np.log(np.maximum(found, floor))
            total += share * (logs - logs.min())
        return total

    def in_words(self) -> str:
        """What is wanted within which bounds."""
        parts = shares(self.weights).items()
        wanted = " and ".join(f"{name} {share:.0%}" if share < 1 else name for name, share in parts)
        slo = f", by {self.slo}" if "missed" in {*self.weights, *self.bounds} else ""
        return f"the least {', '.join([wanted, *map(self._bound_in_words, self.bounds)])}{slo}"

    def _bound_in_words(self, name: str) -> str:
        bound = self.bounds[name]
        if bound.value is not None:
            return f"{name} at most {value_text(name, bound.value)}"
        return f"{name} at most {bound.times_fcfs:g} times that of fcfs"

    def to_json(self) -> dict[str, Any]:
        """Its name, weights, bounds and SLOs."""
        bounds = {name: {"times_fcfs": bound.times_fcfs, "value": bound.value} for name, bound in self.bounds.items()}
        return {"name": self.name, "weights": dict(self.weights), "at_most": bounds, "slo": self.slo.to_json()}


def measured(name: str, values: Floats) -> Floats:
    """One measure of each candidate, from its requests' values (candidates × requests)."""
    if name == "p99-ttft":
        return np.asarray(np.percentile(values, 99, axis=1))
    return np.asarray(values.max(axis=1) if name == "longest-ttft" else values.mean(axis=1))


def value_text(name: str, value: float) -> str:
    """A value of a measure with its unit, for a sentence."""
    return f"{value:.1%}" if name == "missed" else f"{value:.3g} s"


def read_objective(text: str, slo: Slo) -> OperatorObjective:
    """An objective of `NAMED`, `goodput(ttft=…,tpot=…,e2e=…)`, or that of a TOML file.

    Raises:
        UserMistake: one sentence that names what is wrong and the fix.
    """
    with as_mistakes():
        wanted = read_wanted(text, "--objective")
    own = slo if wanted.slo is None else Slo.of(wanted.slo)
    return OperatorObjective(wanted.name, wanted.weights, own, wanted.bounds)
