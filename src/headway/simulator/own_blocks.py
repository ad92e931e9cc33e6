"""KV memory of the fast engine with a prefix cache in which nothing is shared: a request finds only its own blocks.

No block is looked up by content. Free blocks stand in vLLM's queue (`prefix_cache.py` says how it is ordered), of which
only lengths are kept: blank blocks in front, then cached ones. Only a request that was preempted can find blocks again.
Where they stand in the queue is a number, so how many of them are left is a subtraction, made when it is needed.
"""

from __future__ import annotations

from typing import NamedTuple

from headway.simulator.tracked import TrackedRequest

_HELD = 1 << 62


class OwnStretch:
    """Full blocks start … stop - 1 of a request that was preempted, taken and freed together.

    While they are free, the deepest stands in front. `end` is the place in the queue behind the last of them, counted
    in blocks that were ever queued; `_HELD` while their request runs.
    """

    __slots__ = ("end", "start", "stop")

    def __init__(self, start: int, stop: int, end: int) -> None:
        self.start = start
        self.stop = stop
        self.end = end


class OwnHit(NamedTuple):
    """Blocks start … stop - 1, found in a stretch."""

    stretch: OwnStretch
    start: int
    stop: int


class OwnBlocks:
    """KV memory in which no prompts share blocks; see `BlockMemory`. Equal to `CachedBlocks` without prefix ids."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.free = blocks
        self._blank = blocks
        self._block_tokens = block_tokens
        self._queued = 0  # cached blocks that were ever put at the end of the queue
        # Row of a request that was preempted → its stretches, in the order in which vLLM named them. Two of them can
        # have a block in common: one whose last token had to be computed again, though its block was full.
        self._stretches: dict[int, list[OwnStretch]] = {}

    def cached_tokens(self, request: TrackedRequest) -> int:
        """Longest run of its own blocks from the start that are left, at most all tokens but one."""
        if request.row not in self._stretches:
            return 0
        return sum([hit.stop - hit.start for hit in self._find(request)]) * self._block_tokens

    def need(self, request: TrackedRequest, tokens: int, hit_tokens: int) -> int:
        """Blocks of `tokens`: those that are found are free, so they are taken too."""
        return -(-tokens // self._block_tokens)

    def surely_needs_more(self, request: TrackedRequest, free: int) -> bool:
        """False: a look costs next to nothing, so none is saved."""
        return False

    def admit(self, request: TrackedRequest, tokens: int, hit_tokens: int) -> None:
        """Take back the blocks that were found, then new ones."""
        request.blocks = -(-tokens // self._block_tokens)
        if hit_tokens:
            for hit in self._find(request):
                self._take_back(request.row, hit)
        self.take(request.blocks - hit_tokens // self._block_tokens)

    def extend(self, request: TrackedRequest, tokens: int) -> None:
        """Take new blocks up to `tokens`."""
        held = -(-tokens // self._block_tokens)
        self.take(held - request.blocks)
        request.blocks = held

    def take(self, blocks: int) -> None:
        """Hand out blocks: blank ones, then from the front of the queue."""
        self.free -= blocks
        if self._blank:
            self._blank = self._blank - blocks if blocks < self._blank else 0

    def give(self, blocks: int) -> None:
        """Take back blank blocks."""
        self.free += blocks
        self._blank += blocks

    def release(self, request: TrackedRequest, computed_tokens: int, held: int, keep: bool) -> None:
        """Free all `held` blocks, the full ones at the end of the queue; the others become blank."""
        full = computed_tokens // self._block_tokens
        self.free += held
        self._blank += held - full
        if keep:
            self._queue(request.row, full)
        else:
            self._queued += full
            if self._stretches:
                self._stretches.pop(request.row, None)
        request.blocks = 0

    def _queue(self, row: int, full: int) -> None:
        """Put the `full` blocks of a preempted request at the end of the queue, the deepest first."""
        stretches = self._stretches.setdefault(row, [])
        held = sorted([stretch for stretch in stretches if stretch.end == _HELD], key=_start)
        named = sum([stretch.stop - stretch.start for stretch in held])
        if full > named:
            held.append(OwnStretch(named, full, _HELD))
            stretches.append(held[-1])
        for stretch in reversed(held):
            self._queued += stretch.stop - stretch.start
            stretch.end = self._queued

    def _find(self, request: TrackedRequest) -> list[OwnHit]:
        """The blocks that vLLM would find: of several copies the one that was named first."""
        stretches = self._stretches[request.row] = self._left(self._stretches[request.row])
        most = (request.prompt_tokens + request.produced_tokens - 1) // self._block_tokens
        hits: list[OwnHit] = []
        place = 0
        while place < most:
            for number, stretch in enumerate(stretches):
                if stretch.start <= place < stretch.stop:
                    older = [before.start for before in stretches[:number] if before.start > place]
                    hits.append(OwnHit(stretch, place, min([most, stretch.stop, *older])))
                    break
            else:
                break
            place = hits[-1].stop
        return hits

    def _left(self, stretches: list[OwnStretch]) -> list[OwnStretch]:
        """What is left of the stretches of a waiting request: without the blocks that were handed out."""
        front = self._queued - (self.free - self._blank)
        for stretch in stretches:
            stretch.stop = min(stretch.stop, stretch.start + stretch.end - front)
        return [stretch for stretch in stretches if stretch.start < stretch.stop]

    def _take_back(self, row: int, hit: OwnHit) -> None:
        """Take blocks out of the middle of the queue; those in front of them come closer to its end."""
        found, start, stop = hit
        blocks = stop - start
        self.free -= blocks
        behind = found.end - (start - found.start)
        for stretches in self._stretches.values():
            for stretch in stretches:
                if stretch.end <= behind - blocks:
                    stretch.end += blocks
        pieces = [OwnStretch(start, stop, _HELD)]
        if start > found.start:
            pieces.append(OwnStretch(found.start, start, found.end))
        if stop < found.stop:
            pieces.append(found)
            found.start, found.end = stop, behind
        place = self._stretches[row].index(found)
        self._stretches[row][place : place + 1] = pieces


def _start(stretch: OwnStretch) -> int:
    return stretch.start
