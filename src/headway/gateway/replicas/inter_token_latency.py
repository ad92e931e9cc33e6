"""Inter-token latency (ITL) of a replica: times between the tokens of its streams, counted in buckets as they come."""

from __future__ import annotations

from bisect import bisect_left

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
"""Upper bounds of the buckets; a bound belongs to its bucket."""


class InterTokenLatency:
    """Of all streams of one replica.

    Attributes:
        counts: times per bucket; the last is above all bounds.
        seconds: sum of all of them.
    """

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(TOKEN_SECONDS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """A token came so long after the one before it."""
        self.counts[bisect_left(TOKEN_SECONDS, seconds)] += 1
        self.seconds += seconds
