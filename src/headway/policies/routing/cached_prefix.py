"""Cached prefix: the replica that confirmed the longest prefix of the prompt, within a bounded load."""

from __future__ import annotations

from collections.abc import Sequence

from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView
from headway.policies.bounded_load import checked_factor, within_bound
from headway.policies.contracts import Need
from headway.policies.routing.least_work import LeastWork


class CachedPrefix:
    """The replica that confirmed the longest prefix of the prompt, within a bounded load; else the least work.

    Idea: go by what replicas tell of their caches, not by what was sent to them. No replica may hold more than
        `load_factor` times the mean.
    Source: precise prefix routing as in llm-d and Dynamo; the bound is Mirrokni et al., arXiv 1608.01350.
    Reads: each replica's confirmed prefix of this prompt, requests dispatched and not ended, and what `least-work`
        reads.
    Wins when: prompts share long prefixes, and replicas tell of their caches (a usage with cached tokens, or events).
    Loses when: they tell nothing: then it is `least-work`, and `prefix-affinity` is the better guess.
    """

    NEEDS = frozenset([Need.REPLICAS, Need.CACHED_TOKENS])

    def __init__(self, *, load_factor: float = 1.25) -> None:
        self._load_factor = checked_factor(load_factor)
        self._least_work = LeastWork()

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        """Of those within the bound, the one with the most confirmed tokens; of equals the least work."""
        allowed = within_bound(replicas, self._load_factor)
        confirmed = [replica.cached_prompt_tokens(request, prefix) or 0 for replica in allowed]
        most = max(confirmed)
        holders = [replica for replica, tokens in zip(allowed, confirmed, strict=True) if tokens == most]
        return self._least_work.choose(request, prefix, holders, now)
