"""Predicted work: what a replica still has to do, and what a request would add there, in the replica's own seconds."""

from __future__ import annotations

from collections.abc import Sequence

from headway.domain.costs import ServiceCosts
from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView

TYPICAL_BATCH = 64
"""Requests that share a decode step; what `ServiceCosts.decode_seconds_per_token` is measured at."""


def outstanding_seconds(replica: ReplicaView) -> float:
    """Work of the requests there: their prompts not computed yet, and their share of the decode steps to come."""
    costs = replica.costs
    seconds = replica.prefill_tokens * costs.prefill_seconds_per_token
    return seconds + replica.decode_tokens * costs.decode_seconds_per_token / TYPICAL_BATCH


def uncached_tokens(request: RequestView, prefix: Sequence[int], replica: ReplicaView) -> int:
    """Prompt tokens to compute if the request goes there: less what the replica confirmed to hold of this prompt.

    A replica that never told of its cache holds what the request's own estimate says; so does each of a prompt that is
    shorter than any prefix, of which nothing can be confirmed.
    """
    confirmed = replica.cached_prompt_tokens(request, prefix) if prefix else None
    cached = request.cached_prompt_tokens if confirmed is None else confirmed
    return max(0, request.prompt_tokens + request.produced_tokens - cached)


def output_tokens_left(request: RequestView) -> float:
    """Output tokens that all of its sequences are expected to produce; 0 without an estimate."""
    estimate = request.estimate
    return 0.0 if estimate is None else estimate.remaining_mean(request.produced_tokens) * request.sequences


def added_seconds(uncached: int, output_tokens: float, costs: ServiceCosts) -> float:
    """Work that a request adds: prompt tokens to compute, and its share of the decode steps."""
    seconds = uncached * costs.prefill_seconds_per_token
    return seconds + output_tokens * costs.decode_seconds_per_token / TYPICAL_BATCH


def first_token_seconds(request: RequestView, prefix: Sequence[int], replica: ReplicaView) -> float:
    """How long the first token would take there: the prompts that are not computed yet, and then its own."""
    tokens = replica.prefill_tokens + uncached_tokens(request, prefix, replica)
    return tokens * replica.costs.prefill_seconds_per_token


def service_seconds(request: RequestView, prefix: Sequence[int], replica: ReplicaView) -> float:
    """How long the request would take there by itself: its prompt, then its output at a typical batch."""
    seconds = uncached_tokens(request, prefix, replica) * replica.costs.prefill_seconds_per_token
    if request.estimate is None:
        return seconds
    return seconds + request.estimate.remaining_mean(request.produced_tokens) * replica.costs.decode_seconds_per_token
