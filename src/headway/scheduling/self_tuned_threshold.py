"""Self-tuned threshold: the most tokens that one prompt may take of the next step, so that a short request fits in.

Pure: facts of a step in, the limit out. The vLLM plug-in and both simulated engines set it as vLLM's long-prefill
threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from headway.domain.replica_view import MemoryView
from headway.domain.request import RequestView, uncached_prefill_tokens

Tuning: TypeAlias = Literal["off", "self-tuned", "prefill-budget"]
"""What moves an engine's limits before each step; the last is `scheduling/prefill_budget.py`."""

_SHARE = 0.5  # of the tokens that decodes leave of a step, at most so many are kept for the next request


class StepFacts(NamedTuple):
    """What the threshold depends on, before a step.

    Attributes:
        token_budget: tokens of the step.
        seats_free: how many more requests may run.
        decoding: requests that decode.
        prefill_left: for each prefilling request, the tokens it has left.
        head: the next request in the order; None if none waits. It is read where a request prefills.
        memory: KV blocks.
    """

    token_budget: int
    seats_free: int
    decoding: int
    prefill_left: Sequence[int]
    head: RequestView | None
    memory: MemoryView


def self_tuned_threshold(facts: StepFacts, own_threshold: int) -> int:
    """Tokens that one prefill may take of the step, 0 for no limit; never above the operator's `own_threshold`.

    vLLM serves running requests first, so one long prefill takes whole budgets while a short request waits beside a
    free seat. While the next request is short and would fit, long prefills leave it the tokens it needs, at most half
    of what decodes leave. They share the rest by water-filling. No token is kept for a request that cannot use it:
    keeping tokens for all short waiting requests was tried and cost 5 % of the throughput in overload.
    """
    next_tokens = _short_tokens(facts)
    left = max(0, facts.token_budget - facts.decoding)
    room = left - min(next_tokens, int(left * _SHARE))
    if next_tokens == 0 or facts.seats_free <= 0 or sum(facts.prefill_left) <= room:
        return own_threshold
    threshold = max(1, water_level(facts.prefill_left, room))
    return min(threshold, own_threshold) if own_threshold else threshold


def _short_tokens(facts: StepFacts) -> int:
    """Tokens that the next request has to compute; 0 unless that is at most half a step and its blocks are free."""
    if facts.head is None or not facts.prefill_left:
        return 0
    tokens = uncached_prefill_tokens(facts.head)
    fits = -(-tokens // facts.memory.block_tokens) <= facts.memory.blocks_free
    return tokens if fits and tokens <= facts.token_budget // 2 else 0


def water_level(wanted: Sequence[int], room: int) -> int:
    """Water-filling: the largest whole level so that the sum of min(wanted, level) is within `room`."""
    rising = sorted(wanted)
    for index, tokens in enumerate(rising):
        sharing = len(rising) - index
        if tokens * sharing > room:
            return room // sharing
        room -= tokens
    return rising[-1]
