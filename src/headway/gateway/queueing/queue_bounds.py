"""Bounds of the whole queue, of single tenants, and of what waits for a first replica, `[queue]`.

They say how many requests, tokens and bytes may wait, as sums over the queues of all models, kept as requests come and
go: there may be thousands of queues.
"""

from __future__ import annotations

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.request_state import QueuedRequest
from headway.gateway.queueing.waiting_sums import WaitingSums
from headway.gateway.settings import QueueSettings


class QueueBounds:
    """What waits: in all (`waiting`), of that what came while no replica could serve it (`in_outage`), and by payer."""

    def __init__(self) -> None:
        self.waiting = WaitingSums()
        self.in_outage = WaitingSums()
        self.by_payer: dict[str, WaitingSums] = {}  # of payers with a request waiting

    def joined(self, queued: QueuedRequest) -> None:
        """A request waits from now on."""
        arrived, tokens = queued.arrived, queued.prompt_tokens
        self.waiting.add(tokens, arrived.body_bytes)
        own = self.by_payer.get(arrived.payer)
        if own is None:
            own = self.by_payer[arrived.payer] = WaitingSums()
        own.add(tokens, arrived.body_bytes)
        if queued.came_in_outage:
            self.in_outage.add(tokens, arrived.body_bytes)

    def left(self, queued: QueuedRequest) -> None:
        """A request waits no more."""
        arrived, tokens = queued.arrived, queued.prompt_tokens
        self.waiting.take(tokens, arrived.body_bytes)
        own = self.by_payer[arrived.payer]
        own.take(tokens, arrived.body_bytes)
        if not own.requests:
            del self.by_payer[arrived.payer]
        if queued.came_in_outage:
            self.in_outage.take(tokens, arrived.body_bytes)
            queued.came_in_outage = False

    def broken_in_outage(self, body_bytes: int, bounds: QueueSettings) -> str | None:
        """The bound that breaks if a request waits for a first replica too, in words; None if both hold.

        Where nothing else waits so, a request that is larger than the bound of bytes alone may wait.
        """
        waiting = self.in_outage
        most = bounds.no_replica_max_requests
        if waiting.requests >= most:
            return f"{most:,} requests wait for one already (`queue.no_replica_max_requests`)"
        most = bounds.no_replica_max_bytes
        if waiting.requests and waiting.bytes + body_bytes > most:
            return f"{most:,} bytes of requests, at most, wait for one (`queue.no_replica_max_bytes`)"
        return None

    def broken(
        self, payer: str, prompt_tokens: int, body_bytes: int, bounds: QueueSettings
    ) -> tuple[str, Reason] | None:
        """The first bound that breaks if a request waits too, as a message and a reason; None if all hold.

        Never None for a request that is larger than one for which it is not. None where nothing waits: a request that
        is larger than a bound alone may wait alone.
        """
        waiting = self.waiting
        if not waiting.requests:
            return None
        totals = (
            (waiting.requests + 1, bounds.max_requests, "requests", "max_requests"),
            (waiting.tokens + prompt_tokens, bounds.max_tokens, "prompt tokens", "max_tokens"),
            (waiting.bytes + body_bytes, bounds.max_bytes, "bytes", "max_bytes"),
        )
        for amount, most, unit, key in totals:
            if amount > most:
                return f"the queue is full: its limit is {most:,} {unit} (`queue.{key}`)", Reason.QUEUE_FULL
        own = self.by_payer.get(payer)
        if own is None:
            return None
        own_totals = (
            (own.requests + 1, bounds.tenant_max_requests, "requests", "tenant_max_requests"),
            (own.tokens + prompt_tokens, bounds.tenant_max_tokens, "prompt tokens", "tenant_max_tokens"),
            (own.bytes + body_bytes, bounds.tenant_max_bytes, "bytes", "tenant_max_bytes"),
        )
        for amount, limit, unit, key in own_totals:
            if limit is not None and amount > limit:
                message = f"this request would exceed its tenant's queue limit of {limit:,} {unit} (`queue.{key}`)"
                return message, Reason.TENANT_QUEUE_FULL
        return None
