"""The latest dispatches of a queue: how many of them entered it later than a request. O(log n) a dispatch."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque

_REMEMBERED = 4_096


class RecentDispatches:
    """Of each dispatch the number by which its request entered the queue, counted from 1."""

    def __init__(self) -> None:
        self._in_order: deque[int] = deque()  # of dispatch
        self._sorted: list[int] = []

    def note(self, entry: int) -> None:
        """A request was dispatched."""
        if len(self._in_order) == _REMEMBERED:
            del self._sorted[bisect_left(self._sorted, self._in_order.popleft())]
        self._in_order.append(entry)
        insort(self._sorted, entry)

    def later_than(self, entry: int) -> int:
        """How many entered later; each of them was dispatched since this one entered."""
        return len(self._sorted) - bisect_right(self._sorted, entry)
