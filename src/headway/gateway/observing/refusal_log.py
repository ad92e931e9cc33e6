"""Log of refusals: one line per reason and second with their number, so that a flood is seen and fills no disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from headway.gateway.openai.error_responses import REASON_HEADER, Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.wire.messages import Response

log = logging.getLogger("headway.gateway")


@dataclass(slots=True)
class _Refused:
    """Requests refused for one reason since the last line."""

    requests: int = 0
    latest_client: str = ""  # its address, or its tenant where that is known


class RefusalLog:
    """Counts refusals before the queue and by the queue; `flush` logs them, about once a second."""

    def __init__(self) -> None:
        self._refused: dict[tuple[int, str], _Refused] = {}

    def rejected(self, response: Response, address: str) -> None:
        """A request was refused before the queue: it is malformed, has no valid key, or breaks a limit."""
        reason = next((value.decode() for name, value in response.headers if name == REASON_HEADER), "")
        self._count(response.status, reason, address)

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Count it if it was refused."""
        if outcome is Outcome.REFUSED:
            self._count(request.relayed.status, str(reason or ""), request.arrived.payer)

    def flush(self) -> None:
        """Log what was refused since the last call."""
        for (status, reason), refused in self._refused.items():
            fields = {"status": status, "reason": reason, "requests": refused.requests, "latest": refused.latest_client}
            log.warning("requests refused", extra={"fields": fields})
        self._refused.clear()

    def _count(self, status: int, reason: str, client: str) -> None:
        refused = self._refused.setdefault((status, reason), _Refused())
        refused.requests += 1
        refused.latest_client = client
