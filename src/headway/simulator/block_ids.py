"""The prefix blocks of all requests in two arrays: one for the ids, one for where each request's run begins.

A list of lists of Python integers would take about 40 bytes an id; this takes 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class BlockIds(Sequence[Sequence[int]]):
    """Row i holds the block ids of request i, as plain Python integers made when asked for.

    Args:
        flat: all ids, row after row.
        ends: `ends[i]` is where row i starts in `flat`, `ends[i + 1]` where it stops; one longer than there are rows.
    """

    __slots__ = ("ends", "flat")

    def __init__(self, flat: Ids, ends: Ids) -> None:
        self.flat = flat
        self.ends = ends

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> BlockIds:
        """From rows of any kind."""
        kept = [np.asarray(row, dtype=np.int64) for row in rows]
        ends = np.concatenate(([0], np.cumsum([len(row) for row in kept]))).astype(np.int64)
        return cls(np.concatenate([np.empty(0, dtype=np.int64), *kept]), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, row: int) -> list[int]: ...

    @overload
    def __getitem__(self, row: slice) -> BlockIds: ...

    def __getitem__(self, row: int | slice) -> list[int] | BlockIds:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(row)
        ids: list[int] = self.flat[self.ends[row] : self.ends[row + 1]].tolist()
        return ids

    def lengths(self) -> Ids:
        """Number of ids of each row."""
        return np.diff(self.ends)

    def take(self, rows: Ids) -> BlockIds:
        """The named rows, in the order given."""
        return self.cut(rows, self.lengths()[rows])

    def cut(self, rows: Ids, lengths: Ids) -> BlockIds:
        """The named rows in the order given, of each its first `lengths` ids (at most as many as it has)."""
        ends = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        # place k of the result lies in row r at offset k - ends[r]
        places = np.arange(ends[-1]) + np.repeat(self.ends[rows] - ends[:-1], lengths)
        return BlockIds(self.flat[places], ends)

    def shifted(self, by: int) -> BlockIds:
        """Every id raised by `by`."""
        return BlockIds(self.flat + by, self.ends)
