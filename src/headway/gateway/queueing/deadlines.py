"""Whose deadline passes while they wait: known without looking at everybody."""

from __future__ import annotations

import heapq
from itertools import count

from headway.gateway.relay.exchange import Exchange

_COMPACT_ABOVE = 64


class Deadlines:
    """Of those who were queued with one. Times are seconds on the dispatcher's clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Exchange]] = []  # with some who have left the queue since
        self._number = count()
        self._compact_above = _COMPACT_ABOVE

    def queued(self, exchange: Exchange) -> None:
        """It waits from now on."""
        deadline = exchange.request.deadline
        if deadline is not None:
            heapq.heappush(self._heap, (deadline, next(self._number), exchange))
            if len(self._heap) > self._compact_above:
                self._heap = [entry for entry in self._heap if entry[2].is_queued]
                heapq.heapify(self._heap)
                self._compact_above = max(_COMPACT_ABOVE, 2 * len(self._heap))

    def passed(self, now: float) -> list[Exchange]:
        """Those still in a queue whose deadline has passed since the last time, the earliest first."""
        found: dict[int, Exchange] = {}  # who came back to the queue is there twice
        while self._heap and self._heap[0][0] <= now:
            exchange = heapq.heappop(self._heap)[2]
            if exchange.is_queued:
                found[id(exchange)] = exchange
        return list(found.values())
