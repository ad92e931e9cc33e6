"""One option of a policy that a tuner may search over: name, range and scale."""

from __future__ import annotations

import math
from typing import NamedTuple


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
