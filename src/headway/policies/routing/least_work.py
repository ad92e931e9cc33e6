"""Least work: the replica that would be done soonest with what it has and with this request."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView
from headway.policies.contracts import Need
from headway.policies.predicted_work import added_seconds, output_tokens_left, outstanding_seconds, uncached_tokens

_FULL = 0.99


class LeastWork:
    """The replica that would be done soonest with what it has and with this request; full KV memory counts as work.

    Idea: add up what each replica still has to do, in its own seconds: prompts not computed yet, its share of the
        decode steps to come, and this request. Memory that runs full adds a barrier k / (1 - k), k being the KV share
        in use.
    Source: the barrier and the habit of crediting one's own dispatches between polls are those of SMG (sgl-project,
        least-load), with its weight of 0.15 s. A decode step is shared by 64, as in our cost model.
    Reads: uncached prompt tokens without a first token, output tokens still expected, KV tokens held, and each
        replica's costs and confirmed prefix of this prompt.
    Wins when: sizes differ much, or replicas do, so that counting requests misjudges load.
    Loses when: prompts share prefixes that no replica confirms: work it could have saved is not seen.
    """

    NEEDS = frozenset([Need.REPLICAS])

    def __init__(self, *, kv_barrier_seconds: float = 0.15) -> None:
        if not 0 <= kv_barrier_seconds < math.inf:
            raise ValueError(f"kv_barrier_seconds must be at least 0 and finite, got {kv_barrier_seconds:g}")
        self._kv_barrier_seconds = kv_barrier_seconds

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        """The one with the fewest seconds; of equals the one with fewer requests, then the first."""
        best = replicas[0]
        if len(replicas) == 1:
            return best
        outputs = output_tokens_left(request)
        costs, added = None, 0.0
        least = math.inf
        for replica in replicas:
            if prefix or replica.costs is not costs:  # of a prompt that nothing is confirmed of, only costs differ
                costs = replica.costs
                added = added_seconds(uncached_tokens(request, prefix, replica), outputs, costs)
            seconds = self.seconds(replica) + added
            if seconds < least or (seconds == least and replica.requests < best.requests):
                best, least = replica, seconds
        return best

    def seconds(self, replica: ReplicaView) -> float:
        """Predicted seconds of work outstanding there, the barrier included."""
        seconds = outstanding_seconds(replica)
        if replica.kv_tokens_max:
            used = min(_FULL, replica.kv_tokens / replica.kv_tokens_max)
            seconds += self._kv_barrier_seconds * used / (1 - used)
        return seconds
