"""A forecast of how long an answer takes at its replica; once that is due, silence tells something of the replica."""

from __future__ import annotations

from headway.domain.costs import ServiceCosts
from headway.gateway.queueing.request_state import GatewayRequest, QueuedRequest, RequestStage

_FIRST_BYTE_FLOOR_SECONDS = 0.02  # of any answer, however short its prompt
_OVERDUE = 2.0  # × the expected time of a whole answer: lengths and speeds are guesses
_PREFILL_SECONDS = 1.0  # after which a prompt counts as computed, where nothing shows it


def expected_seconds(queued: QueuedRequest, output_tokens: float, costs: ServiceCosts) -> float:
    """How long a replica should take to compute the prompt and so many output tokens."""
    uncached = queued.prompt_tokens - queued.cached_prompt_tokens
    expected = _FIRST_BYTE_FLOOR_SECONDS + uncached * costs.prefill_seconds_per_token
    return expected + output_tokens * costs.decode_seconds_per_token


def is_due(request: GatewayRequest, costs: ServiceCosts, now: float) -> bool:
    """Whether silence tells something of its replica: an answer that is not streamed comes whole, after a while.

    A slow replica is not a sick one: what it takes by its own costs is waited for, where that is longer than `costs`.
    """
    queued = request.queued
    if request.arrived.streams or request.stage is RequestStage.ANSWERING:
        return True
    # As expected when it arrived: what is expected of it since then grows with what it seems to have produced.
    output_tokens = queued.estimate.remaining_mean(0) if queued.estimate is not None else 0.0
    if queued.replica is not None:
        costs = ServiceCosts(*map(max, costs, queued.replica.ledger.costs))
    return now - (queued.dispatched_at or now) >= _OVERDUE * expected_seconds(queued, output_tokens, costs)


def assume_prefilled(request: GatewayRequest, now: float) -> None:
    """Without a stream the first byte is the last: the prompt counts as computed after a while."""
    queued = request.queued
    is_open = request.stage is RequestStage.SENT and not request.arrived.streams
    if is_open and now - (queued.dispatched_at or now) >= _PREFILL_SECONDS:
        assert queued.replica is not None
        queued.replica.ledger.first_token(queued)
