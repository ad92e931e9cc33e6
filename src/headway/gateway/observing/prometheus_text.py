"""Prometheus's text format (0.0.4), written directly: a scrape of a thousand tenants must not hold up the event loop.

prometheus_client builds an object for each sample, which takes twenty times as long.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
"""Upper bounds of the buckets; a bound belongs to its bucket."""
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_LABELS = "\0"  # where a template takes the labels
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class BucketHistogram:
    """Observations per bucket, and their sum in seconds."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        """`bounds` are the upper ones of all buckets but the last, in seconds."""
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last is above all bounds
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def add(self, counts: Sequence[int], seconds: float) -> None:
        """Take observations that were counted elsewhere, in buckets of the same bounds; `seconds` is their sum."""
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, counts, strict=True)]
        self.sum += seconds


class HistogramFamily:
    """A histogram of Prometheus."""

    def __init__(self, name: str, help_text: str, bounds: Sequence[float] = SECONDS) -> None:
        """`bounds` are those of its `BucketHistogram`s."""
        self.head = _head(name, "histogram", help_text)
        self._name = name
        named = [*(str(float(bound)) for bound in bounds), "+Inf"]
        self._buckets = "".join([f'{name}_bucket{{le="{bound}"{_LABELS}}} %d.0\n' for bound in named])

    def lines(self, histogram: BucketHistogram, labels: str = "") -> str:
        """The samples of one series, whose `labels` are written as by `label_text`; none before an observation."""
        below = tuple(accumulate(histogram.counts))
        if not below[-1]:
            return ""
        parts = (self._buckets % below).split(_LABELS)
        buckets = (f",{labels}" if labels else "").join(parts)
        name, braced = self._name, _braced(labels)
        return f"{buckets}{name}_count{braced} {below[-1]}.0\n{name}_sum{braced} {histogram.sum!r}\n"


def label_text(labels: Mapping[str, str]) -> str:
    """Labels as they stand between the braces."""
    return ",".join([f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items()])


def counter_head(name: str, help_text: str) -> str:
    """The first lines of a counter; its samples are `counter_line`s."""
    return _head(f"{name}_total", "counter", help_text)


def counter_line(name: str, labels: str, number: float) -> str:
    """One sample."""
    return f"{name}_total{_braced(labels)} {float(number)!r}\n"


def gauge(name: str, help_text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> str:
    """A whole gauge."""
    lines = [f"{name}{_braced(label_text(labels))} {float(value)!r}\n" for labels, value in samples]
    return _head(name, "gauge", help_text) + "".join(lines)


def counter(name: str, help_text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> str:
    """A whole counter."""
    lines = [counter_line(name, label_text(labels), number) for labels, number in samples]
    return counter_head(name, help_text) + "".join(lines)


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _head(name: str, kind: str, help_text: str) -> str:
    return f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n"
