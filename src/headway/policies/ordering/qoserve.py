"""QoServe: deadline blended with remaining prefill; requests that cannot make it any more are set aside."""

from __future__ import annotations

import math
from collections.abc import Mapping

from headway.domain.costs import ServiceCosts
from headway.domain.request import RequestView
from headway.policies.contracts import LaneId, Need
from headway.policies.due_times import DueTimes
from headway.policies.ordering.deadline_plus_work import LANE_SECONDS_MIN, DeadlinePlusWork
from headway.policies.ordering.shortest_job_first import prefill_seconds


class Qoserve:
    """Requests that can meet their deadline first, by deadline plus weighted prefill time; then the others.

    Idea: earliest deadline first serves hopeless requests first, and others miss theirs behind them. So a request whose
        prefill would end after its deadline, even if it began now, is relegated: it runs when no request waits that can
        still be in time. Among those the deadline counts, and the work in proportion to `work_weight`.
    Source: QoServe (Niyama), arXiv 2503.22562, and the scheduler in its code. Deviations: its code measures a prefill
        rate over wall time, idle steps included, and never undoes a relegation; here the rate is the replica's cost of
        a token. Requests stand in lanes of `lane_seconds` by their latest start, and only heads are looked at. Its
        chunk size by the decodes' slack belongs to the engine and is left out, and so is relegation by importance.
        Requests without a deadline rank as with one after `no_deadline_seconds` (30, ours), and are never relegated. A
        deadline of the end, or of a program, leaves its first token what the expected decode does not take
        (`policies/due_times.py`); its code takes the mean of past lengths and two standard deviations for that.
    Reads: the deadlines, the program and its stage, the arrival time, prompt length, cached prompt tokens, the
        estimate's mean where the end has a deadline, costs of a token.
    Wins when: deadlines differ, and load is at times above what can be met.
    Loses when: overload lasts: relegated requests have no bound on their wait. Without deadlines it is shortest prefill
        first with an allowance.
    """

    follows_what_is_learned = True
    NEEDS = frozenset([Need.CACHED_TOKENS])

    def __init__(
        self,
        *,
        costs: ServiceCosts,
        work_weight: float = 1.0,
        no_deadline_seconds: float = 30.0,
        lane_seconds: float = 1.0,
    ) -> None:
        if not LANE_SECONDS_MIN <= lane_seconds < math.inf:
            raise ValueError(f"lane_seconds must be at least {LANE_SECONDS_MIN:g} and finite, got {lane_seconds:g}")
        self._costs = costs
        self._due = DueTimes(costs)
        self._lane_seconds = lane_seconds
        self._key = DeadlinePlusWork(costs=costs, work_weight=work_weight, no_deadline_seconds=no_deadline_seconds)

    def lane(self, request: RequestView) -> int | None:
        """Which stretch of `lane_seconds` its latest start falls in; None without a deadline."""
        latest = self._latest_start(request)
        return None if latest == math.inf else math.floor(latest / self._lane_seconds)

    def rank(self, request: RequestView) -> float:
        """The deadline plus the weighted prefill time, seconds."""
        return self._key.rank(request)

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The head of the least rank that can be in time; if there is none, the one of the least rank."""
        return min(heads, key=lambda lane: self._standing(heads[lane], now))

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """The earliest time at which a head can no longer be in time."""
        if len(heads) == 1:
            return math.inf
        starts = [self._latest_start(head) for head in heads.values()]
        return min([start for start in starts if start >= now], default=math.inf)

    def _standing(self, head: RequestView, now: float) -> tuple[bool, float, float]:
        """Relegated or not, rank, and what breaks ties."""
        return now > self._latest_start(head), self.rank(head), head.arrived_at

    def _latest_start(self, request: RequestView) -> float:
        """When its prefill has to begin to be in time, seconds; infinite without a deadline."""
        return self._due.first_token_by(request) - prefill_seconds(request, self._costs)
