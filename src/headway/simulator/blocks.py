"""KV memory of the fast engine: its interface, and the memory without a prefix cache, which is a count of blocks."""

from __future__ import annotations

from typing import Protocol

from headway.simulator.tracked import TrackedRequest


class BlockMemory(Protocol):
    """Interface of the fast engine to its KV memory. Counts are blocks."""

    free: int

    def cached_tokens(self, request: TrackedRequest) -> int:
        """Prefix tokens the cache holds for the request now; no side effects."""

    def need(self, request: TrackedRequest, tokens: int, hit_tokens: int) -> int:
        """Free blocks that admission takes for the first `tokens`, revived hits included."""

    def surely_needs_more(self, request: TrackedRequest, free: int) -> bool:
        """Whether an earlier look already shows that the whole request does not fit in `free` blocks."""

    def admit(self, request: TrackedRequest, tokens: int, hit_tokens: int) -> None:
        """Take the blocks of the first `tokens`, sharing the hits."""

    def extend(self, request: TrackedRequest, tokens: int) -> None:
        """Grow a prefilling request to `tokens`; the caller has checked that they fit."""

    def take(self, blocks: int) -> None:
        """Hand out blocks to decoding requests, or to an adapter; the caller has checked that they fit."""

    def give(self, blocks: int) -> None:
        """Take back blocks in which nothing is to be found."""

    def release(self, request: TrackedRequest, computed_tokens: int, held: int, keep: bool) -> None:
        """Free all `held` blocks; with `keep` (a preemption) its own outputs can be found again."""


class CountedBlocks:
    """KV memory without prefix caching: a number."""

    __slots__ = ("_block_tokens", "free")

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.free = blocks
        self._block_tokens = block_tokens

    def cached_tokens(self, request: TrackedRequest) -> int:
        """0: nothing is cached."""
        return 0

    def need(self, request: TrackedRequest, tokens: int, hit_tokens: int) -> int:
        """Blocks of `tokens`."""
        return -(-tokens // self._block_tokens)

    def surely_needs_more(self, request: TrackedRequest, free: int) -> bool:
        """False: a look costs nothing here, so none is saved."""
        return False

    def admit(self, request: TrackedRequest, tokens: int, hit_tokens: int) -> None:
        """Take the blocks of `tokens`."""
        request.blocks = -(-tokens // self._block_tokens)
        self.free -= request.blocks

    def extend(self, request: TrackedRequest, tokens: int) -> None:
        """Grow to the blocks of `tokens`."""
        held = -(-tokens // self._block_tokens)
        self.free -= held - request.blocks
        request.blocks = held

    def take(self, blocks: int) -> None:
        """Hand out blocks."""
        self.free -= blocks

    def give(self, blocks: int) -> None:
        """Take them back."""
        self.free += blocks

    def release(self, request: TrackedRequest, computed_tokens: int, held: int, keep: bool) -> None:
        """Free all `held` blocks."""
        self.free += held
        request.blocks = 0


class FusedBlocks(CountedBlocks):
    """KV memory in which alike prompts share their first blocks once they are computed (KV-block fusion).

    Prompts of one tenant and adapter are alike: `share` of each one's full blocks, from the first, is kept once for all
    that run.
    A prompt is computed in blocks of its own, so admission needs room for all of it. See `EngineRules.fused_share`.
    """

    __slots__ = ("_kinds", "_share")

    def __init__(self, blocks: int, block_tokens: int, share: float) -> None:
        super().__init__(blocks, block_tokens)
        self._share = share
        # (tenant, adapter) → row of a request that shares → blocks that it shares
        self._kinds: dict[tuple[str, str | None], dict[int, int]] = {}

    def fuse(self, request: TrackedRequest) -> None:
        """The request has computed its prompt and runs on: what others of its kind keep becomes free."""
        kind = self._kinds.setdefault((request.tenant, request.adapter), {})
        kept = max(kind.values(), default=0)
        shared = int(self._share * (request.prompt_tokens // self._block_tokens))
        kind[request.row] = shared
        self.free += shared - (max(kept, shared) - kept)

    def release(self, request: TrackedRequest, computed_tokens: int, held: int, keep: bool) -> None:
        """Free what it holds alone, and what only it shared in."""
        kind = self._kinds.get((request.tenant, request.adapter), {})
        kept = max(kind.values(), default=0)
        shared = kind.pop(request.row, 0)
        self.free += held - shared + kept - max(kind.values(), default=0)
        request.blocks = 0
