"""Access log: one line per request that ended, with `headway serve --log-requests`. docs/metrics.md has its fields."""

from __future__ import annotations

import logging

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.request_state import GatewayRequest, id_text

_CHARACTERS_MAX = 200  # of what a client wrote
log = logging.getLogger("headway.gateway")


class AccessLog:
    """Logs each request when it ends: lengths, times and names, none of its text."""

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Log the request. Times are seconds from its arrival."""
        arrived, queued, relayed = request.arrived, request.queued, request.relayed
        replica, arrived_at, first_byte_at = queued.replica, arrived.arrived_at, relayed.first_byte_at
        first = None if first_byte_at is None else round(first_byte_at - arrived_at, 6)
        usage = relayed.usage
        fields = {
            "request": id_text(arrived.request_id),
            "client": arrived.http.client_address,
            "tenant": arrived.tenant[:_CHARACTERS_MAX],
            "path": arrived.http.path[:_CHARACTERS_MAX],
            "model": arrived.model[:_CHARACTERS_MAX],
            "asked_model": arrived.asked_model[:_CHARACTERS_MAX],
            "streams": arrived.streams,
            "outcome": str(outcome),
            "reason": reason and str(reason),
            "status": relayed.status,
            "replica": replica.name if replica is not None else None,
            "tries": queued.tries,
            "prompt_tokens": queued.prompt_tokens,
            "output_tokens": relayed.output_tokens,
            "counted_prompt_tokens": None if usage is None else usage.prompt_tokens,
            "counted_output_tokens": None if usage is None else usage.output_tokens,
            "cached_tokens": None if usage is None else usage.cached_tokens,
            "waited_seconds": round((queued.dispatched_at or now) - arrived_at, 6),
            "first_byte_seconds": first,
            "ttft_seconds": first if arrived.streams else None,
            "seconds": round(now - arrived_at, 6),
        }
        log.info("request", extra={"fields": fields})
