"""Deadlines of requests: which have passed, without a look at all requests."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from headway.gateway.queueing.request_state import GatewayRequest

_COMPACT_ABOVE = 64


class Deadlines:
    """Times by which something has to happen to a request, in seconds on the dispatcher's clock.

    Only numbers of requests are kept, so that one that has ended is freed with its body.
    """

    def __init__(
        self, time_of: Callable[[GatewayRequest], float | None], still_due: Callable[[int], GatewayRequest | None]
    ) -> None:
        """`time_of` gives a request's time, or None; `still_due` the request of a number, None if it is not."""
        self._time_of = time_of
        self._still_due = still_due
        self._heap: list[tuple[float, int]] = []  # with some that are not due any more
        self._compact_above = _COMPACT_ABOVE

    def add(self, request: GatewayRequest) -> None:
        """A request is due from now on."""
        time = self._time_of(request)
        if time is not None:
            heapq.heappush(self._heap, (time, request.arrived.number))
            if len(self._heap) > self._compact_above:
                self._heap = [entry for entry in self._heap if self._still_due(entry[1]) is not None]
                heapq.heapify(self._heap)
                self._compact_above = max(_COMPACT_ABOVE, 2 * len(self._heap))

    def passed(self, now: float) -> list[GatewayRequest]:
        """Requests still due whose time has passed since the last call, the earliest first."""
        late: dict[int, GatewayRequest] = {}  # a request that was taken back is in the heap twice
        while self._heap and self._heap[0][0] <= now:
            number = heapq.heappop(self._heap)[1]
            request = self._still_due(number)
            if request is not None:
                late[number] = request
        return list(late.values())
