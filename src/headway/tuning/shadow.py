"""What FCFS would have done with the same traffic on the same replica: an estimate beside the live order.

The live order shows when the replica took in how much prefill work. FCFS would have taken in the same work at the same
times, but in order of arrival. So each live admission of w tokens pays for the next w tokens of arrivals in order.
Exact where the live order is FCFS itself; elsewhere it neglects that another order batches differently.
"""

from __future__ import annotations

from collections import deque

from headway.domain.request import RequestId


class ShadowFcfs:
    """A queue on paper. Times are seconds."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[RequestId, float, int]] = deque()
        self._gone: set[RequestId] = set()
        self._budget_tokens = 0

    def arrived(self, request_id: RequestId, at: float, tokens: int) -> None:
        """A request joins the queue."""
        self._waiting.append((request_id, at, tokens))

    def left(self, request_id: RequestId) -> None:
        """Its client gave up while it waited in the live queue; on paper it may have been served by then."""
        self._gone.add(request_id)

    def admitted(self, tokens: int) -> list[float]:
        """The live queue let in so many tokens; arrival times of those FCFS would have let in for them, in order."""
        self._budget_tokens += max(1, tokens)
        let_in = []
        while self._waiting and self._budget_tokens > 0:
            request_id, arrived_at, cost = self._waiting.popleft()
            if request_id in self._gone:
                self._gone.discard(request_id)
                continue
            let_in.append(arrived_at)
            self._budget_tokens -= max(1, cost)
        if not self._waiting:
            self._budget_tokens = min(0, self._budget_tokens)
            self._gone.clear()
        return let_in

    def waiting(self) -> list[float]:
        """Arrival times of those who would still wait, in order."""
        return [arrived_at for request_id, arrived_at, _ in self._waiting if request_id not in self._gone]
