"""Objectives: what the operator wants, as weights of measures and bounds on them; read from a name or a TOML file."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.bench.metrics.run_metrics import Slo, meets
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.config.nearest_name import nearest
from headway.config.toml_file import read_toml

Floats = npt.NDArray[np.float64]

MEASURES: Mapping[str, str] = MappingProxyType(
    {
        "mean-ttft": "mean time to first token, seconds",
        "p99-ttft": "99th percentile of it, seconds",
        "longest-ttft": "the longest of all, seconds",
        "e2e": "mean end-to-end latency, seconds",
        "normalised-latency": "mean end-to-end latency per output token, seconds",
        "missed": "share of the requests that miss an SLO (1 - goodput)",
    }
)
"""What can be weighed and bounded; less is better."""
NAMED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "mean-ttft": {"mean-ttft": 1.0},
        "p99-ttft": {"p99-ttft": 1.0},
        "e2e": {"e2e": 1.0},
        "goodput": {"missed": 1.0},
        "balanced": {"mean-ttft": 0.25, "p99-ttft": 0.25, "normalised-latency": 0.25, "missed": 0.25},
    }
)
"""Objectives by name: the weights of their measures."""
TAILS = frozenset(["p99-ttft", "longest-ttft"])
"""Measures that a few requests decide, often of one rush."""
_EXAMPLE = 'weights = {"mean-ttft" = 1.0}, and perhaps at_most = {"p99-ttft" = {times_fcfs = 1.2}}'


@dataclass(frozen=True, slots=True)
class Bound:
    """At most so many times what fcfs has, or so much; exactly one of the two is given."""

    times_fcfs: float | None = None
    value: float | None = None

    def limit(self, of_fcfs: float) -> float:
        """The most that is allowed."""
        return self.times_fcfs * of_fcfs if self.times_fcfs is not None else float(self.value or 0.0)


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
    def _shares(self) -> dict[str, float]:
        """The weights as parts of 1. Each is set against the largest first, so that their sum is finite."""
        largest = max(self.weights.values())
        scaled = {name: weight / largest for name, weight in self.weights.items()}
        return {name: weight / sum(scaled.values()) for name, weight in scaled.items()}

    @property
    def rests_on_the_tail(self) -> bool:
        """Whether half of its weight or more lies on measures that a few requests decide."""
        return sum(share for name, share in self._shares.items() if name in TAILS) >= 0.5 - 1e-9

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
        for name, share in self._shares.items():
            values = columns[name] if rows is None else columns[name][:, rows]
            found = measured(name, values)
            floor = 1 / values.shape[1] if name == "missed" else 1e-9  # so that a perfect one has a distance
            logs = np.log(np.maximum(found, floor))
            total += share * (logs - logs.min())
        return total

    def to_json(self) -> dict[str, Any]:
        """Its name, weights, bounds and SLOs."""
        bounds = {name: {"times_fcfs": bound.times_fcfs, "value": bound.value} for name, bound in self.bounds.items()}
        return {"name": self.name, "weights": dict(self.weights), "at_most": bounds, "slo": self.slo.to_json()}


def measured(name: str, values: Floats) -> Floats:
    """One measure of each candidate, from its requests' values (candidates × requests)."""
    if name == "p99-ttft":
        return np.asarray(np.percentile(values, 99, axis=1))
    return np.asarray(values.max(axis=1) if name == "longest-ttft" else values.mean(axis=1))


def read_objective(text: str, slo: Slo) -> OperatorObjective:
    """An objective of `NAMED`, `goodput(ttft=…,tpot=…,e2e=…)`, or that of a TOML file.

    Raises:
        UserMistake: one sentence that names what is wrong and the fix.
    """
    match = re.fullmatch(r"goodput\((.*)\)", text.strip())
    if match is not None:
        try:
            return OperatorObjective(text, NAMED["goodput"], Slo.parse(match[1]))
        except UserMistake as mistake:
            raise UserMistake(f"--objective {text!r}: {mistake}") from None
    if text.endswith(".toml"):
        return _read_file(Path(text), slo)
    if text not in NAMED:
        known = (*NAMED, "goodput(ttft=2s,tpot=100ms)")
        raise UserMistake(f"--objective {text!r} is unknown{nearest(text, known)}, or name a file FILE.toml")
    return OperatorObjective(text, NAMED[text], slo)


def _read_file(path: Path, slo: Slo) -> OperatorObjective:
    label = f"--objective {path}"
    with as_mistakes():
        content = read_toml(path, label)
    unknown = next((key for key in content if key not in ("weights", "at_most")), None)
    if unknown is not None:
        raise UserMistake(f"{label}: {unknown!r} is no key of an objective; write {_EXAMPLE}")
    weights = {name: _number(f"{label}: weights.{name}", value) for name, value in _table(label, content, "weights")}
    if not weights:
        raise UserMistake(f"{label}: it has no weights; write {_EXAMPLE}")
    bounds = {name: _bound(f"{label}: at_most.{name}", value) for name, value in _table(label, content, "at_most")}
    return replace(OperatorObjective(str(path), weights, slo), bounds=bounds)


def _table(label: str, content: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    table = content.get(key, {})
    if not isinstance(table, dict):
        raise UserMistake(f"{label}: {key} must be a table of measures; write {_EXAMPLE}")
    for name in table:
        if name not in MEASURES:
            raise UserMistake(f"{label}: {key}.{name} is no measure{nearest(name, MEASURES)}")
    return list(table.items())


def _bound(where: str, value: object) -> Bound:
    if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= {"times_fcfs", "value"}:
        raise UserMistake(f"{where} must be {{times_fcfs = 1.2}} or {{value = 60.0}}, got {value!r}")
    ((key, number),) = value.items()
    return Bound(**{key: _number(f"{where}.{key}", number)})


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise UserMistake(f"{where} must be a number above 0, got {repr(value)[:40]}")
    return float(value)
