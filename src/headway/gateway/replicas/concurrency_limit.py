"""The limit of requests that a replica may have at once: additive increase, multiplicative decrease.

Source: AIMD of D. Chiu, R. Jain (Computer Networks and ISDN Systems 17, 1989) as in Netflix's concurrency-limits
(`AIMDLimit`: back off by 0.9, grow only while the limit is in use) with the slow start of TCP (RFC 5681). Congestion is
the engine's own queue: requests that it reports as waiting, or refuses. Where it reports nothing, congestion is a time
to first byte far above the best one seen for prompts of that size.
"""

from __future__ import annotations

import math

_START = 32
_MOST = 1_024
_BACK_OFF = 0.9
_TOLERANCE = 5.0  # × the best time to first byte, normalised by prompt size
_BEST_DECAY = 1.0005  # the best one seen rises by this factor with every sample, so that an old one is forgotten
_SETTLE_SECONDS = 1.0  # one decrease a second: what was sent before it still shows


class ConcurrencyLimit:
    """The limit of one replica; `fixed` never moves."""

    def __init__(self, *, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._limit = float(_START)
        self._slow_start = True
        self._backed_off_at = -math.inf
        self._best = math.inf

    @property
    def requests_max(self) -> int:
        """Requests it may have at once, at least 1."""
        return self._fixed if self._fixed is not None else max(1, int(self._limit))

    def answered(self, requests: int, normalised: float | None, now: float) -> None:
        """A first byte came while `requests` were there.

        Args:
            requests: dispatched and not ended at that time.
            normalised: its time to first byte over that expected of its prompt, where that is the only news of
                congestion; None where the engine reports its own queue.
            now: seconds.
        """
        if normalised is not None:
            self._best = min(self._best * _BEST_DECAY, normalised)
            if normalised > _TOLERANCE * self._best:
                self.congested(requests, now)
                return
        if 2 * requests >= self._limit:
            self._limit = min(_MOST, self._limit + (1.0 if self._slow_start else 1.0 / self._limit))

    def congested(self, requests: int, now: float) -> None:
        """The engine queues or refuses with `requests` there."""
        if now - self._backed_off_at < _SETTLE_SECONDS:
            return
        self._backed_off_at = now
        self._slow_start = False
        self._limit = max(1.0, _BACK_OFF * min(self._limit, max(1, requests)))
