"""Least sunk work: the request with the least to recompute is preempted."""

from __future__ import annotations

from collections.abc import Sequence

from headway.domain.request import RequestView
from headway.policies.contracts import Need


class LeastSunkWork:
    """Preempt the request with the fewest tokens in memory; of equals the one admitted last.

    Idea: a victim's tokens, prompt and produced, are all computed again, so take the one with the fewest.
    Source: none known under this name; the cost is that of recompute preemption (PagedAttention, arXiv 2309.06180,
        section 4.5). One still in prefill is counted with its whole prompt, since a view does not tell how far it is.
    Reads: prompt tokens, tokens produced.
    Wins when: lengths differ widely and prefill is dear.
    Loses when: requests are alike (then it is latest-admitted), or memory is very short: the smallest victim also
        frees the least, and another must follow.
    """

    NEEDS = frozenset([Need.VICTIMS])

    def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
        """The one of `running` with the fewest prompt and produced tokens."""
        return min(reversed(running), key=_held_tokens)


def _held_tokens(request: RequestView) -> int:
    return request.prompt_tokens + request.produced_tokens
