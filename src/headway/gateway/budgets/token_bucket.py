"""A token bucket in integers: what may be taken now, and when more.

Laws: in any time T no more is granted than `limit + limit * T / window`; no rounding, since what was taken is kept in
units of one window's microsecond, of which exactly `limit` come back in each; the balance is never below 0. What is
taken beyond it (a correction) is a debt: it is kept whole, and comes back before the balance rises again.

Source: the token bucket of RFC 2697, section 3, with one rate and one size.
"""

from __future__ import annotations

MINUTE_US, DAY_US = 60_000_000, 86_400_000_000


class TokenBucket:
    """Full at first. Times are whole microseconds of a clock; one that goes back is taken to stand still.

    `unit` is one token, and `capacity` are all of them, in units of which `limit` come back in a microsecond. `taken`,
    in these units, is as it was when `state` was asked last.
    """

    __slots__ = ("_as_of_us", "capacity", "limit", "limit_text", "taken", "unit")

    def __init__(self, limit: int, window_us: int, taken: int = 0, as_of_us: int = 0) -> None:
        """`limit` tokens at most, and as many in each window; `taken` of `state`, at that time."""
        self.limit = limit
        self.limit_text = b"%d" % limit
        self.unit = window_us
        self.capacity = limit * window_us
        self.taken = taken
        self._as_of_us = as_of_us

    def balance(self, now_us: int) -> int:
        """Whole tokens that may be taken."""
        return self.figures(now_us)[0]

    def wait_us(self, tokens: int, now_us: int) -> int:
        """Microseconds until so many tokens (at most `limit`) may be taken; 0 if they may be now."""
        lacking = self.state(now_us) + tokens * self.unit - self.capacity
        return -(-lacking // self.limit) if lacking > 0 else 0

    def figures(self, now_us: int) -> tuple[int, int]:
        """The balance, and the microseconds until all of it is there again."""
        taken = self.state(now_us)
        left = self.capacity - taken
        return left // self.unit if left > 0 else 0, -(-taken // self.limit)

    def take(self, tokens: int, now_us: int) -> None:
        """Tokens are used, whether there are so many or not."""
        self.taken = self.state(now_us) + tokens * self.unit

    def give_back(self, tokens: int, now_us: int) -> None:
        """Tokens that were taken are not used; a full bucket stays full."""
        self.taken = max(0, self.state(now_us) - tokens * self.unit)

    def state(self, now_us: int) -> int:
        """What is taken and has not come back, in `unit`: it does not depend on the limit, which may change."""
        passed_us = now_us - self._as_of_us
        if passed_us > 0:
            self._as_of_us = now_us
            if self.taken:
                left = self.taken - self.limit * passed_us
                self.taken = left if left > 0 else 0
        return self.taken
