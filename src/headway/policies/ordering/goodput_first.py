"""Goodput first: requests that can still meet their deadline, just in time, the cheapest first."""

from __future__ import annotations

import math
from collections.abc import Mapping

from headway.domain.costs import ServiceCosts
from headway.domain.request import RequestView
from headway.policies.contracts import LaneId, Need
from headway.policies.due_times import DueTimes
from headway.policies.ordering.deadline_plus_work import LANE_SECONDS_MIN
from headway.policies.ordering.shortest_job_first import prefill_seconds


class GoodputFirst:
    """Requests whose deadline is near and can still be met; then the cheapest; hopeless ones last.

    Idea: a deadline is worth nothing before it is near and nothing after it is missed. So give each request just enough
        to make it. Serve requests that must start within `guard_seconds`, the cheapest first since most of them fit.
        While none must, serve the cheapest of all, also those without a deadline. Requests that would miss even if they
        started now wait until no other waits.
    Source: after JITServe, arXiv 2504.20068 (goodput by margin under just enough bandwidth, with an upper quantile of
        the length at first that is refined as tokens come). Cost is prefill plus decode seconds at the `quantile` of
        the length, 0.95 as in its code, computed again with the tokens produced when a preempted request is ranked
        again. Deviations: a request met counts one, as in goodput, where JITServe weighs its tokens (input, 8 times the
        output) by how late they come; hopeless ones go to the end, by arrival, where its code lets an overrun deadline
        have nearly infinite priority. Left out of JITServe: reward per remaining second as the priority; the grouping
        of the best requests by length, bin by bin, and running requests that give way to it; its quantile forest (any
        predictor will do); new priorities every 50 steps (`jitserve` is nearer to its form). Deadlines are looked at
        in lanes of `lane_seconds`, cheapest first inside; a choice costs as many looks as there are lanes. With a
        deadline per output token, or `tpot_seconds` for requests that name none, a deadline is for the last token: that
        much is allowed for each token expected after the first, on top of the deadline for the first; at a typical
        batch a request that needs more than that per token is hopeless from the start. A deadline of the end, or of a
        program's stage (`policies/due_times.py`), is for the last token, too.
    Reads: the deadlines, the program and its stage, uncached prompt tokens, tokens produced, the length estimate,
        arrival time, seconds per token.
    Wins when: deadlines differ, or load is above what can be met and some requests have to miss.
    Loses when: no request has a deadline (then it is shortest-job-first) or load is low. Under lasting overload the
        hopeless and those without a deadline have no bound on their wait.
    """

    follows_what_is_learned = True
    NEEDS = frozenset([Need.CACHED_TOKENS])

    def __init__(
        self,
        *,
        costs: ServiceCosts,
        quantile: float = 0.95,
        guard_seconds: float = 0.5,
        lane_seconds: float = 0.5,
        tpot_seconds: float | None = None,
    ) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must be between 0 and 1, got {quantile:g}")
        if not 0 <= guard_seconds < math.inf:
            raise ValueError(f"guard_seconds must be at least 0, got {guard_seconds:g}")
        if not LANE_SECONDS_MIN <= lane_seconds < math.inf:
            raise ValueError(f"lane_seconds must be at least {LANE_SECONDS_MIN:g} and finite, got {lane_seconds:g}")
        if tpot_seconds is not None and not 0 < tpot_seconds < math.inf:
            raise ValueError(f"tpot_seconds must be above 0 and finite, got {tpot_seconds:g}")
        self._costs = costs
        self._due = DueTimes()
        self._quantile = quantile
        self._guard_seconds = guard_seconds
        self._lane_seconds = lane_seconds
        self._tpot_seconds = tpot_seconds

    def lane(self, request: RequestView) -> int | None:
        """Which stretch of `lane_seconds` its deadline falls in; None without one."""
        deadline = self._deadline(request)
        return None if deadline == math.inf else math.floor(deadline / self._lane_seconds)

    def rank(self, request: RequestView) -> float:
        """Seconds of service it is expected to take at most."""
        return prefill_seconds(request, self._costs) + self._costs.decode_seconds_per_token * self._upper_tokens(
            request
        )

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The cheapest head that must start now; else the cheapest that need not; else the first of the hopeless."""
        return min(heads, key=lambda lane: self._standing(heads[lane], now))

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """The earliest time at which a head must start, or can no longer make it."""
        if len(heads) == 1:
            return math.inf
        earliest = math.inf
        for head in heads.values():
            latest = self._latest_start(head)
            for change in (latest - self._guard_seconds, latest):
                if change >= now:
                    earliest = min(earliest, change)
        return earliest

    def _standing(self, head: RequestView, now: float) -> tuple[int, float, float, float]:
        """(0 must start now, 1 need not, 2 hopeless; cost, or arrival of the hopeless; and what breaks ties)."""
        latest = self._latest_start(head)
        deadline = self._deadline(head)
        if now > latest:
            return 2, head.arrived_at, deadline, 0.0
        return int(now < latest - self._guard_seconds), self.rank(head), deadline, head.arrived_at

    def _latest_start(self, request: RequestView) -> float:
        """When it has to start to make its deadline; infinite without one."""
        later, ends_by = request.later_deadlines, self._due.ends_by(request)
        latest = math.inf if ends_by == math.inf else ends_by - self.rank(request)
        if request.deadline is None:
            return latest
        by_first = request.deadline - prefill_seconds(request, self._costs)
        named = None if later is None else later.tpot_seconds
        tpot_seconds = self._tpot_seconds if named is None else named
        if tpot_seconds is not None:
            spare = tpot_seconds - self._costs.decode_seconds_per_token
            by_first += spare * max(0, self._upper_tokens(request) - 1)
        return min(latest, by_first)

    def _deadline(self, request: RequestView) -> float:
        """The earlier of those of its first and of its last token, seconds; infinite without any."""
        first = math.inf if request.deadline is None else request.deadline
        return min(first, self._due.ends_by(request))

    def _upper_tokens(self, request: RequestView) -> int:
        if request.estimate is None:
            raise ValueError(
                f"request {request.id!r} has no length estimate, which goodput-first needs: name a predictor with "
                "--prediction (for example histogram)"
            )
        return request.estimate.remaining_quantile(self._quantile, request.produced_tokens)
