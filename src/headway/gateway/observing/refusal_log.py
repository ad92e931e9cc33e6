"""Log of refusals: one line per reason and second with their number, so that a flood is seen and fills no disk."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from headway.gateway.openai.error_responses import Reason, reason_of
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.wire.messages import Response

log = logging.getLogger("headway.gateway")
_WHY_LENGTH_MAX = 300  # a sentence may name the path that the client sent


@dataclass(slots=True)
class _Refused:
    """Requests refused for one reason since the last line."""

    requests: int = 0
    latest_client: str = ""  # its tenant where that is known, else its address
    latest_answer: bytes = b""  # to a request that entered no queue: it names the limit or the mistake


class RefusalLog:
    """Counts refusals before the queue and by the queue; `flush` logs them, about once a second."""

    def __init__(self) -> None:
        self._refused: dict[tuple[int, str], _Refused] = {}

    def rejected(self, response: Response, address: str) -> None:
        """A request was refused before the queue: it is malformed, has no valid key, or breaks a limit."""
        self._count(response.status, reason_of(response), address).latest_answer = response.body

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Count it if it was refused."""
        if outcome is Outcome.REFUSED:
            client = request.arrived.payer or request.arrived.http.client_address
            self._count(request.relayed.status, str(reason or ""), client)

    def flush(self) -> None:
        """Log what was refused since the last call."""
        for (status, reason), refused in self._refused.items():
            fields: dict[str, object] = {
                "status": status,
                "reason": reason,
                "requests": refused.requests,
                "latest": refused.latest_client,
            }
            if refused.latest_answer:
                fields["why"] = json.loads(refused.latest_answer)["error"]["message"][:_WHY_LENGTH_MAX]
            log.warning("requests refused", extra={"fields": fields})
        self._refused.clear()

    def _count(self, status: int, reason: str, client: str) -> _Refused:
        refused = self._refused.setdefault((status, reason), _Refused())
        refused.requests += 1
        refused.latest_client = client
        return refused
