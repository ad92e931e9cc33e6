"""Smallest remaining benefit: the victim frees most memory for the least work lost, and not twice in a row."""

from __future__ import annotations

from collections.abc import Sequence

from headway.domain.event import Cancelled, Completed, Event, Preempted
from headway.domain.request import RequestId, RequestView, expected_output_tokens
from headway.policies.contracts import Need

_LEAST_HORIZON = 16


class SmallestRemainingBenefit:
    """Preempt the request with the fewest tokens to compute again for the KV memory it would still hold.

    Idea: letting a request stay saves computing its tokens again and costs the memory it holds until it ends or until
        the batch's use has passed its peak, whichever is first. Preempt the one with the least saved per token·step.
    Source: ours. The cost is that of recompute preemption (PagedAttention, arXiv 2309.06180, section 4.5), the peak
        that of the forward check (arXiv 2606.22327, Theorem 3.2) with mean lengths. Memory freed: Σ (held + t) for t up
        to min(remaining, steps to the peak, at least one block's 16). Work lost: prompt and produced tokens less what
        the prefix cache held. Two rules keep requests from preempting each other in turn. The request that has run
        longest is never the victim while another runs, so some request always gets to the end. A request that was
        preempted with p tokens out is spared until it has p/2 + 16 more. If all are spared the one admitted last gives
        way. So the victim may be one that has made progress by half since the last time, which happens some log(length)
        times. Or every running request was preempted before, and the front of the queue is being shortened.
    Reads: prompt, cached and produced tokens, the length estimates (mean), the order of admission, preemptions.
    Wins when: lengths are known well enough to tell which requests are about to end: those free their memory soon
        anyway.
    Loses when: estimates say nothing (then it weighs work against size alone, which nearly cancel), or requests are
        alike: latest-admitted is as good and fairer.
    """

    NEEDS = frozenset([Need.VICTIMS, Need.PREEMPTIONS, Need.CACHED_TOKENS])

    def __init__(self) -> None:
        self._spared_until: dict[RequestId, int] = {}  # produced tokens

    def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
        """The least work lost per memory freed, of those that may be asked to give way."""
        if len(running) == 1:
            return running[0]
        spared = self._spared_until
        open_to_it = [r for r in running[1:] if r.produced_tokens >= spared.get(r.id, 0)]
        if not open_to_it:
            return running[-1]
        horizon = max(_LEAST_HORIZON, steps_to_peak(running))
        # Reversed, so that of equals the one admitted last gives way.
        return min(reversed(open_to_it), key=lambda request: _saved_per_token_step(request, horizon))

    def observe(self, event: Event) -> None:
        """Remember which request was preempted, and how far it had come."""
        if isinstance(event, Preempted):
            produced = event.request.produced_tokens
            self._spared_until[event.request.id] = produced + produced // 2 + _LEAST_HORIZON
        elif isinstance(event, (Completed, Cancelled)):
            self._spared_until.pop(event.request.id, None)


def steps_to_peak(running: Sequence[RequestView]) -> int:
    """Steps until the use of memory is expected to be highest, if no request joins: at the end of one."""
    lives = sorted(((remaining_tokens(r), r.prompt_tokens + r.produced_tokens) for r in running), reverse=True)
    held = peak = at = 0
    for rank, (remaining, tokens) in enumerate(lives, 1):
        held += tokens
        if held + rank * remaining > peak:
            peak, at = held + rank * remaining, remaining
    return at


def remaining_tokens(request: RequestView) -> int:
    """Output tokens expected to come, whole, at most to the client's bound."""
    remaining = max(1, round(expected_output_tokens(request)))
    bound = request.max_output_tokens
    return remaining if bound is None else max(1, min(remaining, bound - request.produced_tokens))


def _saved_per_token_step(request: RequestView, horizon: int) -> float:
    held = request.prompt_tokens + request.produced_tokens
    steps = min(remaining_tokens(request), horizon)
    freed = held * steps + steps * (steps + 1) / 2
    return max(1, held - request.cached_prompt_tokens) / freed
