"""Wait clocks: one clock per reason to wait, shared by all requests; a wait is the difference of two readings."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from itertools import islice
from typing import NamedTuple

REASONS = ("seats", "tokens", "blocks", "held", "preempting", "paused", "idle")
"""What ended the last scan: no seat free; the step's token budget spent; too few KV blocks free for the next request;
the admission policy held it; a preemption, which ends admission for the step; the engine was paused; nothing (the
request arrived while the step ran)."""

_ADMISSIONS_REMEMBERED = 65_536
_ARRIVALS_IN_A_GROUP = 256  # the square root: as many groups as there are arrivals in one


class Reading(NamedTuple):
    """All clocks at one instant: seconds per reason, and the admissions so far."""

    at: float
    seconds: tuple[float, ...]
    admissions: int


class Wait(NamedTuple):
    """One request's wait. `overtaken_by`: admissions of later arrivals meanwhile, of those still remembered."""

    seconds: float
    by_reason: dict[str, float]
    overtaken_by: int


class WaitClocks:
    """Adds up time by the reason that ended the last scan; remembers the latest admissions in order."""

    def __init__(self) -> None:
        self._seconds = (0.0,) * len(REASONS)
        self._reason = REASONS.index("idle")
        self._read_at: float | None = None
        self._admitted: deque[int] = deque()
        self._groups: dict[int, list[int]] = {}  # the same by arrival, sorted inside a group of consecutive arrivals
        self.admissions = 0

    def reading(self, now: float) -> Reading:
        """All clocks now. Changes nothing, so another thread may call it."""
        seconds, read_at, reason = self._seconds, self._read_at, self._reason
        if read_at is not None:
            passed = seconds[reason] + max(0.0, now - read_at)
            seconds = (*seconds[:reason], passed, *seconds[reason + 1 :])
        return Reading(now, seconds, self.admissions)

    def scanned(self, reason: str, now: float) -> None:
        """A scan has ended; until the next one every waiting request waits for this reason."""
        self._seconds = self.reading(now).seconds
        self._read_at, self._reason = now, REASONS.index(reason)

    def admit(self, arrival: int) -> int:
        """Note an admission; returns its number, counted from 0."""
        self._admitted.append(arrival)
        insort(self._groups.setdefault(arrival // _ARRIVALS_IN_A_GROUP, []), arrival)
        if len(self._admitted) > _ADMISSIONS_REMEMBERED:
            self._forget(self._admitted.popleft())
        self.admissions += 1
        return self.admissions - 1

    def wait(self, arrival: int, began: Reading, ended: Reading) -> Wait:
        """The wait, between two readings, of the request that was the `arrival`-th to come.

        O(√ admissions remembered) where nothing was admitted since `ended`, as in a log of each admission.
        """
        passed = [b - a for a, b in zip(began.seconds, ended.seconds, strict=True)]
        by_reason = {name: seconds for name, seconds in zip(REASONS, passed, strict=True) if seconds >= 0.0005}
        since = self.admissions - ended.admissions
        overtaking = self._later_than(arrival) - sum(
            [1 for other in islice(reversed(self._admitted), since) if other > arrival]
        )
        return Wait(ended.at - began.at, by_reason, overtaking)

    def _later_than(self, arrival: int) -> int:
        """How many of the admissions remembered are of later arrivals, so that they happened while it waited."""
        own = arrival // _ARRIVALS_IN_A_GROUP
        later = sum([len(group) for number, group in self._groups.items() if number > own])
        group = self._groups.get(own, [])
        return later + len(group) - bisect_right(group, arrival)

    def _forget(self, arrival: int) -> None:
        number = arrival // _ARRIVALS_IN_A_GROUP
        self._groups[number].remove(arrival)
        if not self._groups[number]:
            del self._groups[number]


def in_words(wait: Wait) -> str:
    """One clause: "waited 3.20 s (2.90 s seats, 0.30 s tokens); 12 later arrivals were admitted before it"."""
    reasons = ", ".join(f"{s:.2f} s {name}" for name, s in sorted(wait.by_reason.items(), key=lambda item: -item[1]))
    return f"waited {wait.seconds:.2f} s ({reasons or 'no scan meanwhile'}); {_overtaken(wait.overtaken_by)}"


def _overtaken(by: int) -> str:
    if by == 0:
        return "no later arrival was admitted before it"
    return f"{by} later {'arrival was' if by == 1 else 'arrivals were'} admitted before it"
