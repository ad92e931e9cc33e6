"""Order of KV events: which batch is the next of an engine, and what its sequence number says if it is not.

An engine numbers its batches from 0, and begins again when it starts again. Nothing else says that it did: a lower
number is a new start if the batch was written later than the last one, and else one that came late or twice.
"""

from __future__ import annotations

import math
from enum import Enum, auto


class BatchPlace(Enum):
    """Where a batch stands."""

    NEXT = auto()
    FIRST = auto()  # nothing is known of what came before
    AFTER_GAP = auto()
    AFTER_RESTART = auto()
    OLD = auto()


class EventOrder:
    """The order of one engine's batches."""

    def __init__(self) -> None:
        self.next_sequence: int | None = None  # None where nothing is known
        self._written_at = -math.inf  # of the batch before that

    def place(self, sequence: int, written_at: float) -> BatchPlace:
        """Where a batch of this number stands; `written_at` in seconds on the engine's clock."""
        wanted = self.next_sequence
        if wanted is None:
            return BatchPlace.FIRST
        if sequence == wanted:
            return BatchPlace.NEXT
        if sequence > wanted:
            return BatchPlace.AFTER_GAP
        return BatchPlace.AFTER_RESTART if written_at > self._written_at else BatchPlace.OLD

    def took(self, sequence: int, written_at: float) -> None:
        """A batch was taken in."""
        self.next_sequence, self._written_at = sequence + 1, written_at

    def forget(self, next_sequence: int | None = None) -> None:
        """What comes next is not known, or begins with this number."""
        self.next_sequence, self._written_at = next_sequence, -math.inf
