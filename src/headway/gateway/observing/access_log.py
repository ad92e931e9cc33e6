"""Access log: one line per request that ended, with `headway serve --log-requests`."""

from __future__ import annotations

import logging

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.relay.exchange import Exchange, id_text

log = logging.getLogger("headway.gateway")


class AccessLog:
    """Logs each request when it ends: lengths, times and names, none of its text."""

    def dispatched(self, exchange: Exchange, now: float) -> None:
        """Nothing is logged yet."""

    def ended(self, exchange: Exchange, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Log the request."""
        fields = {
            "request": id_text(exchange.request_id),
            "tenant": exchange.request.tenant,
            "outcome": str(outcome),
            "reason": reason and str(reason),
            "status": exchange.status,
            "replica": exchange.replica.name if exchange.replica is not None else None,
            "prompt_tokens": exchange.request.prompt_tokens,
            "output_tokens": exchange.output_tokens,
            "waited_seconds": round((exchange.dispatched_at or now) - exchange.arrived_at, 6),
            "seconds": round(now - exchange.arrived_at, 6),
        }
        log.info("request", extra={"fields": fields})
