"""KV memory of the fast engine: a count of blocks, and with prefix caching what the free ones still hold.

Which physical block is which never matters, so none is named. Blank blocks (never used, or freed without a full
content) are handed out first; then cached ones, least recently freed first. That is vLLM's free queue since 0.2x: freed
blocks without a hash go to its front, hashed ones to its tail in reverse order (`BlockPool.free_blocks`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from headway.simulator.tracked import TrackedRequest


class BlockMemory(Protocol):
    """What the engine asks of its KV memory. Counts are blocks."""

    free: int

    def cached_tokens(self, request: TrackedRequest) -> int:
        """Prefix tokens the cache holds for the request now; no side effects."""

    def need(self, request: TrackedRequest, tokens: int, hit_tokens: int) -> int:
        """Free blocks that admission takes for the first `tokens`, revived hits included."""

    def surely_needs_more(self, request: TrackedRequest, free: int) -> bool:
        """True if an earlier look already tells that the whole of it does not fit in `free` blocks."""

    def admit(self, request: TrackedRequest, tokens: int, hit_tokens: int) -> None:
        """Take the blocks of the first `tokens`, sharing the hits."""

    def extend(self, request: TrackedRequest, tokens: int) -> None:
        """Grow a prefilling request to `tokens`; the caller has checked that they fit."""

    def take(self, blocks: int) -> None:
        """Hand out blocks to decoding requests; the caller has checked that they fit."""

    def release(self, request: TrackedRequest, computed_tokens: int, held: int, keep: bool) -> None:
        """Free all `held` blocks; with `keep` (a preemption) its own outputs can be found again."""


class CountedBlocks:
    """KV memory without prefix caching: a number."""

    __slots__ = ("_block_tokens", "free")

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.free = blocks
        self._block_tokens = block_tokens

    def cached_tokens(self, request: TrackedRequest) -> int:
        """Nothing is cached."""
        return 0

    def need(self, request: TrackedRequest, tokens: int, hit_tokens: int) -> int:
        """Blocks of `tokens`."""
        return -(-tokens // self._block_tokens)

    def surely_needs_more(self, request: TrackedRequest, free: int) -> bool:
        """Never known without a look, which costs nothing here."""
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

    def release(self, request: TrackedRequest, computed_tokens: int, held: int, keep: bool) -> None:
        """Give back what it held."""
        self.free += held
        request.blocks = 0


class _Copy:
    """One cached full block: its content's key, and how many running requests use it."""

    __slots__ = ("key", "users")

    def __init__(self, key: int) -> None:
        self.key = key
        self.users = 1


