"""Adapter affinity: requests of one LoRA adapter go to a few replicas, within a bounded load."""

from __future__ import annotations

from collections.abc import Sequence

from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView
from headway.policies.bounded_load import checked_factor, within_bound
from headway.policies.contracts import Need
from headway.policies.rendezvous_hashing import rendezvous_score
from headway.policies.routing.least_work import LeastWork


class AdapterAffinity:
    """Requests of one LoRA adapter go to a few replicas, within a bounded load; all others to the least work.

    Idea: a replica that serves few adapters loads them seldom and batches their requests together. Each adapter ranks
        the replicas by a hash, and its requests go to the first `replicas_per_adapter` of those that are not loaded
        above `load_factor` times the mean.
    Source: rendezvous hashing (Thaler and Ravishankar, 1998) with the bound of Mirrokni et al., arXiv 1608.01350. That
        adapters should be clustered is S-LoRA's (arXiv 2311.03285, section 5, adapter clustering).
    Reads: the adapter, the adapters that each replica lists, requests dispatched and not ended, and what `least-work`
        reads.
    Wins when: there are many more adapters than a replica keeps in memory.
    Loses when: one adapter has most of the load: raise `replicas_per_adapter`.
    """

    NEEDS = frozenset([Need.REPLICAS])

    def __init__(self, *, replicas_per_adapter: int = 2, load_factor: float = 1.25) -> None:
        if replicas_per_adapter < 1:
            raise ValueError(f"replicas_per_adapter must be at least 1, got {replicas_per_adapter}")
        self._replicas_per_adapter = replicas_per_adapter
        self._load_factor = checked_factor(load_factor)
        self._least_work = LeastWork()

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        """The least work among the adapter's own replicas within the bound; without an adapter among all."""
        adapter = request.adapter
        if adapter is None:
            return self._least_work.choose(request, prefix, replicas, now)
        serving = [r for r in replicas if r.adapters is None or adapter in r.adapters] or replicas
        allowed = within_bound(serving, self._load_factor)
        allowed.sort(key=lambda replica: rendezvous_score(adapter, replica.id), reverse=True)
        return self._least_work.choose(request, prefix, allowed[: self._replicas_per_adapter], now)
