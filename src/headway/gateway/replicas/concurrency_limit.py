"""The limit of requests that a replica may have at once: additive increase, multiplicative decrease.

Source: AIMD of D. Chiu, R. Jain (Computer Networks and ISDN Systems 17, 1989) as in Netflix's concurrency-limits
(`AIMDLimit`: back off by 0.9, grow only while the limit is in use) with the slow start of TCP (RFC 5681). Congestion is
the engine's own queue: requests that it reports as waiting, or refuses. Where it reports nothing, congestion is
suspected when even the fastest answers take far longer than the fastest ones before, or when streams wait at every
moment while equally many answer, as seats have it. A decrease has to prove it: a queue delays every request, and
becomes shorter with fewer of them. Prompts that differ do neither.
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
_BACKLOG_SAMPLES = 32  # first bytes that a backlog is judged by, and the windows of its trial
_EQUAL_SHARE = 0.4  # of those first bytes at which equally many streams answer
_PATIENCE_SECONDS = 60.0  # until a backlog is suspected again after a decrease without relief; doubled each time
_PATIENCE_SECONDS_MAX = 3_600.0
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
    is_of_backlog: bool  # what it was suspected by, rather than by the time


class _Backlog:
    """Streams without an event at the first events of others: whether a number of seats keeps them waiting.

    Seats show in two ways together: some streams wait at every moment, and often equally many answer, never more.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._waiting_min = 0
        self._answering_max = 0
        self._times_max = 0

    def note(self, requests: int, waiting: int) -> None:
        """A first event came; of `requests` there then, `waiting` have none."""
        answering = requests - waiting
        if answering > self._answering_max:
            self._answering_max, self._times_max = answering, 0
        self._times_max += answering == self._answering_max
        self._waiting_min = min(waiting, self._waiting_min) if self.samples else waiting
        self.samples += 1

    @property
    def shows_seats(self) -> bool:
        """Whether both hold over its samples."""
        waits = self._waiting_min > 1 + self._answering_max // 10
        return waits and self._times_max >= _EQUAL_SHARE * self.samples


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
        self._backlog = _Backlog()
        self._patience_seconds = _PATIENCE_SECONDS
        self._patient_until = -math.inf

    @property
    def is_fixed(self) -> bool:
        """Whether it never moves, so that no first byte need be judged."""
        return self._fixed is not None

    @property
    def requests_max(self) -> int:
        """Requests it may have at once, at least 1."""
        return self._fixed if self._fixed is not None else max(1, int(self._limit))

    def answered(self, requests: int, time: FirstByteTime | None, now: float, waiting: int = 0) -> None:
        """A first byte came while `requests` were there.

        Args:
            requests: dispatched and not ended at that time.
            time: how long it took, where that is the only news of congestion; None where the engine reports its own
                queue.
            now: seconds.
            waiting: of the requests, those without a first byte yet.
        """
        if time is not None:
            self._note(time, requests, waiting, now)
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

    def _note(self, time: FirstByteTime, requests: int, waiting: int, now: float) -> None:
        """Take a time into its window; judge the window when it is full."""
        if now - time.seconds < self._window_since:
            return  # sent before the window began: it met an older limit
        window, trial = self._window, self._trial
        window.append(time)
        self._backlog.note(requests, waiting)
        samples = _BACKLOG_SAMPLES if trial is not None and trial.is_of_backlog else _SAMPLES
        if now - self._window_since < _SETTLE_SECONDS or len(window) < samples:
            return
        fastest, mean = _fastest(window), _mean(window)
        self._window, self._window_since, self._trial = [], now, None
        if trial is not None and trial.mean_before is not None and not trial.mean_before.times(_RELIEF).exceeds(mean):
            self._undo(trial, fastest, now)
            return
        self._best = _fastest([self._best.times(_BEST_DECAY), fastest])
        is_slow = fastest.exceeds(self._best.times(_TOLERANCE))
        if not is_slow and not self._has_backlog(now):
            return
        if trial is None:
            self._trial = _Trial(self._limit, None, not is_slow)
        else:
            self._trial = _Trial(self._limit, mean, not is_slow)
            self.congested(requests, now)

    def _has_backlog(self, now: float) -> bool:
        """Whether enough first bytes show a backlog; then the next ones are looked at afresh."""
        backlog = self._backlog
        if backlog.samples < _BACKLOG_SAMPLES:
            return False
        self._backlog = _Backlog()
        return backlog.shows_seats and now >= self._patient_until

    def _undo(self, trial: _Trial, fastest: FirstByteTime, now: float) -> None:
        """No relief: the prompts themselves take that long now."""
        self._limit = trial.limit
        if trial.is_of_backlog:
            self._patient_until = now + self._patience_seconds
            self._patience_seconds = min(_PATIENCE_SECONDS_MAX, 2 * self._patience_seconds)
        else:
            self._best = fastest.times(_SUSPECT_AGAIN / _TOLERANCE)


def _fastest(times: list[FirstByteTime]) -> FirstByteTime:
    """The smallest of each figure."""
    return FirstByteTime(min(time.seconds for time in times), min(time.normalised for time in times))


def _mean(times: list[FirstByteTime]) -> FirstByteTime:
    """The mean of each figure."""
    total = FirstByteTime(sum(time.seconds for time in times), sum(time.normalised for time in times))
    return total.times(1 / len(times))
