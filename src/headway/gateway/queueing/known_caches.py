"""Prompt tokens of a waiting request that some replica is known to have cached, by its KV events."""

from __future__ import annotations

from collections.abc import Sequence

from headway.gateway.queueing.request_state import QueuedRequest
from headway.gateway.replicas.upstream_replica import UpstreamReplica


def cached_somewhere(queued: QueuedRequest, replicas: Sequence[UpstreamReplica]) -> int | None:
    """The most that any of the replicas holds which may serve it; None where no events tell of such prompts.

    Whether the request goes there is up to routing.
    """
    prefix = queued.arrived.prompt.hashes
    if not prefix:
        return None
    told = [
        replica.ledger.cached_prompt_tokens(queued, prefix)
        for replica in replicas
        if replica.ledger.kv_blocks is not None and replica.is_up and replica.serves(queued.arrived.model)
    ]
    return max((tokens for tokens in told if tokens is not None), default=None)
