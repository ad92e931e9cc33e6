"""A map of many KV blocks in parts, so that neither its growth nor its end takes long at once.

A dict of a million entries is copied as it grows, and freed in one go: some 80 ms each. The parts are of unequal size,
up to 1 to 2, so that not all of them are copied at about the same time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
_PARTS = 256
_SLOTS = 1 << 14  # of hashes


def _part_of_slots() -> list[int]:
    """Slot -> part: the last part has twice as many slots as the first."""
    weights = [2 ** (part / _PARTS) for part in range(_PARTS)]
    ends, total = [], 0.0
    for weight in weights:
        total += weight
        ends.append(total)
    return [bisect_right(ends, slot * total / _SLOTS) for slot in range(_SLOTS)]


_PART_OF = _part_of_slots()


class KvBlockMap(Generic[K]):
    """Block -> key of a block."""

    def __init__(self) -> None:
        self._parts: list[dict[K, int]] = [{} for _ in range(_PARTS)]
        self._old: list[dict[K, int]] = []  # to be freed
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, block: K) -> bool:
        return block in self._parts[_PART_OF[hash(block) % _SLOTS]]

    def get(self, block: K) -> int | None:
        """What is noted of a block."""
        return self._parts[_PART_OF[hash(block) % _SLOTS]].get(block)

    def add(self, block: K, key: int) -> None:
        """Note something of a block of which nothing was noted."""
        self._parts[_PART_OF[hash(block) % _SLOTS]][block] = key
        self._size += 1

    def pop(self, block: K) -> int | None:
        """Take out what is noted of a block."""
        key = self._parts[_PART_OF[hash(block) % _SLOTS]].pop(block, None)
        if key is not None:
            self._size -= 1
        return key

    def leading(self, blocks: Iterable[K]) -> int:
        """How many of the blocks something is noted of, up to the first of which nothing is."""
        parts, count = self._parts, 0
        for block in blocks:
            if block not in parts[_PART_OF[hash(block) % _SLOTS]]:
                break
            count += 1
        return count

    def clear(self) -> None:
        """Forget all; the memory is freed by `free_some`, and by further calls of this."""
        self.free_some()
        self._old += [part for part in self._parts if part]
        self._parts = [{} for _ in range(_PARTS)]
        self._size = 0

    def free_some(self) -> None:
        """Free a part of what was forgotten."""
        if self._old:
            self._old.pop()
