"""Refusals of requests: the bounds of the queues, and after how many seconds a client may retry."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from headway.gateway.openai.error_responses import RETRY_SECONDS_MAX, Reason
from headway.gateway.queueing.model_queue import ModelQueue
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import QueueSettings

_JITTER = 0.2  # a retry delay is drawn within ± this share, so that clients refused together do not return together
_UNKNOWN_SECONDS = 1.0
NO_REPLICA_SECONDS = 5.0


class Refusal(NamedTuple):
    """What a client gets instead of an answer. `retry_seconds` is None where no retry helps, or `headers` say it."""

    status: int
    message: str
    reason: Reason
    retry_seconds: float | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


def broken_bound(
    queues: Iterable[ModelQueue], payer: str, prompt_tokens: int, body_bytes: int, bounds: QueueSettings
) -> tuple[str, Reason] | None:
    """The first bound that breaks if a request waits too, as a message and a reason; None if all hold.

    Never None for a request that is larger than one for which it is not.
    """
    waiting = [queue for queue in queues if queue.waiting.requests]
    if not waiting:
        return None
    totals = (
        (sum(map(len, waiting)) + 1, bounds.max_requests, "requests", "max_requests"),
        (
            sum(queue.waiting.tokens for queue in waiting) + prompt_tokens,
            bounds.max_tokens,
            "prompt tokens",
            "max_tokens",
        ),
        (sum(queue.waiting.bytes for queue in waiting) + body_bytes, bounds.max_bytes, "bytes", "max_bytes"),
    )
    for amount, most, unit, key in totals:
        if amount > most:
            return f"the queue is full: its limit is {most:,} {unit} (`queue.{key}`)", Reason.QUEUE_FULL
    own = [queue.waiting_by_payer[payer] for queue in waiting if payer in queue.waiting_by_payer]
    if not own:
        return None
    own_totals = (
        (sum(sums.requests for sums in own) + 1, bounds.tenant_max_requests, "requests", "tenant_max_requests"),
        (
            sum(sums.tokens for sums in own) + prompt_tokens,
            bounds.tenant_max_tokens,
            "prompt tokens",
            "tenant_max_tokens",
        ),
        (sum(sums.bytes for sums in own) + body_bytes, bounds.tenant_max_bytes, "bytes", "tenant_max_bytes"),
    )
    for amount, limit, unit, key in own_totals:
        if limit is not None and amount > limit:
            message = f"this request would exceed its tenant's queue limit of {limit:,} {unit} (`queue.{key}`)"
            return message, Reason.TENANT_QUEUE_FULL
    return None


class RetryDelays:
    """After how many seconds a refused client may come back, jittered."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def after(self, seconds: float | None) -> float:
        """About `seconds`; about a second where no forecast is known. Never above what clients obey."""
        wanted = max(0.05, _UNKNOWN_SECONDS if seconds is None else seconds)
        return min(RETRY_SECONDS_MAX, wanted * self._chance.uniform(1 - _JITTER, 1 + _JITTER))

    def after_probe(self, replicas: Sequence[UpstreamReplica], now: float) -> float:
        """When the next replica is probed, at most 5 s from now."""
        probes = [replica.state.probe_at - now for replica in replicas]
        return self.after(max(1.0, min([NO_REPLICA_SECONDS, *probes])))
