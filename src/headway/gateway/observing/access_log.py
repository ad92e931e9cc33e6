"""Access log: one line per request that ended, with `headway serve --log-requests`."""

from __future__ import annotations

import logging

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.request_state import GatewayRequest, id_text

log = logging.getLogger("headway.gateway")


class AccessLog:
    """Logs each request when it ends: lengths, times and names, none of its text."""

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Log the request."""
        queued, replica = request.queued, request.queued.replica
        fields = {
            "request": id_text(request.arrived.request_id),
            "tenant": request.arrived.tenant,
            "outcome": str(outcome),
            "reason": reason and str(reason),
            "status": request.relayed.status,
            "replica": replica.name if replica is not None else None,
            "prompt_tokens": queued.prompt_tokens,
            "output_tokens": request.relayed.output_tokens,
            "waited_seconds": round((queued.dispatched_at or now) - queued.arrived_at, 6),
            "seconds": round(now - queued.arrived_at, 6),
        }
        log.info("request", extra={"fields": fields})
