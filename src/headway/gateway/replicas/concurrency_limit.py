"""The limit of requests that a replica may have at once: additive increase, multiplicative decrease.

Source: AIMD of D. Chiu, R. Jain (Computer Networks and ISDN Systems 17, 1989) as in Netflix's concurrency-limits
(`AIMDLimit`: back off by 0.9, grow only while the limit is in use) with the slow start of TCP (RFC 5681). Congestion is
the engine's own queue: requests that it reports as waiting, or refuses. Where it reports nothing, congestion is
suspected when even the fastest answers take far longer than the fastest ones before, or when streams wait at every
moment while equally many answer, as seats have it. A decrease has to prove it: a queue delays every request, also the
fastest, and becomes shorter with fewer of them. Prompts that differ do neither. After each proof the next decrease is
larger, down to as many as answer at once, which have seats.
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
_BEST_DECAY = 1.0005  # the best window rises by this factor with every window, so that an old one is forgotten
_BACKLOG_SAMPLES = 32  # first bytes that a backlog is judged by, and the windows of its trial
_EQUAL_SHARE = 0.4  # of those first bytes at which equally many streams answer
_STEPS = 0.9, 0.75, 0.5  # what a decrease leaves: the first, the one after it has proved itself, and all later ones
_RELIEF = 0.3  # a decrease has proved itself if it shortens the fastest first byte by this share of what it takes away
_STEP_MIN = 0.95  # a decrease that leaves more could not be told from noise
_BACKLOG_PATIENCE_SECONDS = 60.0  # until a backlog is suspected again after a decrease without relief
_TIME_PATIENCE_SECONDS = 8.0  # until times are, likewise
_PATIENCE_SECONDS_MAX = 3_600.0


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
    before: FirstByteTime | None  # the fastest of the window before it; None while that lasts
    is_of_backlog: bool  # what it was suspected by, rather than by the time
    proven: int = 0  # decreases before it, each of which proved itself


class _Backlog:
    """Streams without an event at the first events of others: whether a number of seats keeps them waiting.

    Seats show in two ways together: some streams wait at every moment, and often equally many answer, never more.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._waiting_min = 0
        self.answering_max = 0
        self._times_max = 0

    def note(self, requests: int, waiting: int) -> None:
        """A first event came; of `requests` there then, `waiting` have none."""
        answering = requests - waiting
        if answering > self.answering_max:
            self.answering_max, self._times_max = answering, 0
        self._times_max += answering == self.answering_max
        self._waiting_min = min(waiting, self._waiting_min) if self.samples else waiting
        self.samples += 1

    @property
    def shows_seats(self) -> bool:
        """Whether both hold over its samples."""
        waits = self._waiting_min > 1 + self.answering_max // 10
        return waits and self._times_max >= _EQUAL_SHARE * self.samples


class _Patience:
    """How long a sign of congestion is passed over after its trial brought no relief; each time longer."""

    def __init__(self, seconds: float) -> None:
        self._first_seconds = self._seconds = seconds
        self._until = -math.inf

    def is_over(self, now: float) -> bool:
        """Whether the sign counts."""
        return now >= self._until

    def begin(self, now: float) -> None:
        """There was no relief."""
        self._until = now + self._seconds
        self._seconds = min(_PATIENCE_SECONDS_MAX, 2 * self._seconds)

    def forget(self) -> None:
        """There was."""
        self._seconds = self._first_seconds


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
        self._seats = 0  # that decreases have shown, while no more streams answer; 0 if unknown
        self._backlog = _Backlog()
        self._backlog_patience = _Patience(_BACKLOG_PATIENCE_SECONDS)
        self._time_patience = _Patience(_TIME_PATIENCE_SECONDS)

    @property
    def is_known(self) -> bool:
        """Whether it is configured, or congestion has shown it: until then it only grows."""
        return self._fixed is not None or not self._slow_start

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
            self._seats = 0
        if requests - waiting > self._seats:
            self._seats = 0  # there are more than it seemed
        if 2 * requests >= self._limit and self._trial is None and not self._seats:
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
        fastest = _fastest(window)
        self._window, self._window_since, self._trial = [], now, None
        if trial is not None and trial.before is not None:
            if fastest.seconds > (1.0 - _RELIEF * (1.0 - _step(trial.proven))) * trial.before.seconds:
                self._limit = trial.limit  # no relief: the prompts themselves take that long now
                self._patience_of(trial).begin(now)
                return
            self._patience_of(trial).forget()
            trial = trial._replace(limit=self._limit, proven=trial.proven + 1)
        self._best = _fastest([self._best.times(_BEST_DECAY), fastest])
        is_slow = fastest.exceeds(self._best.times(_TOLERANCE)) and self._time_patience.is_over(now)
        answering = self._backlog.answering_max
        if not is_slow and not self._has_backlog(now):
            return
        if trial is None:
            self._trial = _Trial(self._limit, None, not is_slow)
        else:
            self._decrease(trial._replace(before=fastest, is_of_backlog=not is_slow), requests, answering, now)

    def _decrease(self, trial: _Trial, requests: int, answering: int, now: float) -> None:
        """Lower the limit, though not to fewer than answer at once, and begin to look for relief."""
        used = min(self._limit, max(1, requests))
        lower = max(used * _step(trial.proven), 1.0 + answering + answering // 10)
        if lower > used * _STEP_MIN:
            self._seats = answering if trial.proven else 0
            return
        self._trial = trial
        self._backed_off_at = now
        self._slow_start = False
        self._limit = lower

    def _has_backlog(self, now: float) -> bool:
        """Whether enough first bytes show a backlog; then the next ones are looked at afresh."""
        backlog = self._backlog
        if backlog.samples < _BACKLOG_SAMPLES:
            return False
        self._backlog = _Backlog()
        return backlog.shows_seats and self._backlog_patience.is_over(now)

    def _patience_of(self, trial: _Trial) -> _Patience:
        return self._backlog_patience if trial.is_of_backlog else self._time_patience


def _fastest(times: list[FirstByteTime]) -> FirstByteTime:
    """The smallest of each figure."""
    return FirstByteTime(min(time.seconds for time in times), min(time.normalised for time in times))


def _step(proven: int) -> float:
    """The share of the limit that stays at a decrease after so many that have proved themselves."""
    return _STEPS[min(proven, len(_STEPS) - 1)]
