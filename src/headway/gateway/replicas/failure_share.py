"""Failure share of a replica: how many of its latest answers failed. The weight of an answer halves with 14 later ones.

A replica that breaks every second stream never fails five times in a row, so a row alone does not find it.
"""

from __future__ import annotations

from collections.abc import Iterable

_KEEP = 0.95
_ANSWERS_MIN = 8.0  # the weight of ten answers; with fewer a share says nothing


class FailureShare:
    """Decayed counts of one replica's answers, whole or failed.

    Attributes:
        failed_in_all: since the start, not decayed.
    """

    __slots__ = ("_answers", "_failures", "failed_in_all")

    def __init__(self) -> None:
        self._answers = 0.0
        self._failures = 0.0
        self.failed_in_all = 0

    def note(self, *, failed: bool) -> None:
        """Count one more answer."""
        self._answers = _KEEP * self._answers + 1.0
        self._failures = _KEEP * self._failures + failed
        self.failed_in_all += failed

    def reaches(self, share: float) -> bool:
        """Whether so large a share of enough answers failed."""
        return self._answers >= _ANSWERS_MIN and self._failures >= share * self._answers

    def stands_out(self, peers: Iterable[FailureShare]) -> bool:
        """Whether the peers fail at most half as often, or gave too few answers to tell: they get more then."""
        answers = failures = 0.0
        for peer in peers:
            answers += peer._answers
            failures += peer._failures
        return answers < _ANSWERS_MIN or 2 * failures * self._answers <= self._failures * answers
