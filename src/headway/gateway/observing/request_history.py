"""The latest requests: why each waited, was refused or failed, as the live page and `/headway/why` show it."""

from __future__ import annotations

from collections import deque
from hashlib import blake2b

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.request_state import GatewayRequest, id_text

REMEMBERED = 1_000
_NAME_CHARACTERS_MAX = 64
_MODEL_CHARACTERS_MAX = 100


class RequestHistory:
    """Keeps lengths and times of the latest requests that ended, and no text of theirs."""

    def __init__(self) -> None:
        self.requests: deque[dict[str, object]] = deque(maxlen=REMEMBERED)

    def latest(self, number: int) -> list[dict[str, object]]:
        """The latest `number` requests, the last one last."""
        return list(self.requests)[-number:]

    def find(self, request_id: str) -> dict[str, object] | None:
        """The latest request of that id; None if it is not remembered."""
        return next((known for known in reversed(self.requests) if known["id"] == request_id), None)

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Remember the request."""
        arrived, queued, relayed = request.arrived, request.queued, request.relayed
        first = None if relayed.first_byte_at is None else relayed.first_byte_at - arrived.arrived_at
        why = queued.wait_explanation
        self.requests.append(
            {
                "id": id_text(arrived.request_id),
                "tenant": shortened(arrived.tenant),
                "model": arrived.model[:_MODEL_CHARACTERS_MAX],
                "class": arrived.request_class,
                "prompt_tokens": queued.prompt_tokens,
                "confirmed_tokens": queued.confirmed_tokens,
                "cached_tokens": None if relayed.usage is None else relayed.usage.cached_tokens,
                "output_tokens": relayed.output_tokens,
                "outcome": str(outcome),
                "status": relayed.status,
                "reason": None if reason is None else str(reason),
                "replica": None if queued.replica is None else queued.replica.name,
                "tries": queued.tries,
                "waiting_at_arrival": queued.waiting_at_arrival,
                "predicted_wait_seconds": queued.predicted_wait_seconds,
                "waited_seconds": (queued.dispatched_at or now) - arrived.arrived_at,
                "first_byte_seconds": first,
                "seconds": now - arrived.arrived_at,
                "why": why if reason is None else f"{reason}: {why or 'not sent to a replica'}",
            }
        )


def shortened(name: str) -> str:
    """A tenant's name; a long one, which a client may have chosen, ends in a hash."""
    return (
        name
        if len(name) <= _NAME_CHARACTERS_MAX
        else f"{name[:48]}~{blake2b(name.encode(), digest_size=4).hexdigest()}"
    )
