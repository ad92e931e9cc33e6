"""Shortest job first: size judged by the whole expected service time, prefill and decode."""

from __future__ import annotations

from headway.domain.costs import ServiceCosts
from headway.domain.request import RequestView, expected_output_tokens, uncached_prefill_tokens
from headway.policies.contracts import Need


class ShortestJobFirst:
    """Shortest expected service time first.

    Idea: add the time to prefill what is not cached and the time to decode what is expected; serve the least sum first.
    Source: shortest-processing-time-first, optimal for the mean on one machine that serves one job at a time (Smith,
        1956). A batching engine is no such machine: SVF prices the memory held as well.
    Reads: prompt length, cached prompt tokens, the length estimate, and the replica's costs of a token.
    Wins when: seats or compute are the bottleneck and the estimate tells long outputs from short ones.
    Loses when: KV memory is the bottleneck, the estimate is poor, or overload lasts: long requests then starve
        without bound.
    """

    follows_what_is_learned = True
    NEEDS = frozenset([Need.CACHED_TOKENS])

    def __init__(self, *, costs: ServiceCosts) -> None:
        self._costs = costs

    def rank(self, request: RequestView) -> float:
        """Expected service time still ahead, seconds."""
        return service_seconds(request, self._costs)


def service_seconds(request: RequestView, costs: ServiceCosts) -> float:
    """Time to prefill what is not cached plus time to decode what is expected, seconds."""
    return prefill_seconds(request, costs) + expected_output_tokens(request) * costs.decode_seconds_per_token


def prefill_seconds(request: RequestView, costs: ServiceCosts) -> float:
    """Time to prefill what is not cached, seconds."""
    return uncached_prefill_tokens(request) * costs.prefill_seconds_per_token
