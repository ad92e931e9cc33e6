"""Length estimate given by a survival curve: the common form of learned predictions."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate


class PiecewiseEstimate:
    """A survival curve P(L > x), linear between whole numbers of tokens; satisfies `LengthEstimate`.

    A request that outlives the whole curve is believed to follow a Pareto law of index 2 from there: in the mean it
    goes on as long as it took so far, as `PointEstimate` has it.
    """

    __slots__ = ("_areas", "_edges", "_gone", "_mean", "made_by")

    def __init__(
        self, edges: Sequence[int], survival: Sequence[float], made_by: str, at_most_tokens: int | None = None
    ) -> None:
        """Make one from points of the curve.

        Args:
            edges: tokens, ascending, the first 0.
            survival: P(L > edge) at each, not increasing, 1 at the first. What is left at the last edge ends evenly
                before twice as many tokens.
            made_by: name of the predictor.
            at_most_tokens: the client's own bound: a request that reaches it ends there.
        """
        if len(edges) != len(survival) or len(edges) < 2 or edges[0] != 0 or survival[0] != 1:
            raise ValueError("a survival curve needs two points or more, the first at 0 tokens with probability 1")
        self.made_by = made_by
        # Every waiting request has one of these: edges are shared where they can be, floats are packed.
        self._edges = tuple(edges)
        self._gone = array("d", [1.0 - left for left in survival])  # P(L ≤ edge), ascending
        if self._gone[-1] < 1.0:
            self._edges = _with_the_end(self._edges)
            self._gone.append(1.0)
        self._areas: array[float] | None = None
        self._mean: float | None = None  # of the whole length, which is asked for most
        if at_most_tokens is not None and at_most_tokens < self._edges[-1]:
            self._cut_off(max(1, at_most_tokens))

    def remaining_mean(self, produced_tokens: int) -> float:
        """Σ P(L > x) / P(L > produced) over whole x ≥ produced: the area under the curve and half a token."""
        if produced_tokens:
            return self._mean_after(produced_tokens)
        if self._mean is None:
            self._mean = self._mean_after(0)
        return self._mean

    def _mean_after(self, produced_tokens: int) -> float:
        left = self.survival(produced_tokens)
        if left <= 0:
            return float(max(1, produced_tokens))
        if self._areas is None:
            self._areas = self._areas_right_of_edges()
        edges = self._edges
        after = bisect_right(edges, produced_tokens)
        area = self._areas[after] + (edges[after] - produced_tokens) * (left + 1.0 - self._gone[after]) / 2
        return max(1.0, area / left + 0.5)

    def remaining_quantile(self, probability: float, produced_tokens: int) -> int:
        """Least n ≥ 1 with P(L ≤ produced + n | L > produced) ≥ probability."""
        left = self.survival(produced_tokens)
        if left <= 0:
            return max(1, math.ceil(produced_tokens * (1.0 / math.sqrt(1.0 - probability) - 1.0)))
        edges, gone = self._edges, self._gone
        wanted = 1.0 - (1.0 - probability) * left
        at = min(bisect_left(gone, wanted), len(gone) - 1)
        rise = gone[at] - gone[at - 1]
        if at == 0 or rise <= 0:
            tokens = float(edges[at])
        else:
            tokens = edges[at - 1] + (edges[at] - edges[at - 1]) * (wanted - gone[at - 1]) / rise
        # The small subtrahend keeps rounding from turning a whole number into the next one.
        return max(1, math.ceil(tokens - 1e-9) - produced_tokens)

    def remaining_survival(self, tokens: int, produced_tokens: int) -> float:
        """P(L > produced + tokens | L > produced)."""
        left = self.survival(produced_tokens)
        if left > 0:
            return self.survival(produced_tokens + tokens) / left
        return (produced_tokens / (produced_tokens + tokens)) ** 2 if tokens > 0 else 1.0

    def remaining_survivals(self, tokens: Sequence[int], produced_tokens: int) -> list[float]:
        """`remaining_survival` at several ascending numbers of tokens."""
        left = self.survival(produced_tokens)
        if left <= 0:
            return [self.remaining_survival(number, produced_tokens) for number in tokens]
        edges, gone = self._edges, self._gone
        last, after = len(edges), 0
        survivals = []
        for number in tokens:
            total = produced_tokens + number
            after = bisect_right(edges, total, after)
            if after == last:
                survivals.append(0.0)
                continue
            low, before = edges[after - 1], gone[after - 1]
            survivals.append((1.0 - before - (gone[after] - before) * (total - low) / (edges[after] - low)) / left)
        return survivals

    def survival(self, tokens: int) -> float:
        """P(L > tokens)."""
        if tokens <= 0:
            return 1.0
        edges = self._edges
        after = bisect_right(edges, tokens)
        if after == len(edges):
            return 0.0
        low, gone = edges[after - 1], self._gone
        return 1.0 - gone[after - 1] - (gone[after] - gone[after - 1]) * (tokens - low) / (edges[after] - low)

    def _cut_off(self, at_most_tokens: int) -> None:
        just_before = 1.0 - self.survival(at_most_tokens - 1)
        keep = bisect_left(self._edges, at_most_tokens - 1)
        self._edges = (*self._edges[:keep], at_most_tokens - 1, at_most_tokens)
        self._gone[keep:] = array("d", [just_before, 1.0])

    def _areas_right_of_edges(self) -> array[float]:
        edges, gone = self._edges, self._gone
        pieces = [(edges[i + 1] - edges[i]) * (1.0 - (gone[i] + gone[i + 1]) / 2) for i in range(len(edges) - 1)]
        return array("d", [*reversed(list(accumulate(reversed(pieces)))), 0.0])

    def __repr__(self) -> str:
        return f"PiecewiseEstimate(median {self.remaining_quantile(0.5, 0)}, {self.made_by!r})"


@lru_cache(maxsize=64)
def _with_the_end(edges: tuple[int, ...]) -> tuple[int, ...]:
    """The edges, and one more where what is left at the last one has ended."""
    return (*edges, 2 * edges[-1])
