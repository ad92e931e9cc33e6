"""Victims: the requests to preempt next go to the end of vLLM's running list, from which it preempts under `fcfs`.

Pure: a list in, a list out. It ports to a `preemption_key` as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def with_victims_last(in_order: Sequence[Item], victims: int, choose: Callable[[Sequence[Item]], Item]) -> list[Item]:
    """Running requests in order of admission, but the next `victims` to preempt at the end, the first of them last.

    `choose` names one victim at a time out of those not yet named; at least one request is never named.
    """
    staying = list(in_order)
    going: list[Item] = []
    while len(going) < victims and len(staying) > 1:
        chosen = choose(staying)
        del staying[next(index for index, item in enumerate(staying) if item is chosen)]
        going.append(chosen)
    return staying + going[::-1]


def blocks_wanted(context_tokens: Sequence[int], new_tokens: int, block_tokens: int) -> int:
    """KV blocks that one step may want: one per decode at its block's end, and those of `new_tokens` of prefill."""
    crossing = sum([1 for tokens in context_tokens if tokens % block_tokens == 0])
    return crossing + -(-new_tokens // block_tokens)
