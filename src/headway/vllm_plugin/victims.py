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


def blocks_wanted(requests: Sequence[tuple[int, int]], token_budget: int, block_tokens: int) -> int:
    """KV blocks that running requests may take in one step at most.

    `requests` has (tokens computed, tokens known) of each. One that decodes takes a block where its last one is full.
    Prompts share the budget in a way not known here, and each may begin inside a block and end inside another.
    """
    blocks = prompts = prompt_blocks = 0
    for computed, total in requests:
        if total - computed > 1:
            prompts += 1
            prompt_blocks += -(-total // block_tokens) - -(-computed // block_tokens)
        else:  # 0 tokens lacking: its next one is on the way
            blocks += computed % block_tokens == 0
    return blocks + min(prompt_blocks, (token_budget + prompts * (block_tokens - 1)) // block_tokens)
