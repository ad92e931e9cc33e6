"""Highest response ratio next, over the prefill work that the cache does not supply."""

from __future__ import annotations

import math
from collections.abc import Mapping

from headway.domain.request import RequestView, uncached_prefill_tokens
from headway.policies.contracts import LaneId, Need

_NO_WORK = -1  # the lane of requests with nothing to prefill; those with work have lanes 0, 1, 2, …
_ROUNDING = 8 * 2.0**-53  # relative error of a computed ratio or crossing time, with room to spare


class HighestResponseRatio:
    """Highest response ratio next (HRRN) over uncached prefill tokens.

    Idea: serve the highest 1 + waited / service time: short work goes first, long work catches up as it waits, so
        length decides at first and patience in the end. Requests stand in lanes of near-equal work, first come inside a
        lane, and only the lanes' heads are compared, each by its own ratio. A decision costs O(lanes).
    Source: HRRN (Brinch Hansen, 1971); over uncached prefill tokens in SGLang PR #32911. The time to prefill is taken
        as proportional to the tokens, so their price cancels. Deviations: the works of one lane differ by less than the
        factor `lane_width`, and the request served has a waited/work of at least 1/`lane_width` of the highest. The
        clock is in seconds, not in prefilled tokens. Ties go to the earlier arrival, then to less work, not by id.
        Tokens produced before a preemption count as work. There is no fall-back to FCFS above 128 waiting. Requests
        that share an uncached prefix are not held back for each other.
    Reads: prompt length, cached prompt tokens, tokens produced, the arrival time.
    Wins when: prefill is the bottleneck, prompts differ widely and the tail counts as well as the mean.
    Loses when: decoding or KV memory is the bottleneck: it does not look at outputs.
    """

    NEEDS = frozenset([Need.CACHED_TOKENS])

    def __init__(self, *, lane_width: float = 1.2) -> None:
        if not 1 < lane_width < math.inf:
            raise ValueError(f"lane_width must be above 1 (1.2 puts work within 20 % in one lane), got {lane_width:g}")
        self._lanes_per_e = 1 / math.log(lane_width)

    def lane(self, request: RequestView) -> int:
        """The power of `lane_width` that the work falls under; below all of them when there is no work."""
        work = uncached_prefill_tokens(request)
        return int(math.log(work) * self._lanes_per_e) if work else _NO_WORK

    def rank(self, request: RequestView) -> float:
        """The arrival time: with equal work, first come is the highest ratio."""
        return request.arrived_at

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The lane whose head has waited longest for its work; a head without work goes before all."""
        best: LaneId = None
        best_ratio, best_arrival, best_work = -math.inf, math.inf, math.inf
        for lane, head in heads.items():
            arrival = head.arrived_at
            work = head.prompt_tokens + head.produced_tokens - head.cached_prompt_tokens
            if work <= 0:
                return lane
            ratio = (now - arrival) / work
            if ratio >= best_ratio and (ratio > best_ratio or (arrival, work) < (best_arrival, best_work)):
                best, best_ratio, best_arrival, best_work = lane, ratio, arrival, work
        return best

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """The earliest time at which another head's ratio, growing faster, reaches the chosen one's."""
        if len(heads) == 1:
            return math.inf
        chosen = heads[self.choose(heads, now)]
        arrival, work = chosen.arrived_at, uncached_prefill_tokens(chosen)
        if not work:
            return math.inf
        earliest = math.inf
        for head in heads.values():
            gain = work - (head.prompt_tokens + head.produced_tokens - head.cached_prompt_tokens)
            if gain > 0:  # (t − a)/u reaches (t − arrival)/work where t = a + u·(a − arrival)/(work − u)
                crossing = head.arrived_at + (work - gain) * (head.arrived_at - arrival) / gain
                earliest = min(earliest, crossing)
        if earliest == math.inf:
            return math.inf
        # Works are whole tokens, so slopes differ by at least 1/work²: rounding moves a crossing by no more than this.
        margin = _ROUNDING * ((earliest - arrival) * work + abs(earliest))
        return max(now, earliest - margin)
