"""Prefix hits: how much of a waiting prompt the prefix cache holds, looked up before ordering at a bounded cost.

A miss costs vLLM 4-9 µs, a hit about 0.9 µs a block. So a lookup stops after BLOCKS_MAX blocks, and a step begins no
further one after SECONDS_PER_STEP. A request that is not looked up in time counts as not cached until it is the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from headway.scheduling.head_lookups import is_stale, note_answer
from headway.vllm_plugin import vllm_adapter as vllm
from headway.vllm_plugin.request_entries import Entry

BLOCKS_MAX = 8_192
"""131,072 tokens in blocks of 16: agents' prompts are as long, and nearly all of them is cached."""
SECONDS_PER_STEP = 0.002

Lookup: TypeAlias = Callable[[Sequence[Any], int], int]
"""(block hashes, tokens at most) → tokens cached."""


class PrefixHits:
    """Keeps `cached_prompt_tokens` of requests up to date, as far as the budget goes."""

    def __init__(
        self,
        lookup: Lookup,
        clock: Callable[[], float],
        *,
        blocks_max: int = BLOCKS_MAX,
        seconds_per_step: float = SECONDS_PER_STEP,
    ) -> None:
        self._lookup = lookup
        self._clock = clock
        self._blocks_max = blocks_max
        self._seconds_per_step = seconds_per_step
        self._left_seconds = seconds_per_step
        self.lookups = 0
        self.hit_tokens = 0

    def begin_step(self) -> None:
        """Renew the step's budget."""
        self._left_seconds = self._seconds_per_step

    def arrive(self, entry: Entry, now: float) -> None:
        """Look a new request's prompt up, if the budget allows."""
        self._ask(entry, now)

    def refresh(self, entry: Entry, now: float) -> bool:
        """Look a head up again if the answer is old; true if its prefill work changed by more than a quarter."""
        return is_stale(entry.view, now) and self._ask(entry, now)

    def _ask(self, entry: Entry, now: float) -> bool:
        """Whether the answer changed the request's prefill work much."""
        hashes = vllm.block_hashes_to_look_up(entry.request)
        if not hashes or self._left_seconds <= 0:
            return False
        began = self._clock()
        asked = hashes if len(hashes) <= self._blocks_max else hashes[: self._blocks_max]
        tokens_max = vllm.total_tokens(entry.request) - 1
        cached = self._lookup(asked, tokens_max)
        changed_much = note_answer(entry.view, min(cached, tokens_max), now)
        self.lookups += 1
        self.hit_tokens += cached
        self._left_seconds -= self._clock() - began
        return changed_much
