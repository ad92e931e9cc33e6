"""Counts of requests, and the law they keep: every request that arrives ends once, in one outcome, or is inside."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

from headway.gateway.openai.error_responses import Reason


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    FAILED = "failed"


class RetryCause(StrEnum):
    """Why a request was given to a second replica."""

    REFUSED = "refused"  # by status 429, 503 or 529: its replica has too many
    ERROR = "error"  # its replica answered with another 5xx
    NO_ANSWER = "no-answer"  # not reached, broken off, or ejected before it answered


class Counts:
    """Requests by outcome.

    `retries` counts those given to a second replica, `moved` those taken back from an engine's queue for another
    replica, `reasons` those refused or failed, `keep_alives` what their clients were sent, `unread` answers that a
    proxy carried without showing them.
    """

    def __init__(self) -> None:
        self.arrived = 0
        self.inside = 0
        self.retries: Counter[RetryCause] = Counter()
        self.moved = 0
        self.keep_alives = 0
        self.unread = 0
        self.ended: Counter[Outcome] = Counter()
        self.reasons: Counter[Reason] = Counter()

    @property
    def retried(self) -> int:
        """Retries of all causes."""
        return self.retries.total()

    def arrive(self) -> None:
        """A request arrived."""
        self.arrived += 1
        self.inside += 1

    def end(self, outcome: Outcome, reason: Reason | None = None) -> None:
        """A request ended."""
        self.inside -= 1
        self.ended[outcome] += 1
        if reason is not None:
            self.reasons[reason] += 1
        assert self.inside >= 0, "a request ended twice"

    def is_conserved(self) -> bool:
        """Whether arrived = completed + refused + cancelled + failed + inside."""
        return self.arrived == self.inside + sum(self.ended.values())
