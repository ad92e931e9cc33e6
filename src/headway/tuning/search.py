"""Search space of a tuner: a box over a policy's tunable options, and the fences around points that did harm."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.policies.contracts import tunables
from headway.policies.tunable import Tunable

Shares = dict[str, float]
"""A point of the unit cube, a coordinate an option. Searching there and not in the options' own units is what lets an
option with a range of 0.002 count as much as one with a range of 5."""


@dataclass(frozen=True, slots=True)
class SearchBox:
    """The options searched over, each with its range."""

    dimensions: tuple[Tunable, ...]

    @classmethod
    def of(
        cls,
        policy: type[Any],
        name: str,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        kept: Collection[str] = (),
    ) -> SearchBox:
        """A policy's own box, with `ranges` instead of its own where given, and without the options that are `kept`.

        Raises:
            ValueError: the policy declares nothing or all of it is kept, an option is not tunable, or a range is not
                one.
        """
        declared = {tunable.name: tunable for tunable in tunables(policy)}
        if not declared:
            raise ValueError(f"{name} declares no tunable options, so there is nothing to search")
        for option, (low, high) in (ranges or {}).items():
            if option not in declared:
                raise ValueError(f"{name} has no tunable option {option!r}: choose from {', '.join(declared)}")
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"the range of {option} must rise, got {low:g} to {high:g}")
            if declared[option].scale == "log" and low <= 0:
                raise ValueError(f"the range of {option} must be above 0, got {low:g}")
            declared[option] = declared[option]._replace(low=low, high=high)
        searched = tuple(tunable for tunable in declared.values() if tunable.name not in kept)
        if not searched:
            raise ValueError(f"every tunable option of {name} is kept at a value, so nothing is left to search")
        return cls(searched)

    def names(self) -> list[str]:
        """The options."""
        return [tunable.name for tunable in self.dimensions]

    def values(self, shares: Mapping[str, float]) -> dict[str, float]:
        """The options' values at a point."""
        return {tunable.name: tunable.value(shares[tunable.name]) for tunable in self.dimensions}

    def shares(self, values: Mapping[str, float]) -> Shares:
        """The point of some values, clipped to the box; the middle for an option not named."""
        return {t.name: t.share(values[t.name]) if t.name in values else 0.5 for t in self.dimensions}


@dataclass(slots=True)
class Fences:
    """Points that did harm: no trial comes within `radius` of them (distance over the square root of dimensions)."""

    radius: float = 0.1
    points: list[Shares] = field(default_factory=list)

    def add(self, point: Shares) -> None:
        """Fence a point off."""
        self.points.append(point)

    def forbids(self, point: Mapping[str, float]) -> bool:
        """Whether a point is too near to a fenced one."""
        return self.distance(point) < self.radius

    def distance(self, point: Mapping[str, float]) -> float:
        """Distance to the nearest fenced point; infinite when there is none."""
        return min((_distance(point, fenced) for fenced in self.points), default=math.inf)


def _distance(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    squares: Sequence[float] = [(a[name] - b[name]) ** 2 for name in b]
    return math.sqrt(sum(squares) / len(squares))
