"""Starvation guard: overdue requests get a share of all prefill work, in order of arrival, whatever the scores.

Ours, not published (the published score can starve). With a share φ the guard lets at most (1 − φ)/φ tokens of others
go ahead for each token of an overdue request, and one request more; with φ = 1 overdue requests go before all others.
`docs/ewsjf.md` states the bound that follows, and proves it.
"""

from __future__ import annotations

import math


class StarvationGuard:
    """Decides when the oldest waiting request goes ahead of the scores; counts prefill tokens admitted before it."""

    def __init__(self, *, overdue_seconds: float, overdue_share: float) -> None:
        if not 0 <= overdue_seconds < math.inf:
            raise ValueError(f"overdue_seconds must be at least 0 and finite, got {overdue_seconds:g}")
        if not 0 < overdue_share <= 1:
            raise ValueError(f"overdue_share must be above 0 and at most 1, got {overdue_share:g}")
        self.overdue_seconds = overdue_seconds
        self.overdue_share = overdue_share
        self.tokens_ahead = 0

    def promotes(self, arrived_at: float, tokens: int, now: float) -> bool:
        """Whether the oldest waiting request, of so many uncached tokens, goes before the scores now."""
        return now >= arrived_at + self.overdue_seconds and self._earned(tokens)

    def due(self, arrived_at: float, tokens: int, now: float) -> float:
        """When time alone makes `promotes` true, for the oldest that it does not promote now; `math.inf` if never."""
        due = arrived_at + self.overdue_seconds
        return due if due > now and self._earned(tokens) else math.inf

    def admitted(self, arrived_at: float, tokens: int, at: float, *, is_oldest: bool) -> bool:
        """Count an admission from the lanes; True if it was the turn of the oldest, overdue."""
        if is_oldest and at >= arrived_at + self.overdue_seconds:
            self.tokens_ahead = 0
            return True
        self.tokens_ahead += tokens
        return False

    def _earned(self, tokens: int) -> bool:
        return self.tokens_ahead * self.overdue_share >= tokens * (1 - self.overdue_share)
