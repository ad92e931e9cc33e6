"""LMetric: the replica with the least product of prompt tokens to compute and requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView
from headway.policies.contracts import Need
from headway.policies.predicted_work import uncached_tokens

_OWN_TOKENS_MIN = 16  # a prompt that is cached whole would make every load equal


class Lmetric:
    """The replica with the least product of prompt tokens to compute and requests.

    Idea: one factor is small where the prompt is cached, the other where the replica is idle. A sum of the two would
        need a weight; the product needs none, since any factor of either leaves the choice as it is.
    Source: LMetric (D. Zhang and others, OSDI 2026, arXiv 2603.15202, abstract): new prefill tokens if routed there,
        times the batch size. The 1 added to the batch size is that of its ports (sglang PR 29574). Whether prompts that
        wait there count is not stated: `counts` says "queued" or "own". Ours: at least 16 tokens are new, both factors
        are in the replica's own seconds, of equals the one with fewer KV tokens is taken.
    Reads: prompt tokens without a first token, each replica's confirmed prefix of this prompt, requests, costs.
    Wins when: prompts share prefixes and load moves, so that no fixed weight of the two is right.
    Loses when: few long outputs make one replica slow: a request counts as one, however long it goes on.
    """

    NEEDS = frozenset([Need.REPLICAS, Need.CACHED_TOKENS])

    def __init__(self, *, counts: Literal["queued", "own"] = "queued") -> None:
        self._counts_queued = counts == "queued"

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        """The one with the least product; of equals the one with fewer KV tokens, then the first."""
        return min(replicas, key=lambda replica: (self.product(request, prefix, replica), replica.kv_tokens))

    def product(self, request: RequestView, prefix: Sequence[int], replica: ReplicaView) -> float:
        """P · (B + 1), in square seconds: P prompt tokens to compute, B requests there."""
        tokens = max(_OWN_TOKENS_MIN, uncached_tokens(request, prefix, replica))
        if self._counts_queued:
            tokens += replica.prefill_tokens
        costs = replica.costs
        return tokens * (replica.requests + 1) * (costs.prefill_seconds_per_token * costs.decode_seconds_per_token)
