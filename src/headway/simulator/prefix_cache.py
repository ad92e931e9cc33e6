"""KV memory of the fast engine where prompts share blocks: cached content is kept as stretches, not block by block.

Which physical block is which never matters, so none is named. Blank blocks (never used, or freed before they were full)
are handed out first, then cached ones, least recently freed first, the deepest of a request before its others. That is
vLLM's free queue: blocks without a hash go to its front, hashed ones in reverse order to its tail
(`BlockPool.free_blocks`). Equal to keeping every block, as the tests against `reference_blocks.py` show.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from headway.simulator.tracked import TrackedRequest


class Stretch:
    """Full blocks start … stop - 1 of one content, taken and freed together.

    `holders` are the rows of running requests that use it; without any it is free and waits in the LRU order.
    """

    __slots__ = ("content", "holders", "start", "stop")

    def __init__(self, content: int, start: int, stop: int, holders: list[int]) -> None:
        self.content = content
        self.start = start
        self.stop = stop
        self.holders = holders


class Hit(NamedTuple):
    """Blocks start … stop - 1 of a stretch's content, found there."""

    stretch: Stretch
    start: int
    stop: int


class CachedBlocks:
    """KV memory with prefix caching; see `BlockMemory`.

    Contents: one of the trace's prefix ids (blocks numbered inside it), or, for full blocks beyond those, the request
    itself (a negative number; blocks numbered from the start of the request), for which no other request can ask. What
    fills while decoding gets a name only at a preemption: before that no request can look for it.
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
        self._known: dict[int, list[Stretch]] = {}  # content -> its stretches, oldest first
        # Free stretches, least recently freed first; a number stands for that many blocks which no request can find.
        self._lru: OrderedDict[Stretch | int, int] = OrderedDict()
        self._held: dict[int, list[Stretch]] = {}  # row -> its stretches, in order of position
        self._serial = 0
        self._changes = 0  # counts everything that may change what a look-up finds
        self._looked = (-1, -1, -1)  # row, blocks asked for, changes: the latest look-up
        self._found: list[Hit] = []  # what it found
        self._epoch = 0  # as `_changes`, evictions apart
        self._evicted = 0  # blocks, since the day began
        self._wanted: dict[int, tuple[int, int]] = {}  # row -> (epoch, blocks it needed and blocks evicted by then)

    def cached_tokens(self, request: TrackedRequest) -> int:
        """Longest run of cached blocks from the start, at most all tokens but one."""
        return sum([hit.stop - hit.start for hit in self._find(request)]) * self._block_tokens

    def need(self, request: TrackedRequest, tokens: int, hit_tokens: int) -> int:
        """Blocks of `tokens`, less the hits that running requests hold anyway."""
        shared = sum([hit.stop - hit.start for hit in self._find(request) if hit.stretch.holders])
        blocks = -(-tokens // self._block_tokens) - shared
        if tokens == request.prompt_tokens + request.produced_tokens:
            self._wanted[request.row] = (self._epoch, blocks + self._evicted)
        return blocks

    def surely_needs_more(self, request: TrackedRequest, free: int) -> bool:
        """Whether a look of this epoch showed so.

        Evictions alone lower the need by a block each at most: where another request holds a copy of what is evicted.
        """
        epoch, blocks = self._wanted.get(request.row, (-1, 0))
        return epoch == self._epoch and blocks - self._evicted > free

    def admit(self, request: TrackedRequest, tokens: int, hit_tokens: int) -> None:
        """Share the hits, then take new blocks."""
        held: list[Stretch] = []
        hits = self._find(request)
        self._moved()
        self._wanted.pop(request.row, None)
        self._held[request.row] = held
        for hit in hits:
            stretch = self._cut(hit)
            if not stretch.holders:
                self.free -= stretch.stop - stretch.start
            stretch.holders.append(request.row)
            held.append(stretch)
        request.blocks = hit_tokens // self._block_tokens
        self.extend(request, tokens)

    def extend(self, request: TrackedRequest, tokens: int) -> None:
        """Take new blocks; those that are full become visible to others at once."""
        blocks = -(-tokens // self._block_tokens)
        self.take(blocks - request.blocks)
        request.blocks = blocks
        self._name(request, tokens // self._block_tokens)

    def take(self, blocks: int) -> None:
        """Hand out blocks: blank ones first, then the least recently freed."""
        self.free -= blocks
        if blocks <= self._blank:
            self._blank -= blocks
            return
        blocks -= self._blank
        self._blank = 0
        self._changes += 1
        self._evicted += blocks
        while blocks:
            entry, size = next(iter(self._lru.items()))
            if isinstance(entry, Stretch):
                size = entry.stop - entry.start
                entry.stop -= min(size, blocks)
                if size <= blocks:
                    self._forget(entry)
            if size > blocks:
                self._lru[entry] = size - blocks
                return
            del self._lru[entry]
            blocks -= size

    def give(self, blocks: int) -> None:
        """Take back blank blocks."""
        self.free += blocks
        self._blank += blocks

    def release(self, request: TrackedRequest, computed_tokens: int, held: int, keep: bool) -> None:
        """Free all `held` blocks, the deepest first to the tail of the free queue; one not full becomes blank."""
        self._moved()
        full = computed_tokens // self._block_tokens
        if keep:
            self._name(request, full)
        stretches = self._held.pop(request.row)
        named = sum([stretch.stop - stretch.start for stretch in stretches])
        self.free += held
        self._blank += held - max(full, named)
        if full > named:
            self._serial += 1
            self._lru[self._serial] = full - named
        for stretch in reversed(stretches):
            stretch.holders.remove(request.row)
            if stretch.holders:
                self.free -= stretch.stop - stretch.start
            else:
                self._lru[stretch] = 0

    def _moved(self) -> None:
        self._changes += 1
        self._epoch += 1

    def _layout(self, request: TrackedRequest, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(content, start, stop) of the request's full blocks first … stop - 1."""
        per_id = self._per_id
        ids = () if self._prefix_ids is None else self._prefix_ids[request.row]
        shared = min(stop, request.prompt_tokens // self._block_tokens, len(ids) * per_id)
        while first < shared:
            place, inside = divmod(first, per_id)
            until = min(per_id, shared - place * per_id)
            yield ids[place], inside, until
            first = place * per_id + until
        if first < stop:
            yield -1 - request.row, first, stop

    def _find(self, request: TrackedRequest) -> list[Hit]:
        most = (request.prompt_tokens + request.produced_tokens - 1) // self._block_tokens
        look = (request.row, most, self._changes)
        if look == self._looked:
            return self._found
        hits: list[Hit] = []
        for content, first, stop in self._layout(request, 0, most):
            stretches = self._known.get(content, ())
            if len(stretches) == 1 and stretches[0].start == first and stretches[0].stop >= stop:
                hits.append(Hit(stretches[0], first, stop))  # by far the most common
                continue
            place = first
            while place < stop and (hit := _oldest(stretches, place, stop)) is not None:
                hits.append(hit)
                place = hit.stop
            if place < stop:
                break
        self._looked, self._found = look, hits
        return hits

    def _cut(self, hit: Hit) -> Stretch:
        """The hit as a stretch of its own, about to be used; what is cut off keeps its holders and its place."""
        whole, start, stop = hit
        if (start, stop) == (whole.start, whole.stop):
            self._lru.pop(whole, None)
            return whole
        middle = Stretch(whole.content, start, stop, list(whole.holders))
        left = Stretch(whole.content, whole.start, start, list(whole.holders))
        pieces = [middle, whole]
        if stop == whole.stop:
            whole.stop = start
            pieces = [whole, middle]
        elif start > whole.start:
            pieces = [left, middle, whole]
            self._follow(whole, left)
        if pieces[-1] is whole:
            whole.start = stop
        for stretches in (self._known[whole.content], *(self._held[row] for row in whole.holders)):
            place = stretches.index(whole)
            stretches[place : place + 1] = pieces
        return middle

    def _follow(self, deeper: Stretch, left: Stretch) -> None:
        """Place what was cut off in front right behind the free deeper rest; rare, so the whole order is rebuilt."""
        if not deeper.holders:
            order = [entry for old in self._lru.items() for entry in ([old, (left, 0)] if old[0] is deeper else [old])]
            self._lru = OrderedDict(order)

    def _name(self, request: TrackedRequest, full: int) -> None:
        """Its blocks up to `full` are full: they can be found."""
        held = self._held[request.row]
        named = sum([stretch.stop - stretch.start for stretch in held])
        if full <= named:
            return
        self._moved()
        for content, start, stop in self._layout(request, named, full):
            stretch = Stretch(content, start, stop, [request.row])
            self._known.setdefault(content, []).append(stretch)
            held.append(stretch)

    def _forget(self, stretch: Stretch) -> None:
        stretches = self._known[stretch.content]
        stretches.remove(stretch)
        if not stretches:
            del self._known[stretch.content]


def _oldest(stretches: Sequence[Stretch], start: int, stop: int) -> Hit | None:
    """From `start` on, the blocks of the stretch that vLLM would find first: the oldest that has them."""
    for place, stretch in enumerate(stretches):
        if stretch.start <= start < stretch.stop:
            until = min([stop, stretch.stop, *(older.start for older in stretches[:place] if older.start > start)])
            return Hit(stretch, start, until)
    return None
