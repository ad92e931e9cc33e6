"""The physical blocks of one part of the cache: payload, reference counts, and the list of free ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headway.fusion.encoding import Component
from headway.fusion.kv_blocks import Floats


class OutOfBlocks(RuntimeError):
    """A pool has no free block; nothing was changed."""


class BlockPool:
    """Physical blocks with reference counts. A block is free when its count is 0.

    Attributes:
        components: what a block of this pool holds.
        payload: per component, (blocks, block tokens, heads of the span, head size).
        counts: (blocks,), table entries that point to each block.
        is_mean: (blocks,), whether it is a representative of several blocks, to be scaled.
        is_hashed: (blocks,), whether a prefix cache promises its exact bytes.
        places: (blocks,), its index in the prompts that use it.
    """

    def __init__(self, components: Sequence[Component], blocks: int, block_tokens: int, head_dim: int) -> None:
        self.components = tuple(components)
        self.payload: list[Floats] = [
            np.zeros((blocks, block_tokens, one.end_head - one.first_head, head_dim), np.float32) for one in components
        ]
        self.counts = np.zeros(blocks, np.int64)
        self.is_mean = np.zeros(blocks, dtype=bool)
        self.is_hashed = np.zeros(blocks, dtype=bool)
        self.places = np.zeros(blocks, np.int64)
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free_blocks(self) -> int:
        """Blocks with a count of 0."""
        return len(self._free)

    def allocate(self, place: int) -> int:
        """Take a free block, exact, with a count of 1.

        Raises:
            OutOfBlocks: none is free.
        """
        if not self._free:
            raise OutOfBlocks("no KV block is free: release a request, or give the store more blocks")
        block = self._free.pop()
        self.counts[block], self.places[block] = 1, place
        self.is_mean[block] = self.is_hashed[block] = False
        return block

    def retain(self, block: int, entries: int = 1) -> None:
        """Count table entries that now point to a block."""
        self.counts[block] += entries

    def release(self, block: int) -> None:
        """Take back one table entry; the last one frees the block."""
        self.counts[block] -= 1
        if not self.counts[block]:
            self._free.append(block)

    def may_write(self, block: int) -> bool:
        """Whether a write would alter nothing that others read or that a hash promises."""
        return bool(self.counts[block] == 1 and not self.is_hashed[block] and not self.is_mean[block])

    def free_list(self) -> list[int]:
        """The free blocks, for checks."""
        return list(self._free)
