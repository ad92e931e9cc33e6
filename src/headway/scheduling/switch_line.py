"""Switch line: requests that waited when the order was changed, in their old order, with a bound on being passed.

Law: at a switch, let A be the work that the old order would have served before a waiting request. The request is served
at the latest when `SETBACK_FACTOR` · A + `allowance_tokens` of work have been served since the switch, whatever the new
order wants and whatever else arrives. Work is prompt tokens. It counts what the order chose: requests that were
preempted come first, as always, and what passes a head that does not fit is not held back.

Proof: let w be the work served since the switch, and A of the line's head what the line's heads before it brought.
The new order's choice of work p is served only if w + p ≤ c · A + b. So w ≤ c · A + b holds for the head always:
serving the head of work h adds h to w, and c · h ≥ h to the bound of the next one.
"""

from __future__ import annotations

from headway.domain.request import Request, RequestId
from headway.scheduling.queue import WaitingQueue

SETBACK_FACTOR = 2.0
"""Half of the service goes to the line, where the new order wants it for others."""
ALLOWANCE_TOKENS = 16_384.0
"""The new order may be served so much at once; two of vLLM's default steps."""


class SwitchLine:
    """The requests that waited at a switch. It takes the old queue over; `first` names the next one to serve."""

    def __init__(
        self, old: WaitingQueue, factor: float = SETBACK_FACTOR, allowance_tokens: float = ALLOWANCE_TOKENS
    ) -> None:
        """Raises ValueError if `factor` is below 1: then the law could not be kept."""
        if not factor >= 1:
            raise ValueError(f"factor must be at least 1, got {factor}")
        self._old = old
        self._factor = factor
        self._bound_tokens = allowance_tokens
        self._served_tokens = 0.0

    def __len__(self) -> int:
        return len(self._old)

    def first(self, chosen: Request | None, now: float) -> Request | None:
        """The request to serve next where the new order chose this one (None: it has none)."""
        head = self._old.head(now)
        if head is None or chosen is None or chosen is head:
            return chosen if head is None else head
        return chosen if self._served_tokens + chosen.prompt_tokens <= self._bound_tokens else head

    def stands_until(self, now: float) -> float:
        """Time at which its head may be another one although none has left; `math.inf` if never."""
        return self._old.stands_until(now)

    def served(self, request: Request, now: float) -> None:
        """A request that `first` gave is served."""
        if not self._old:
            return
        self._served_tokens += request.prompt_tokens
        if self._old.head(now) is request:
            self._bound_tokens += self._factor * request.prompt_tokens
        self._old.remove(request.id)

    def left(self, request_id: RequestId) -> None:
        """A request waits no more, or not in the line: its client left, it passed a head, or it cannot run now."""
        self._old.remove(request_id)
