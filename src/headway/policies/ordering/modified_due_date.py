"""Modified due date: by deadline while it can be met, by work once it cannot; for a small total tardiness."""

from __future__ import annotations

import math
from collections.abc import Mapping

from headway.domain.costs import ServiceCosts
from headway.domain.request import RequestView
from headway.policies.contracts import LaneId, Need
from headway.policies.due_times import DueTimes
from headway.policies.ordering.deadline_plus_work import LANE_SECONDS_MIN
from headway.policies.ordering.shortest_job_first import prefill_seconds

_NO_DEADLINE_SECONDS_MAX = 1e9


class ModifiedDueDate:
    """Least later of the deadline and the time at which the prefill would end, begun now (MDD).

    Idea: the tardiness of a request is the time by which its first token comes after its deadline. While all can be in
        time the earliest deadline goes first. Of requests that will be late in any case the shortest goes first, since
        each of the others waits for it. max(deadline, now + prefill seconds) does both, and what lies between.
    Source: Baker and Bertrand, 1982, "A dynamic priority rule for scheduling against due-dates" (single machine, total
        tardiness): no exchange of two neighbours improves it at the time of a choice. It is no optimum: that problem is
        NP-hard (Du and Leung, 1990). Deviations: the time is the prefill of what is not cached, since the deadline is
        that of the first token: its own, or what its end or its program's stage leaves for it
        (`policies/due_times.py`). Requests stand in lanes of `lane_seconds` by their latest start, shortest first, so a
        choice is within `lane_seconds` of the least. A request without a deadline ranks as with one after
        `no_deadline_seconds` from its arrival (30, ours).
    Reads: the deadlines, the program and its stage, the arrival time, prompt length, cached prompt tokens, the
        estimate's mean where the end has a deadline, costs of a token.
    Wins when: deadlines differ, some are missed, and it counts by how much (`total_tardiness_seconds`).
    Loses when: overload lasts: the longest of the late requests have no bound on their wait. Where a deadline missed is
        worth nothing, by however little, goodput-first and qoserve set the late ones aside.
    """

    follows_what_is_learned = True
    NEEDS = frozenset([Need.CACHED_TOKENS])

    def __init__(self, *, costs: ServiceCosts, no_deadline_seconds: float = 30.0, lane_seconds: float = 0.5) -> None:
        if not 0 <= no_deadline_seconds <= _NO_DEADLINE_SECONDS_MAX:
            bounds = f"from 0 to {_NO_DEADLINE_SECONDS_MAX:g}"
            raise ValueError(f"no_deadline_seconds must be {bounds}, got {no_deadline_seconds:g}")
        if not LANE_SECONDS_MIN <= lane_seconds < math.inf:
            raise ValueError(f"lane_seconds must be at least {LANE_SECONDS_MIN:g} and finite, got {lane_seconds:g}")
        self._costs = costs
        self._due = DueTimes(costs)
        self._no_deadline_seconds = no_deadline_seconds
        self._lane_seconds = lane_seconds

    def lane(self, request: RequestView) -> int:
        """Which stretch of `lane_seconds` its latest start falls in."""
        return math.floor((self._deadline(request) - self.rank(request)) / self._lane_seconds)

    def rank(self, request: RequestView) -> float:
        """Prefill seconds: in a lane latest starts are alike, so the shortest has about the earliest deadline too."""
        return prefill_seconds(request, self._costs)

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The head of the least modified due date; of equals the shorter one."""
        return min(heads, key=lambda lane: self._standing(heads[lane], now))

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """The earliest time at which the head chosen would end after the deadline of a shorter one.

        Until then it stays: a longer one never catches up, since both dates rise by a second each second at most, and
        that of the chosen one begins to rise later or is less.
        """
        chosen = heads[self.choose(heads, now)]
        seconds = self.rank(chosen)
        shorter = [self._deadline(head) for head in heads.values() if self.rank(head) < seconds]
        return max(now, min(shorter, default=math.inf) - seconds)

    def _standing(self, head: RequestView, now: float) -> tuple[float, float, float, float]:
        """Modified due date, and what breaks ties."""
        deadline, seconds = self._deadline(head), self.rank(head)
        return max(deadline, now + seconds), seconds, deadline, head.arrived_at

    def _deadline(self, request: RequestView) -> float:
        due = self._due.first_token_by(request)
        return request.arrived_at + self._no_deadline_seconds if due == math.inf else due
