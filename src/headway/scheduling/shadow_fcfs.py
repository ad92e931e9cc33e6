"""Shadow FCFS: when first come, first served would have admitted each request, estimated beside the live order.

The live order shows when the replica spent what limits it: prefill tokens, or seats too. FCFS would have spent the same
at the same times, in order of arrival. So it would have admitted a request once more had been spent, of each limit,
than all requests before it need. Exact where the live order is FCFS; elsewhere each limit is a bound that FCFS could
not have beaten, and it neglects that another order batches differently, frees seats at other times, and hits other
prefixes. An estimate to notice harm by, not a measurement.

The turn of the policy priced-work is another quantity: it comes only once the request's own work has been spent too,
which the proof of its bound needs (docs/priced-work.md).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

from headway.domain.request import RequestId


class ShadowAdmission(NamedTuple):
    """A request that FCFS would have admitted now."""

    request_id: RequestId
    arrived_at: float


class ShadowFcfs:
    """The queue that FCFS would have had. Times are in seconds; admissions come back in order of arrival."""

    def __init__(self, *, seats: bool) -> None:
        """`seats`: whether seats limit the engine, or prefill tokens alone."""
        self._waiting: OrderedDict[RequestId, tuple[float, int]] = OrderedDict()  # arrived at, prefill tokens
        self._waiting_live = 0
        # Spent by the live order, less what the requests admitted here needed.
        self._tokens_left = 0
        self._seats_left = self._no_seats = 0 if seats else math.inf

    def arrived(self, request_id: RequestId, at: float, tokens: int) -> None:
        """A request of so many prefill tokens joins the queue. No tokens count as one: none is admitted for nothing."""
        self._waiting[request_id] = (at, tokens or 1)
        self._waiting_live += 1

    def left(self, request_id: RequestId) -> list[ShadowAdmission]:
        """A request was cancelled while it waited in the live queue; FCFS may have admitted it by then."""
        self._waiting.pop(request_id, None)
        return self._admit()

    def admitted(self, tokens: int) -> list[ShadowAdmission]:
        """The live order admitted a request of so many prefill tokens: which ones FCFS would have admitted for it."""
        self._tokens_left += tokens or 1
        self._seats_left += 1
        return self._admit()

    def waiting(self) -> list[float]:
        """Arrival times of the requests that would still wait, in order."""
        return [arrived_at for arrived_at, _ in self._waiting.values()]

    def _admit(self) -> list[ShadowAdmission]:
        """One request fewer waits live. When none does, the replica has room, and none would wait under FCFS either."""
        self._waiting_live -= 1
        admissions = []
        while self._waiting and (not self._waiting_live or (self._tokens_left > 0 and self._seats_left > 0)):
            request_id, (arrived_at, tokens) = self._waiting.popitem(last=False)
            admissions.append(ShadowAdmission(request_id, arrived_at))
            self._tokens_left -= tokens
            self._seats_left -= 1
        if not self._waiting:
            self._tokens_left = min(0, self._tokens_left) if self._waiting_live else 0
            self._seats_left = min(self._no_seats, self._seats_left) if self._waiting_live else self._no_seats
        return admissions
