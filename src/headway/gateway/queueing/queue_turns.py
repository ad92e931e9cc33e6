"""Turns of the queues at the replicas' room: which queue's head is dispatched next.

Laws:
- A queue that was served stands behind all others: while two queues have a head that fits, neither is served twice
  running.
- Under `fair-share` the queue whose tenant was given the least service comes first, under `weighted-fair-queue` the
  one whose head has the least virtual finish time; turns decide between equals.
- A head that does not fit is passed by at most `PASSES_MAX` requests of other queues. After that the replicas that
  could serve it take no others, so that room for it comes about.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import count
from typing import Generic, Protocol, TypeVar

PASSES_MAX = 8

QueueT = TypeVar("QueueT", bound="TurnTaker")


class TurnTaker(Protocol):
    """A queue, as far as turns go."""

    @property
    def key(self) -> Hashable:
        """Its name."""

    def standing(self, now: float) -> float:
        """Lower comes first, whatever the turns."""


class Turns(Generic[QueueT]):
    """The order in which queues are asked for their heads."""

    def __init__(self) -> None:
        self._served: dict[Hashable, int] = {}  # number of its latest turn; a queue without one comes first
        self._passed: dict[Hashable, int] = {}  # dispatches of other queues since its head did not fit
        self._number = count(1)

    def order(self, queues: Sequence[QueueT], now: float) -> list[QueueT]:
        """The queues, the one to serve next first."""
        if len(queues) < 2:
            return list(queues)
        served = self._served
        return sorted(queues, key=lambda queue: (queue.standing(now), served.get(queue.key, 0)))

    def is_owed(self, queue: QueueT) -> bool:
        """Whether the replicas of its head must be kept free for it."""
        return self._passed.get(queue.key, 0) >= PASSES_MAX

    def served(self, queue: QueueT, passed: Iterable[QueueT], *, is_head: bool = True) -> None:
        """A request of a queue was dispatched, past the heads of others, which came before it.

        Those wait for the same room. Where the request is not its queue's head (`is_head`), the head still waits too.
        """
        self._served[queue.key] = next(self._number)
        if is_head:
            self._passed.pop(queue.key, None)
        for other in passed:
            self._passed[other.key] = self._passed.get(other.key, 0) + 1

    def forget(self, queue: QueueT) -> None:
        """The queue is gone."""
        self._served.pop(queue.key, None)
        self._passed.pop(queue.key, None)
