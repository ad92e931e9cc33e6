"""Drift test: has the workload changed? Kolmogorov–Smirnov tests on prompt lengths and on gaps between arrivals."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def ks_distance(a: Floats, b: Floats) -> float:
    """The largest distance between the two empirical distribution functions, in [0, 1]."""
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    shares_a = np.searchsorted(a, both, side="right") / len(a)
    shares_b = np.searchsorted(b, both, side="right") / len(b)
    return float(np.abs(shares_a - shares_b).max())


def ks_threshold(n: int, m: int, significance: float) -> float:
    """The distance that two samples of one distribution pass with probability `significance`, for large samples.

    Source: Smirnov's limit, c(α)·√((n + m)/(n·m)) with c(α) = √(−ln(α/2)/2). Conservative for ties.
    """
    return math.sqrt(-math.log(significance / 2) / 2 * (n + m) / (n * m))


class DriftTest:
    """Compares the latest requests with those at the last restart, every `every` requests.

    `significance` is the chance of a false alarm per comparison, halved over the two tests. Arrival gaps are far from
    independent in real traffic, so gaps must differ by `least_distance` as well as significantly; so must lengths.
    """

    def __init__(
        self, *, sample: int = 500, every: int = 100, significance: float = 1e-4, least_distance: float = 0.15
    ) -> None:
        self._every = every
        self._significance = significance
        self._least = least_distance
        self._sample = sample
        self._last_at: float | None = None
        self.restart()

    def restart(self) -> None:
        """The next `sample` requests are what later ones are compared with."""
        self._reference: list[tuple[float, float]] = []
        self._recent: deque[tuple[float, float]] = deque(maxlen=self._sample)
        self._since = 0

    def arrived(self, at: float, tokens: int) -> str | None:
        """Add an arrival; returns what drifted, in words, or None."""
        gap = 0.0 if self._last_at is None else at - self._last_at
        self._last_at = at
        if len(self._reference) < self._sample:
            self._reference.append((float(tokens), gap))
            return None
        self._recent.append((float(tokens), gap))
        self._since += 1
        if len(self._recent) < self._sample or self._since < self._every:
            return None
        self._since = 0
        return self._compare()

    def _compare(self) -> str | None:
        before, now = np.array(self._reference), np.array(self._recent)
        limit = max(self._least, ks_threshold(len(before), len(now), self._significance / 2))
        for place, what in enumerate(("prompt lengths", "gaps between arrivals")):
            distance = ks_distance(before[:, place], now[:, place])
            if distance > limit:
                return f"{what} have changed (Kolmogorov–Smirnov distance {distance:.2f}, limit {limit:.2f})"
        return None
