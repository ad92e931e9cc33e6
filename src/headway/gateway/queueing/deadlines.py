"""Deadlines of waiting requests: which have passed, without a look at all requests."""

from __future__ import annotations

import heapq
from itertools import count

from headway.gateway.queueing.request_state import GatewayRequest, RequestStage

_COMPACT_ABOVE = 64


class Deadlines:
    """Queued requests that have a deadline. Times are seconds on the dispatcher's clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, GatewayRequest]] = []  # with some that have left the queue since
        self._number = count()
        self._compact_above = _COMPACT_ABOVE

    def queued(self, request: GatewayRequest) -> None:
        """A request waits from now on."""
        deadline = request.arrived.deadline
        if deadline is not None:
            heapq.heappush(self._heap, (deadline, next(self._number), request))
            if len(self._heap) > self._compact_above:
                self._heap = [entry for entry in self._heap if entry[2].stage is RequestStage.QUEUED]
                heapq.heapify(self._heap)
                self._compact_above = max(_COMPACT_ABOVE, 2 * len(self._heap))

    def passed(self, now: float) -> list[GatewayRequest]:
        """Requests still queued whose deadline has passed since the last call, the earliest first."""
        late: dict[int, GatewayRequest] = {}  # a request that was taken back is in the heap twice
        while self._heap and self._heap[0][0] <= now:
            request = heapq.heappop(self._heap)[2]
            if request.stage is RequestStage.QUEUED:
                late[request.arrived.number] = request
        return list(late.values())
