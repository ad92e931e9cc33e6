"""What first come, first served would have done with the very capacity that the engine had: a live estimate.

Whatever limits the engine, prefill tokens or seats, is spent in some order; FCFS spends the same in order of arrival.
So request i would have come in when as much work, and as many requests, had been let in as came before it. Of the two
instants the later one counts: each is a bound that FCFS could not have beaten.

Left out: outputs of other lengths would have freed seats at other instants, and prefix hits might have differed. So
this is an estimate to notice lasting harm by, not a measurement.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

_POPULATION = 1_000  # requests that FCFS would have let in last
_STARVING = 512  # of those that wait although FCFS would have let them in, how many are looked at


class Waits(NamedTuple):
    """p99 of waits in seconds, ours and FCFS's, over the same `requests` requests."""

    ours: float
    fcfs: float
    requests: int


class LiveShadowFcfs:
    """Virtual FCFS beside the real order. Requests are known by their arrival number, counted from 0 and gapless."""

    def __init__(self) -> None:
        self._queue: deque[tuple[int, float, int]] = deque()  # arrival, arrived_at, work of all before it
        self._work_arrived = 0
        self._work_admitted = 0
        self._left = 0  # admitted, or gone before that
        self._ours: dict[int, float] = {}  # waits known before FCFS would have let the request in
        self._late: dict[int, tuple[float, float]] = {}  # FCFS would have let it in, we have not: arrived_at, its wait
        self._gone: set[int] = set()
        self._pairs: deque[tuple[float, float]] = deque(maxlen=_POPULATION)

    def arrive(self, arrival: int, now: float, work: int) -> None:
        """A request came with so much prefill work, tokens."""
        self._queue.append((arrival, now, self._work_arrived))
        self._work_arrived += work

    def admit(self, arrival: int, arrived_at: float, now: float, work: int) -> None:
        """A request was let in for the first time."""
        self._work_admitted += work
        self._left += 1
        late = self._late.pop(arrival, None)
        if late is None:
            self._ours[arrival] = now - arrived_at
        else:
            self._pairs.append((now - arrived_at, late[1]))
        self._advance(now)

    def leave(self, arrival: int, now: float, work: int) -> None:
        """A request left before it was let in: everybody behind it moves up."""
        self._work_admitted += work
        self._left += 1
        if self._late.pop(arrival, None) is None:
            self._gone.add(arrival)
        self._advance(now)

    def waits(self, now: float) -> Waits:
        """p99s over the last requests that FCFS would have let in; whoever waits still counts with its wait so far."""
        starving: Iterable[tuple[float, float]] = list(self._late.values())[:_STARVING]
        ours = [pair[0] for pair in self._pairs] + [now - arrived_at for arrived_at, _ in starving]
        fcfs = [pair[1] for pair in self._pairs] + [wait for _, wait in starving]
        return Waits(_p99(ours), _p99(fcfs), len(ours))

    def forget(self) -> None:
        """Start the comparison afresh; who waits is kept."""
        self._pairs.clear()

    def _advance(self, now: float) -> None:
        """Let in virtually whoever's turn has come."""
        while self._queue:
            arrival, arrived_at, before = self._queue[0]
            if before > self._work_admitted or arrival >= self._left:
                return
            self._queue.popleft()
            wait = now - arrived_at
            if arrival in self._gone:
                self._gone.remove(arrival)
            elif arrival in self._ours:
                self._pairs.append((self._ours.pop(arrival), wait))
            else:
                self._late[arrival] = (arrived_at, wait)


class HarmJudge:
    """Says when harm has lasted: ours over FCFS's p99 by `ratio` and by `slack_seconds`, for `seconds`."""

    def __init__(self, ratio: float, slack_seconds: float, seconds: float, least_requests: int = 50) -> None:
        self._ratio = ratio
        self._slack_seconds = slack_seconds
        self._seconds = seconds
        self._least_requests = least_requests
        self._since: float | None = None

    def harmful(self, waits: Waits, now: float) -> bool:
        """Whether it is time to step back. Too few requests prove nothing."""
        worse = waits.ours > self._ratio * waits.fcfs and waits.ours > waits.fcfs + self._slack_seconds
        if waits.requests < self._least_requests or not worse:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= self._seconds

    def reset(self) -> None:
        """Forget harm seen so far."""
        self._since = None


def _p99(values: list[float]) -> float:
    if not values:
        return 0.0
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]
