"""Class queue: the waiting queues of online and offline requests, as one; no offline request before an online one.

Laws: the head is offline only where no online request waits; inside a class the order is its own ordering's, which sees
and hears of no request of the other class; all laws of `WaitingQueue` hold in each.
"""

from __future__ import annotations

from collections.abc import Iterator

from headway.domain.request import Request, RequestId
from headway.policies.contracts import LaneId
from headway.scheduling.queue import WaitingQueue


class ClassQueue:
    """Two waiting queues. `online` is the one to ask where nothing is offline, as mostly."""

    def __init__(self, online: WaitingQueue, offline: WaitingQueue) -> None:
        self.online = online
        self.offline = offline

    def __len__(self) -> int:
        return len(self.online) + len(self.offline)

    def __iter__(self) -> Iterator[Request]:
        """All waiting requests, in no promised order."""
        yield from self.online
        yield from self.offline

    @property
    def is_laned(self) -> bool:
        """Whether time alone may change what comes behind the head."""
        return self._served.is_laned

    def lane_sizes(self) -> dict[LaneId, int]:
        """How many wait in each lane of the online queue. O(waiting)."""
        return self.online.lane_sizes()

    def lane_heads(self) -> dict[LaneId, Request]:
        """The first request of each lane of the online queue."""
        return self.online.lane_heads()

    def add(self, request: Request) -> None:
        """Put a request in, one set aside into its old place. Raises ValueError if its id is waiting already."""
        self._of(request).add(request)

    def set_aside(self, request_id: RequestId) -> None:
        """Take out a request that cannot run for a while; see `WaitingQueue.set_aside`."""
        self._holding(request_id).set_aside(request_id)

    def expect(self, request_id: RequestId) -> None:
        """Keep a place among equals for a request that an earlier queue set aside; its class shows when it returns."""
        self.online.expect(request_id)
        self.offline.expect(request_id)

    def forget(self, request_id: RequestId) -> None:
        """A request that was set aside does not come back."""
        self.online.forget(request_id)
        self.offline.forget(request_id)

    def resume(self, request: Request) -> None:
        """Take a preempted request back. Raises ValueError if its id is waiting already."""
        self._of(request).resume(request)

    def requeue(self, request_id: RequestId) -> None:
        """Ask again for the lane and rank of a waiting request, whose work has changed; one in front stays there."""
        self._holding(request_id).requeue(request_id)

    def head(self, now: float) -> Request | None:
        """The next request at time `now` (seconds): an online one if any waits. None if the queue is empty."""
        head = self.online.head(now)
        return self.offline.head(now) if head is None else head

    def following(self, now: float, limit: int) -> list[Request]:
        """Up to `limit` requests of the head's class behind it, about in order of service."""
        return self._served.following(now, limit)

    def stands_until(self, now: float) -> float:
        """Time at which `head` may answer otherwise although nothing was added or taken; `math.inf` if never."""
        return self._served.stands_until(now)

    def reconsider(self) -> None:
        """An ordering learned something."""
        self.online.reconsider()
        self.offline.reconsider()

    def pop(self, now: float) -> Request:
        """Take the head out. Raises IndexError if the queue is empty."""
        return self._served.pop(now)

    def remove(self, request_id: RequestId) -> Request | None:
        """Take one request out wherever it stands (its client left); None if it does not wait."""
        request = self.online.remove(request_id)
        return self.offline.remove(request_id) if request is None else request

    @property
    def _served(self) -> WaitingQueue:
        """The queue of the head."""
        return self.online if len(self.online) else self.offline

    def _of(self, request: Request) -> WaitingQueue:
        return self.offline if request.is_offline else self.online

    def _holding(self, request_id: RequestId) -> WaitingQueue:
        return self.offline if request_id in self.offline else self.online
