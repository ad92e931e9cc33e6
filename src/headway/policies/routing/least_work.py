"""Least work: the replica with the least predicted work and the most free memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headway.domain.costs import ServiceCosts
from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView
from headway.policies.contracts import Need

_TYPICAL_BATCH = 64  # requests that share a decode step; what `ServiceCosts.decode_seconds_per_token` is measured at
_FULL = 0.99


class LeastWork:
    """The replica with the least predicted work; nearly full KV memory counts as more work.

    Idea: add up what each replica still has to do in seconds: prompts not computed yet, and its share of the decode
        steps to come. Memory that runs full adds a barrier k / (1 - k), k being the KV share in use.
    Source: the barrier and the habit of crediting one's own dispatches between polls are those of SMG (sgl-project,
        least-load), with its weight of 0.15 s; a decode step is shared by 64, as in our cost model.
    Reads: uncached prompt tokens without a first token, output tokens still expected, KV tokens held, costs.
    Wins when: sizes differ much, so that counting requests misjudges load.
    Loses when: prompts share prefixes: work it could have saved is not seen.
    """

    NEEDS = frozenset([Need.REPLICAS])

    def __init__(self, *, costs: ServiceCosts, kv_barrier_seconds: float = 0.15) -> None:
        if not 0 <= kv_barrier_seconds < math.inf:
            raise ValueError(f"kv_barrier_seconds must be at least 0 and finite, got {kv_barrier_seconds:g}")
        self._costs = costs
        self._kv_barrier_seconds = kv_barrier_seconds

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        """The one with the fewest seconds; of equals the one with fewer requests, then the first."""
        if len(replicas) == 1:
            return replicas[0]
        return min(replicas, key=lambda replica: (self.seconds(replica), replica.requests))

    def seconds(self, replica: ReplicaView) -> float:
        """Predicted seconds of work outstanding there, the barrier included."""
        costs = self._costs
        seconds = replica.prefill_tokens * costs.prefill_seconds_per_token
        seconds += replica.decode_tokens * costs.decode_seconds_per_token / _TYPICAL_BATCH
        if replica.kv_tokens_max:
            used = min(_FULL, replica.kv_tokens / replica.kv_tokens_max)
            seconds += self._kv_barrier_seconds * used / (1 - used)
        return seconds
