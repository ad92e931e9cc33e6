"""Histograms and counters that are cheap to update, turned into Prometheus's families at each scrape.

prometheus_client takes a lock and walks the buckets on every observation. In a process of one thread that is most of
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
    """Observations per bucket, and their sum in seconds."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)  # the last is above all bounds
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds


class BucketHistograms(dict[tuple[str, ...], BucketHistogram]):
    """A histogram of Prometheus: one `BucketHistogram` per label values, made at its first use."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        super().__init__()
        self._family = name, help_text, labels

    def __missing__(self, values: tuple[str, ...]) -> BucketHistogram:
        histogram = self[values] = BucketHistogram()
        return histogram

    def collect(self) -> Iterator[Metric]:
        """The family at this scrape (prometheus_client)."""
        name, help_text, labels = self._family
        family = HistogramMetricFamily(name, help_text, labels=labels)
        bounds = [*(str(float(bound)) for bound in SECONDS), "+Inf"]
        for values, histogram in self.items():
            buckets = [(bound, float(count)) for bound, count in zip(bounds, accumulate(histogram.counts), strict=True)]
            family.add_metric(values, buckets, histogram.sum)
        yield family


class Counters(dict[tuple[str, ...], int]):
    """A counter of Prometheus: one number per label values, 0 before it is counted."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        super().__init__()
        self._family = name, help_text, labels

    def __missing__(self, values: tuple[str, ...]) -> int:
        return 0

    def collect(self) -> Iterator[Metric]:
        """The family at this scrape (prometheus_client)."""
        name, help_text, labels = self._family
        family = CounterMetricFamily(name, help_text, labels=labels)
        for values, number in self.items():
            family.add_metric(values, number)
        yield family
