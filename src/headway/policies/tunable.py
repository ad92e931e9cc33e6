"""What of a policy a tuner may move: a class attribute `TUNABLE`, a tuple of these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class Tunable(NamedTuple):
    """One option of a policy that may be searched over.

    Attributes:
        name: the constructor's keyword.
        low: least value of the search box.
        high: largest value.
        scale: "log" where a factor means more than a difference; only above 0.
        whole: whether only whole numbers make sense.
    """

    name: str
    low: float
    high: float
    scale: str = "linear"
    whole: bool = False

    def value(self, share: float) -> float | int:
        """The value at a point of [0, 1]."""
        if self.scale == "log":
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return round(value) if self.whole else min(self.high, max(self.low, value))

    def share(self, value: float) -> float:
        """The point of [0, 1] a value stands at; the nearer end for one outside."""
        if self.high == self.low:
            return 0.0
        inside = min(self.high, max(self.low, value))
        if self.scale == "log":
            return math.log(inside / self.low) / math.log(self.high / self.low)
        return (inside - self.low) / (self.high - self.low)


class Retunable(Protocol):
    """A policy whose parameters may be changed while requests wait."""

    def retune(self, values: Mapping[str, float]) -> None:
        """Take new values of its tunable options, those named; the next choice is made with them."""


def tunables(policy: type[Any]) -> tuple[Tunable, ...]:
    """What a policy class declares; () for one that declares nothing."""
    declared: tuple[Tunable, ...] = getattr(policy, "TUNABLE", ())
    return declared
