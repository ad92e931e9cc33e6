"""Objectives as an operator writes them: a name, `goodput(…)`, or a TOML file of weights and bounds."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from headway.config.nearest_name import nearest
from headway.config.slo_text import read_slo
from headway.config.toml_file import read_toml

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
class WantedObjective:
    """What is wanted.

    Attributes:
        name: as it was asked for.
        weights: of measures; they need not sum to 1.
        bounds: on measures.
        slo: seconds by ttft, tpot and e2e, as `goodput(…)` gave them; None where the place it is for decides.
    """

    name: str
    weights: Mapping[str, float]
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    slo: Mapping[str, float] | None = None

    @property
    def rests_on_the_tail(self) -> bool:
        """Whether half of its weight or more lies on measures that a few requests decide."""
        return rests_on_the_tail(self.weights)


def rests_on_the_tail(weights: Mapping[str, float]) -> bool:
    """Whether half of these weights or more lies on measures that a few requests decide."""
    return sum(share for name, share in shares(weights).items() if name in TAILS) >= 0.5 - 1e-9


def shares(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights as parts of 1. Each is set against the largest first, so that their sum is finite."""
    largest = max(weights.values())
    scaled = {name: weight / largest for name, weight in weights.items()}
    return {name: weight / sum(scaled.values()) for name, weight in scaled.items()}


def read_wanted(text: str, where: str) -> WantedObjective:
    """An objective of `NAMED`, `goodput(ttft=…,tpot=…,e2e=…)`, or that of a TOML file.

    Args:
        text: what the operator wrote.
        where: the option or key for sentences.

    Raises:
        ValueError: one sentence that names what is wrong and the fix.
    """
    match = re.fullmatch(r"goodput\((.*)\)", text.strip())
    if match is not None:
        try:
            return WantedObjective(text, NAMED["goodput"], slo=read_slo(match[1]))
        except ValueError as mistake:
            raise ValueError(f"{where} {text!r}: {mistake}") from None
    if text.endswith(".toml"):
        return _read_file(Path(text), f"{where} {text}")
    if text not in NAMED:
        known = (*NAMED, "goodput(ttft=2s,tpot=100ms)")
        raise ValueError(f"{where} {text!r} is unknown{nearest(text, known)}, or name a file FILE.toml")
    return WantedObjective(text, NAMED[text])


def _read_file(path: Path, label: str) -> WantedObjective:
    content = read_toml(path, label)
    unknown = next((key for key in content if key not in ("weights", "at_most")), None)
    if unknown is not None:
        raise ValueError(f"{label}: {unknown!r} is no key of an objective; write {_EXAMPLE}")
    weights = {name: _number(f"{label}: weights.{name}", value) for name, value in _table(label, content, "weights")}
    if not weights:
        raise ValueError(f"{label}: it has no weights; write {_EXAMPLE}")
    bounds = {name: _bound(f"{label}: at_most.{name}", value) for name, value in _table(label, content, "at_most")}
    return WantedObjective(str(path), weights, bounds)


def _table(label: str, content: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    table = content.get(key, {})
    if not isinstance(table, dict):
        raise ValueError(f"{label}: {key} must be a table of measures; write {_EXAMPLE}")
    for name in table:
        if name not in MEASURES:
            raise ValueError(f"{label}: {key}.{name} is no measure{nearest(name, MEASURES)}")
    return list(table.items())


def _bound(where: str, value: object) -> Bound:
    if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= {"times_fcfs", "value"}:
        raise ValueError(f"{where} must be {{times_fcfs = 1.2}} or {{value = 60.0}}, got {value!r}")
    ((key, number),) = value.items()
    return Bound(**{key: _number(f"{where}.{key}", number)})


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{where} must be a number above 0, got {repr(value)[:40]}")
    return float(value)
