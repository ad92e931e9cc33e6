"""The limit of requests that a replica may have at once: additive increase, multiplicative decrease.

Source: AIMD of D. Chiu, R. Jain (Computer Networks and ISDN Systems 17, 1989) as in Netflix's concurrency-limits
(`AIMDLimit`: back off by 0.9, grow only while the limit is in use) with the slow start of TCP (RFC 5681). Congestion is
the engine's own queue: requests that it reports as waiting, or refuses. Where it reports nothing, congestion is
suspected when even the fastest answers take far longer than the fastest ones before, and a decrease has to prove it:
a queue delays every request, and becomes shorter with fewer of them. Prompts that differ do neither.
"""

from __future__ import annotations

import math
from typing import NamedTuple

_START = 32
_MOST = 1_024
_BACK_OFF = 0.9
_SETTLE_SECONDS = 1.0  # one decrease a second: what was sent before it still shows
_SAMPLES = 8  # first bytes in a window, at least; a window lasts a second or longer
_TOLERANCE = 5.0  # × the best window
_BEST_DECAY = 1.002  # the best window rises by this factor with every window, so that an old one is forgotten
_SUSPECT_AGAIN = 1.25  # × a window that a decrease did not shorten: from there on congestion is suspected again
_RELIEF = 0.97  # a tenth less shortens a queue that is 4/5 of the time by 8 %; the rest is noise


class FirstByteTime(NamedTuple):
    """How long a first byte took. Congestion swells both figures; a long prompt the first, a fixed cost neither."""

    seconds: float
    normalised: float  # over the seconds expected of a prompt of that size

    def times(self, factor: float) -> FirstByteTime:
        """Both figures multiplied."""
        return FirstByteTime(self.seconds * factor, self.normalised * factor)

    def exceeds(self, other: FirstByteTime) -> bool:
        """Whether both figures are above those of `other`."""
        return self.seconds > other.seconds and self.normalised > other.normalised


class _Trial(NamedTuple):
    """A decrease that has to prove itself: a window before it, the limit held, and a window after it."""

    limit: float  # before the decrease
    mean_before: FirstByteTime | None  # of the window before it; None while that lasts


_NEVER = FirstByteTime(math.inf, math.inf)


class ConcurrencyLimit:
    """The limit of one replica; `fixed` never moves."""

    def __init__(self, *, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._limit = float(_START)
        self._slow_start = True
        self._backed_off_at = -math.inf
        self._best = _NEVER  # of all windows
        self._window: list[FirstByteTime] = []
        self._window_since = -math.inf
        self._trial: _Trial | None = None

    @property
    def requests_max(self) -> int:
        """Requests it may have at once, at least 1."""
        return self._fixed if self._fixed is not None else max(1, int(self._limit))

    def answered(self, requests: int, time: FirstByteTime | None, now: float) -> None:
        """A first byte came while `requests` were there.

        Args:
            requests: dispatched and not ended at that time.
            time: how long it took, where that is the only news of congestion; None where the engine reports its own
                queue.
            now: seconds.
        """
        if self._fixed is not None:
            return
        if time is not None:
            self._note(time, requests, now)
        else:
            self._trial = None
        if 2 * requests >= self._limit and self._trial is None:
            self._limit = min(_MOST, self._limit + (1.0 if self._slow_start else 1.0 / self._limit))

    def congested(self, requests: int, now: float) -> None:
        """The engine queues or refuses with `requests` there."""
        if now - self._backed_off_at < _SETTLE_SECONDS:
            return
        self._backed_off_at = now
        self._slow_start = False
        self._limit = max(1.0, _BACK_OFF * min(self._limit, max(1, requests)))

    def _note(self, time: FirstByteTime, requests: int, now: float) -> None:
        """Take a time into its window; judge the window when it is full."""
        if now - time.seconds < self._window_since:
            return  # sent before the window began: it met an older limit
        window = self._window
        window.append(time)
        if now - self._window_since < _SETTLE_SECONDS or len(window) < _SAMPLES:
            return
        fastest, mean, trial = _fastest(window), _mean(window), self._trial
        self._window, self._window_since, self._trial = [], now, None
        if trial is not None and trial.mean_before is not None and not trial.mean_before.times(_RELIEF).exceeds(mean):
            # No relief: the prompts themselves take that long now.
            self._limit, self._best = trial.limit, fastest.times(_SUSPECT_AGAIN / _TOLERANCE)
            return
        self._best = _fastest([self._best.times(_BEST_DECAY), fastest])
        if not fastest.exceeds(self._best.times(_TOLERANCE)):
            return
        if trial is None:
            self._trial = _Trial(self._limit, None)
        else:
            self._trial = _Trial(self._limit, mean)
            self.congested(requests, now)


def _fastest(times: list[FirstByteTime]) -> FirstByteTime:
    """The smallest of each figure."""
    return FirstByteTime(min(time.seconds for time in times), min(time.normalised for time in times))


def _mean(times: list[FirstByteTime]) -> FirstByteTime:
    """The mean of each figure."""
    total = FirstByteTime(sum(time.seconds for time in times), sum(time.normalised for time in times))
    return total.times(1 / len(times))
