"""The budget of one tenant's keys: requests and tokens per minute and day, and requests at once.

Laws: a request that is let in is debited once in each limit, and corrected once; what is debited of one that no replica
was sent comes back whole; the tokens debited for a prediction never exceed a limit, so no prediction shuts a key out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

from headway.gateway.budgets.token_bucket import DAY_US, MINUTE_US, TokenBucket
from headway.gateway.settings import BudgetSettings

_WINDOWS = {
    "requests_per_minute": MINUTE_US,
    "requests_per_day": DAY_US,
    "tokens_per_minute": MINUTE_US,
    "tokens_per_day": DAY_US,
}
WaiterT = TypeVar("WaiterT")


class Shortage(NamedTuple):
    """Why a request is over budget: a key of `[tenant.budget]`, and in how many microseconds it would be within.

    `wait_us` is None where no clock says it: a request has to end first.
    """

    key: str
    wait_us: int | None


class KeyBudget(Generic[WaiterT]):
    """One tenant's. `waiters` are its requests over budget that wait, by number, the oldest first."""

    __slots__ = (
        "_at_once_max",
        "_of_requests",
        "_of_tokens",
        "_requests",
        "_tokens",
        "_tokens_max",
        "inside",
        "largest_tokens",
        "settings",
        "waiters",
    )

    def __init__(self, settings: BudgetSettings) -> None:
        self.inside = 0
        self.largest_tokens = 1  # debited or wanted for one request so far
        self.waiters: dict[int, WaiterT] = {}
        self._requests: dict[str, TokenBucket] = {}
        self._tokens: dict[str, TokenBucket] = {}
        self.change(settings, 0)

    def change(self, settings: BudgetSettings, now_us: int, taken: Mapping[str, int] | None = None) -> None:
        """Other limits from now on. What was taken stays taken, or is as in `taken` (of `state`)."""
        held = self.state(now_us) if taken is None else taken
        self.settings = settings
        self._requests.clear()
        self._tokens.clear()
        for key, window_us in _WINDOWS.items():
            limit = getattr(settings, key)
            if limit is not None:
                buckets = self._requests if key.startswith("requests") else self._tokens
                buckets[key] = TokenBucket(limit, window_us, held.get(key, 0), now_us)
        # What each request looks at: of ten thousand budgets little is in the processor's cache.
        self._of_requests, self._of_tokens = tuple(self._requests.values()), tuple(self._tokens.values())
        self._at_once_max = settings.concurrent_requests
        self._tokens_max = min([bucket.limit for bucket in self._tokens.values()], default=None)

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are limited."""
        return bool(self._of_tokens)

    def charge(self, prompt_tokens: int, output_tokens: float) -> int | None:
        """Tokens to debit for a request with such a prediction; None if its prompt alone is above a limit."""
        most = self._tokens_max
        if most is None:
            return 0
        if prompt_tokens > most:
            return None
        tokens = min(most, prompt_tokens + (math.ceil(output_tokens) if output_tokens < most else most)) or 1
        self.largest_tokens = max(self.largest_tokens, tokens)
        return tokens

    def bounded(self, tokens: int) -> int:
        """The same, where that was debited or wanted under other limits."""
        return tokens if self._tokens_max is None else min(tokens, self._tokens_max)

    def shortage(self, tokens: int, now_us: int) -> Shortage | None:
        """What a request lacks, by what it has to wait for longest; None if it is within budget, and may be debited."""
        longest_us, longest = 0, ""
        for key, bucket in self._requests.items():
            wait_us = bucket.wait_us(1, now_us)
            if wait_us > longest_us:
                longest_us, longest = wait_us, key
        for key, bucket in self._tokens.items():
            wait_us = bucket.wait_us(tokens, now_us)
            if wait_us > longest_us:
                longest_us, longest = wait_us, key
        if longest:
            return Shortage(longest, longest_us)
        most = self._at_once_max
        return Shortage("concurrent_requests", None) if most is not None and self.inside >= most else None

    def shortage_of_any(self, now_us: int) -> Shortage | None:
        """What each request lacks, whatever its size; None if some may be within. A large one is waited for."""
        if self.shortage(1, now_us) is None:
            return None
        return self.shortage(self.bounded(self.largest_tokens), now_us)

    def debit_if_within(self, tokens: int, now_us: int) -> bool:
        """`debit`, where there is no shortage; False where there is."""
        if self._at_once_max is not None and self.inside >= self._at_once_max:
            return False
        of_requests, of_tokens = self._of_requests, self._of_tokens
        for bucket in of_requests:
            if bucket.state(now_us) + bucket.unit > bucket.capacity:
                return False
        for bucket in of_tokens:
            if bucket.state(now_us) + tokens * bucket.unit > bucket.capacity:
                return False
        self.inside += 1
        for bucket in of_requests:  # all are up to date
            bucket.taken += bucket.unit
        for bucket in of_tokens:
            bucket.taken += tokens * bucket.unit
        return True

    def debit(self, tokens: int, now_us: int) -> None:
        """A request comes in."""
        self.inside += 1
        for bucket in self._of_requests:
            bucket.take(1, now_us)
        for bucket in self._of_tokens:
            bucket.take(tokens, now_us)

    def correct(self, debited_tokens: int, used_tokens: int, now_us: int) -> None:
        """A request that was debited has ended: it used so many tokens."""
        self.inside -= 1
        if not self._of_tokens:
            return
        more = used_tokens - debited_tokens
        for bucket in self._of_tokens if more else ():
            if more > 0:
                bucket.take(more, now_us)
            else:
                bucket.give_back(-more, now_us)

    def refund(self, debited_tokens: int, now_us: int) -> None:
        """A request that was debited has ended, and no replica was sent it."""
        self.correct(debited_tokens, 0, now_us)
        for bucket in self._of_requests:
            bucket.give_back(1, now_us)

    def tightest(self, now_us: int) -> tuple[TokenBucket | None, TokenBucket | None]:
        """The limit of requests and that of tokens of which least is left; None where there is none."""
        return _tightest(self._of_requests, now_us), _tightest(self._of_tokens, now_us)

    def state(self, now_us: int) -> dict[str, int]:
        """What is taken of each limit; limits of which all is there are left out."""
        taken = {key: bucket.state(now_us) for key, bucket in (self._requests | self._tokens).items()}
        return {key: amount for key, amount in taken.items() if amount}


def _tightest(buckets: tuple[TokenBucket, ...], now_us: int) -> TokenBucket | None:
    if len(buckets) < 2:
        return buckets[0] if buckets else None
    least: TokenBucket | None = None
    least_left = 0
    for bucket in buckets:
        left = (bucket.capacity - bucket.state(now_us)) // bucket.unit
        if least is None or left < least_left:
            least, least_left = bucket, left
    return least
