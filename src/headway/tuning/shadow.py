"""What FCFS would have done with the same traffic on the same replica: an estimate beside the live order.

The live order shows when the replica took in how much prefill work. FCFS would have taken in the same work at the same
times, but in order of arrival. So each live admission of w tokens pays for the next w tokens of arrivals in order.
Exact where the live order is FCFS itself; elsewhere it neglects that another order batches differently.
"""

from __future__ import annotations

from collections import OrderedDict

from headway.domain.request import RequestId


class ShadowFcfs:
    """A queue on paper. Times are seconds; arrival times of those let in come back in order."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[RequestId, tuple[float, int]] = OrderedDict()  # arrived at, tokens
        self._waiting_live = 0
        self._budget_tokens = 0

    def arrived(self, request_id: RequestId, at: float, tokens: int) -> None:
        """A request joins the queue."""
        self._waiting[request_id] = (at, tokens)
        self._waiting_live += 1

    def left(self, request_id: RequestId) -> list[float]:
        """Its client gave up while it waited in the live queue; on paper it may have been served by then."""
        self._waiting.pop(request_id, None)
        return self._let_in()

    def admitted(self, tokens: int) -> list[float]:
        """The live queue let in so many tokens: whom FCFS would have let in for them."""
        self._budget_tokens += max(1, tokens)
        return self._let_in()

    def waiting(self) -> list[float]:
        """Arrival times of those who would still wait, in order."""
        return [arrived_at for arrived_at, _ in self._waiting.values()]

    def _let_in(self) -> list[float]:
        """One fewer waits live. When nobody does, the replica has room, and nobody would wait under FCFS either."""
        self._waiting_live -= 1
        let_in = []
        while self._waiting and (self._budget_tokens > 0 or not self._waiting_live):
            _, (arrived_at, cost) = self._waiting.popitem(last=False)
            let_in.append(arrived_at)
            self._budget_tokens -= max(1, cost)
        if not self._waiting:
            self._budget_tokens = min(0, self._budget_tokens) if self._waiting_live else 0
        return let_in
