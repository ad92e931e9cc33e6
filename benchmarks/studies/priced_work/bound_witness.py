"""Sees to it that the bound of docs/priced-work.md holds on a day: everything added up anew, beside the order itself.

Of the order it takes the lane that each was put in, and nothing else: works come from the requests, turns by arrival
from sums of what was admitted, the tail from all waits in order of arrival so far (a day is shorter than the order's
memory of 2,000).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from headway.domain.event import Admitted, Arrived, Event
from headway.domain.request import RequestId, RequestView
from headway.policies.contracts import LaneId
from headway.policies.ordering.priced_work import PATIENCE, SPARE_PATIENCE, TAIL, PricedWork, work

_ROUNDING = 1 + 1e-9
_INSTANT_SECONDS = 1e-9


class _Seen(NamedTuple):
    """One request as the witness knows it; moments are places in the sequence of events."""

    id: RequestId
    arrived_at: float
    came: int
    work: float
    lane: tuple[bool, int]


class _Turn(NamedTuple):
    """When a request would have been let in in order of arrival, and what the tail was from then on."""

    moment: int
    waited: float
    tail: float


class Verdict(NamedTuple):
    """What the bound says of a day.

    Attributes:
        violations: a sentence for each request that a later one was put before although the bound forbids it.
        overdue: requests that were overdue when they were admitted.
    """

    violations: tuple[str, ...]
    overdue: int


class Witness:
    """`priced-work` with somebody who takes notes; decides as the order does."""

    def __init__(self, order: PricedWork) -> None:
        self._order = order
        self._moment = 0
        self._lanes: dict[RequestId, tuple[bool, int]] = {}
        self._seen: list[_Seen] = []
        self._admitted: dict[RequestId, tuple[int, float]] = {}  # first admissions, in order

    def lane(self, request: RequestView) -> tuple[bool, int]:
        """As the order says."""
        lane = self._order.lane(request)
        self._lanes.setdefault(request.id, lane)
        return lane

    def rank(self, request: RequestView) -> float:
        """As the order says."""
        return self._order.rank(request)

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """As the order says."""
        return self._order.choose(heads, now)

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """As the order says."""
        return self._order.next_change(heads, now)

    def observe(self, event: Event) -> None:
        """Pass the event on and note arrivals and first admissions."""
        self._moment += 1
        match event:
            case Arrived(request=request):
                lane = self._lanes[request.id]
                self._seen.append(_Seen(request.id, request.arrived_at, self._moment, work(request), lane))
            case Admitted(request=request, at=at):
                self._admitted.setdefault(request.id, (self._moment, at))
            case _:
                pass
        self._order.observe(event)

    def verdict(self) -> Verdict:
        """Hold the day so far against the bound; those that still wait are not judged."""
        turns = self._turns()
        violations: list[str] = []
        overdue = 0
        for place, one in enumerate(self._seen):
            if one.id not in self._admitted or place >= len(turns):
                continue
            moment, at = self._admitted[one.id]
            if turns[place].moment >= moment or at < self._due(one, turns[place], 0.0):
                continue
            tail = self._longest_tail(turns, one.came, moment)
            due = self._due(one, turns[place], tail)
            if at < due:
                continue
            overdue += 1
            named = self._named(place, due)
            last_due = max(self._due(other, turns[number], tail) for number, other in named)
            violations += self._passed_by(one, last_due, moment)
        return Verdict(tuple(violations), overdue)

    def _turns(self) -> list[_Turn]:
        """Of the first to come, as many as have had their turn: it comes once all work up to theirs was admitted."""
        works = {one.id: one.work for one in self._seen}
        found: list[_Turn] = []
        waits: list[float] = []
        done, needed = 0.0, 0.0
        for number, (moment, at) in self._admitted.items():
            done += works[number]
            while len(found) < len(self._seen):
                one = self._seen[len(found)]
                if one.came > moment or needed + one.work > done * _ROUNDING:
                    break
                needed += one.work
                waits.append(at - one.arrived_at)
                ordered = sorted(waits)
                found.append(_Turn(moment, waits[-1], ordered[min(len(waits) - 1, int(TAIL * len(waits)))]))
        return found

    def _named(self, place: int, due: float) -> list[tuple[int, _Seen]]:
        """The request itself and those of its lane that came no later and still wait when it is due."""
        one = self._seen[place]
        earlier = enumerate(self._seen[: place + 1])
        never = (0, math.inf)
        return [
            (n, other)
            for n, other in earlier
            if other.lane == one.lane and self._admitted.get(other.id, never)[1] >= due
        ]

    def _passed_by(self, one: _Seen, last_due: float, moment: int) -> list[str]:
        """Who came later and was admitted between the latest due and the request's own admission."""
        came = {other.id: other.arrived_at for other in self._seen}
        return [
            f"request {number} was admitted at {at:.6f} s, before {one.id}, which came earlier, due at {last_due:.6f} s"
            for number, (when, at) in self._admitted.items()
            if when < moment and at > last_due + _INSTANT_SECONDS and came[number] > one.arrived_at
        ]

    @staticmethod
    def _due(one: _Seen, turn: _Turn, tail: float) -> float:
        patience = SPARE_PATIENCE if one.lane[0] else PATIENCE
        return one.arrived_at + max(patience * turn.waited, tail)

    @staticmethod
    def _longest_tail(turns: list[_Turn], came: int, left: int) -> float:
        """The largest the tail was between two moments."""
        tails = {turn.moment: turn.tail for turn in turns if turn.moment < left}  # the last of each moment
        before = [tail for moment, tail in tails.items() if moment <= came][-1:]
        return max([*before, *(tail for moment, tail in tails.items() if moment > came)], default=0.0)
