"""Who stands last in vLLM's running list: under `fcfs` vLLM preempts the last and serves from the front.

Pure: a list in, a list out. It ports to a `preemption_key` as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def with_victims_last(in_order: Sequence[Item], victims: int, choose: Callable[[Sequence[Item]], Item]) -> list[Item]:
    """The running ones, in order of admission, but the next `victims` to give way at the end, the first to go last.

    `choose` is asked for one victim at a time, of those not yet named; at least one is never named.
    """
    stay = list(in_order)
    go: list[Item] = []
    while len(go) < victims and len(stay) > 1:
        chosen = choose(stay)
        del stay[next(index for index, one in enumerate(stay) if one is chosen)]
        go.append(chosen)
    return stay + go[::-1]


def blocks_wanted(context_tokens: Sequence[int], new_tokens: int, block_tokens: int) -> int:
    """Blocks that one step may ask for: a decode wants a new one at a block's end; `new_tokens` are prefill's."""
    crossing = sum([1 for tokens in context_tokens if tokens % block_tokens == 0])
    return crossing + -(-new_tokens // block_tokens)