class CachedBlocks:
    """KV memory with prefix caching, block by block.

    Content keys: a block inside the trace's prefix ids is named by (id, place inside it); any other full block is
    private to its request (a negative key) and can be found again by that request only, after a preemption. Blocks
    that fill during decoding are not named at all until a preemption makes it matter: nobody else can ask for them.
    """

    def __init__(
        self, blocks: int, block_tokens: int, prefix_ids: Sequence[Sequence[int]] | None, prefix_block_tokens: int
    ) -> None:
        if prefix_ids is not None and prefix_block_tokens % block_tokens:
            raise ValueError(
                f"prefix caching needs block_tokens ({block_tokens}) to divide the trace's prefix blocks "
                f"({prefix_block_tokens} tokens)"
            )
        self.free = blocks
        self._blank = blocks
        self._block_tokens = block_tokens
        self._per_id = prefix_block_tokens // block_tokens
        self._prefix_ids = prefix_ids
        self._index: dict[int, _Copy] = {}
        self._twins: dict[int, list[_Copy]] = {}  # further copies of a key, as vLLM keeps them, oldest first
        self._lru: OrderedDict[_Copy | int, int] = (
            OrderedDict()
        )  # cached and free; a number stands for unfindable blocks
        self._held: dict[int, list[_Copy]] = {}  # row -> its named blocks, in order of position
        self._keys: dict[int, list[int]] = {}  # row -> keys of its prompt's full blocks
        self._serial = 0
        self._epoch = 0  # moves when a named block is taken into use, freed or made
        self._looked: dict[int, tuple[int, int]] = {}  # row -> (epoch, blocks it needs at least)

    def cached_tokens(self, request: TrackedRequest) -> int:
        """Longest run of cached blocks from the start, at most all tokens but one."""
        hits = 0
        index = self._index
        for key in self._content(request, (request.prompt_tokens + request.produced_tokens - 1) // self._block_tokens):
            if key not in index:
                break
            hits += 1
        return hits * self._block_tokens

    def need(self, request: TrackedRequest, tokens: int, hit_tokens: int) -> int:
        """Blocks of `tokens`, less the hits that somebody is using anyway."""
        hits = hit_tokens // self._block_tokens
        shared = sum(1 for key in self._content(request, hits) if self._index[key].users)
        total = -(-tokens // self._block_tokens) - shared
        if tokens == request.prompt_tokens + request.produced_tokens:
            self._looked[request.row] = (self._epoch, total)
        return total

    def surely_needs_more(self, request: TrackedRequest, free: int) -> bool:
        """Evictions alone never lower the need: a look made in this epoch still holds as a lower bound."""
        epoch, total = self._looked.get(request.row, (-1, 0))
        return epoch == self._epoch and total > free

    def admit(self, request: TrackedRequest, tokens: int, hit_tokens: int) -> None:
        """Share the hits, then take new blocks."""
        self._epoch += 1
        self._looked.pop(request.row, None)
        hits = hit_tokens // self._block_tokens
        held: list[_Copy] = []
        for key in self._content(request, hits):
            copy = self._index[key]
            if not copy.users:
                del self._lru[copy]
                self.free -= 1
            copy.users += 1
            held.append(copy)
        self._held[request.row] = held
        request.blocks = hits
        self.extend(request, tokens)

    def extend(self, request: TrackedRequest, tokens: int) -> None:
        """Take new blocks; those that are full become visible to others at once."""
        blocks = -(-tokens // self._block_tokens)
        self.take(blocks - request.blocks)
        request.blocks = blocks
        held = self._held[request.row]
        full = tokens // self._block_tokens
        if full > len(held):
            self._epoch += 1
            for key in self._content(request, full)[len(held) :]:
                held.append(self._name(key))

    def take(self, blocks: int) -> None:
        """Blank blocks first, then the least recently freed."""
        self.free -= blocks
        if blocks <= self._blank:
            self._blank -= blocks
            return
        blocks -= self._blank
        self._blank = 0
        lru = self._lru
        while blocks:
            entry, count = lru.popitem(last=False)
            if isinstance(entry, _Copy):
                self._forget(entry)
                blocks -= 1
            elif count > blocks:
                lru[entry] = count - blocks
                lru.move_to_end(entry, last=False)
                blocks = 0
            else:
                blocks -= count

    def release(self, request: TrackedRequest, computed_tokens: int, held: int, keep: bool) -> None:
        """Deepest block first to the tail of the free queue; a last block that is not full becomes blank."""
        self._epoch += 1
        named = self._held.pop(request.row)
        full = computed_tokens // self._block_tokens
        if keep:
            named.extend(self._name(key) for key in self._content(request, full)[len(named) :])
        else:
            self._keys.pop(request.row, None)
        self.free += held
        self._blank += held - max(full, len(named))
        if full > len(named):
            self._serial += 1
            self._lru[self._serial] = full - len(named)
        for copy in reversed(named):
            copy.users -= 1
            if copy.users:
                self.free -= 1
            else:
                self._lru[copy] = 1

    def _content(self, request: TrackedRequest, blocks: int) -> list[int]:
        """Keys of the request's first `blocks` full blocks."""
        keys = self._keys.get(request.row)
        if keys is None:
            per_id, full = self._per_id, request.prompt_tokens // self._block_tokens
            ids = () if self._prefix_ids is None else self._prefix_ids[request.row]
            keys = [key for i in ids for key in range(i * per_id, i * per_id + per_id)][:full]
            self._keys[request.row] = keys
        if blocks > len(keys):
            private = -((request.row + 1) << 24)  # 16 M blocks a request: beyond any context
            keys.extend(private - place for place in range(len(keys), blocks))
        return keys[:blocks]

    def _name(self, key: int) -> _Copy:
        """A new cached block, in use by its maker."""
        copy = _Copy(key)
        if key in self._index:
            self._twins.setdefault(key, []).append(copy)
        else:
            self._index[key] = copy
        return copy

    def _forget(self, copy: _Copy) -> None:
        """An evicted block is no longer found; its oldest twin, if any, is found instead."""
        key = copy.key
        twins = self._twins.get(key)
        if self._index[key] is not copy:
            assert twins is not None
            twins.remove(copy)
        elif twins:
            self._index[key] = twins.pop(0)
        else:
            del self._index[key]
        if twins is not None and not twins:
            del self._twins[key]
