"""Histograms and counters that cost next to nothing to feed, and are turned into Prometheus's families when asked for.

prometheus_client takes a lock and walks the buckets on every observation; in a process of one thread that is most of
what metrics cost.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
"""Upper bounds of the buckets; a bound belongs to its bucket."""


class BucketHistogram:
    """How often seconds fell into which bucket."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)  # the last is for whatever is longer
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds


class BucketHistograms(dict[tuple[str, ...], BucketHistogram]):
    """A histogram of Prometheus: spreads by the values of its labels; asking for one makes it."""

    def __init__(self, name: str, what: str, labels: Sequence[str]) -> None:
        super().__init__()
        self._family = name, what, labels

    def __missing__(self, values: tuple[str, ...]) -> BucketHistogram:
        made = self[values] = BucketHistogram()
        return made

    def collect(self) -> Iterator[Metric]:
        """Of prometheus_client."""
        name, what, labels = self._family
        family = HistogramMetricFamily(name, what, labels=labels)
        bounds = [*(str(float(bound)) for bound in SECONDS), "+Inf"]
        for values, spread in self.items():
            buckets = [(bound, float(count)) for bound, count in zip(bounds, accumulate(spread.counts), strict=True)]
            family.add_metric(values, buckets, spread.sum)
        yield family


class Counters(dict[tuple[str, ...], int]):
    """A counter of Prometheus: numbers by the values of its labels; one that was never counted is 0."""

    def __init__(self, name: str, what: str, labels: Sequence[str]) -> None:
        super().__init__()
        self._family = name, what, labels

    def __missing__(self, values: tuple[str, ...]) -> int:
        return 0

    def collect(self) -> Iterator[Metric]:
        """Of prometheus_client."""
        name, what, labels = self._family
        family = CounterMetricFamily(name, what, labels=labels)
        for values, number in self.items():
            family.add_metric(values, number)
        yield family
