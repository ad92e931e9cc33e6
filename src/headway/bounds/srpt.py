"""Shortest remaining processing time (SRPT) on one machine, with arrivals: the earliest completions possible."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def earliest_completions(released: Sequence[int], work: Sequence[int]) -> list[int]:
    """Completions, rising: no schedule of one machine makes its k-th completion earlier than the k-th here.

    Job i of n is there from `released[i]` on and done after `work[i]` (≥ 0) of the machine's time; units are free, say
    picoseconds. Shortest remaining work first has, at every moment, the fewest jobs unfinished of all schedules that
    may interrupt (L. Schrage, A proof of the optimality of the shortest remaining processing time discipline,
    Operations Research 16, 1968; D. R. Smith, A new proof, 1978). O(n log n).
    """
    completions: list[int] = []
    remaining: list[int] = []
    now = 0
    for release, amount in sorted(zip(released, work, strict=True)):
        while remaining and now + remaining[0] <= release:
            now += heapq.heappop(remaining)
            completions.append(now)
        if remaining and now < release:
            heapq.heapreplace(remaining, remaining[0] - (release - now))
        now = max(now, release)
        heapq.heappush(remaining, amount)
    while remaining:
        now += heapq.heappop(remaining)
        completions.append(now)
    return completions
