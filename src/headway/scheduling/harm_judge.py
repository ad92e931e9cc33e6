"""Harm judge: compares the p99 wait of the live order with that of first come, first served (FCFS).

FCFS's waits are those of `ShadowFcfs`, with prefill tokens and seats as limits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from headway.config.typed_values import Bounds
from headway.domain.request import RequestId
from headway.scheduling.shadow_fcfs import ShadowAdmission, ShadowFcfs

_POPULATION = 1_000  # requests that FCFS would have admitted last
_LEAST_REQUESTS = 50  # fewer prove nothing
_STARVING = 512  # of the waiting requests that FCFS would have admitted, how many are looked at


@dataclass(frozen=True, slots=True)
class HarmLimits:
    """What the do-no-harm guard calls harm, and how long it suspends the policies for it.

    Attributes:
        harm_ratio: our order does harm when its p99 wait is this many times that of the live FCFS estimate
        harm_slack_seconds: and longer by this too, so that noise among short waits does not count.
        harm_seconds: harm that lasts this long suspends the policies.
        step_back_seconds: how long they stay suspended before the next try.
    """

    harm_ratio: Annotated[float, Bounds(least=1)] = 2.0
    harm_slack_seconds: Annotated[float, Bounds(least=0)] = 1.0
    harm_seconds: Annotated[float, Bounds(least=0)] = 60.0
    step_back_seconds: Annotated[float, Bounds(least=0)] = 300.0


class Waits(NamedTuple):
    """p99 of waits in seconds, ours and FCFS's, over the same `requests` requests."""

    ours: float
    fcfs: float
    requests: int


class WaitComparison:
    """The wait of each request in the live order beside its wait under FCFS."""

    def __init__(self) -> None:
        self._shadow = ShadowFcfs(seats=True)
        self._ours: dict[RequestId, float] = {}  # waits known before FCFS would have admitted the request
        self._late: dict[RequestId, tuple[float, float]] = {}  # waits live, not under FCFS: arrived_at, FCFS's wait
        self._pairs: deque[tuple[float, float]] = deque(maxlen=_POPULATION)

    def arrive(self, request_id: RequestId, now: float, work: int) -> None:
        """A request came with so much prefill work, in tokens."""
        self._shadow.arrived(request_id, now, work)

    def admit(self, request_id: RequestId, arrived_at: float, now: float, work: int) -> None:
        """A request was admitted for the first time."""
        late = self._late.pop(request_id, None)
        if late is None:
            self._ours[request_id] = now - arrived_at
        else:
            self._pairs.append((now - arrived_at, late[1]))
        self._admitted_by_fcfs(self._shadow.admitted(work), now)

    def leave(self, request_id: RequestId, now: float) -> None:
        """A request was cancelled before it was admitted: all behind it move up."""
        self._late.pop(request_id, None)
        self._admitted_by_fcfs(self._shadow.left(request_id), now)

    def waits(self, now: float) -> Waits:
        """p99s over the last requests that FCFS would have admitted; one that waits counts with its wait so far."""
        starving: Iterable[tuple[float, float]] = list(self._late.values())[:_STARVING]
        ours = [pair[0] for pair in self._pairs] + [now - arrived_at for arrived_at, _ in starving]
        fcfs = [pair[1] for pair in self._pairs] + [wait for _, wait in starving]
        return Waits(_p99(ours), _p99(fcfs), len(ours))

    def forget(self) -> None:
        """Start the comparison afresh; the requests that wait are kept."""
        self._pairs.clear()

    def _admitted_by_fcfs(self, admissions: list[ShadowAdmission], now: float) -> None:
        for request_id, arrived_at in admissions:
            wait = now - arrived_at
            if request_id in self._ours:
                self._pairs.append((self._ours.pop(request_id), wait))
            else:
                self._late[request_id] = (arrived_at, wait)


class HarmJudge:
    """Decides when the policies are suspended for the harm they do, and when they are reinstated."""

    def __init__(self, limits: HarmLimits) -> None:
        self._limits = limits
        self._since: float | None = None  # harm is seen; None: it is not
        self._suspended_until: float | None = None

    def check(self, waits: Waits, now: float) -> bool:
        """Judge the waits; whether that changed what rules: the policies were suspended, or are reinstated."""
        if self._suspended_until is not None:
            if now < self._suspended_until:
                return False
            self._suspended_until = None
        elif self._harmful(waits, now):
            self._since = None
            self._suspended_until = now + self._limits.step_back_seconds
        else:
            return False
        return True

    @property
    def suspends(self) -> bool:
        """Whether the policies are suspended."""
        return self._suspended_until is not None

    def _harmful(self, waits: Waits, now: float) -> bool:
        """Whether harm has lasted."""
        limits = self._limits
        worse = waits.ours > limits.harm_ratio * waits.fcfs and waits.ours > waits.fcfs + limits.harm_slack_seconds
        if waits.requests < _LEAST_REQUESTS or not worse:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= limits.harm_seconds


def _p99(values: list[float]) -> float:
    if not values:
        return 0.0
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]
