"""JITServe: most tokens in time per second of service that a request still takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, cast

from headway.domain.costs import ServiceCosts
from headway.domain.request import RequestView
from headway.policies.contracts import LaneId, Need
from headway.policies.due_times import DueTimes
from headway.policies.ordering.deadline_plus_work import LANE_SECONDS_MIN
from headway.policies.ordering.shortest_job_first import prefill_seconds

_FACTOR_LEAST = 1e-6
_NO_DEADLINE_SECONDS_MAX = 1e9
_GROWTH_LOG_MAX = 100.0  # of a time; a small exponent would ask for a power that no number holds
_ROUNDING = 1e-9  # of a time, so that no error of arithmetic makes a change late


class _Gain(NamedTuple):
    """Tokens that count in full until the time they take is above the time allowed.

    Attributes:
        tokens: weighted.
        allowed_seconds: from the arrival.
        takes_seconds: of service, from now on.
    """

    tokens: float
    allowed_seconds: float
    takes_seconds: float


class Jitserve:
    """Most weighted tokens that would come in time, per second of service left, first.

    Idea: what counts is tokens of requests that keep their deadlines (token goodput). A request gains its prompt tokens
        and `output_weight` times its output tokens; what would come late is worth less, by the time allowed over the
        time it would take, to the power `lateness_exponent`. Serve the most gain per second of service left.
    Source: JITServe, arXiv 2504.20068, and the priority in its code. The length is the `quantile` 0.95 of the estimate,
        asked again with the tokens produced after a preemption. Three kinds: a bound on TTFT and TPOT (the prompt
        counts by the first token, the output by its last one at that pace), a deadline of the end, and a stage of a
        program, which is due as `policies/due_times.py` splits the program's time. Deviations: its code takes decode
        steps alone as the time left; here prefill counts too, and seconds are the replica's costs of a token. Requests
        stand in lanes by `lane_seconds` of their latest start, and by powers of two of the time allowed. The calls of
        a stage are ranked one by one, not by their sum. Left out: its quantile forest (any predictor will do), the
        matching of programs' graphs, the grouping of the best requests by length, which a queue has no hand in, and
        running requests that give way to it. A request without a deadline has one for its first token after
        `no_deadline_seconds` (30, ours).
    Reads: all deadlines, the program and its stage, prompt length, cached prompt tokens, tokens produced, the estimate,
        the arrival time, costs of a token.
    Wins when: load is above what can be met, requests have deadlines of several kinds, and tokens in time count.
    Loses when: all can be in time: it does not ask how near a deadline is. Long prompts gain as they cost; a late
        request falls behind without a bound on its wait.
    """

    follows_what_is_learned = True
    NEEDS = frozenset([Need.CACHED_TOKENS])

    def __init__(
        self,
        *,
        costs: ServiceCosts,
        quantile: float = 0.95,
        output_weight: float = 8.0,
        lateness_exponent: float = 1.0,
        no_deadline_seconds: float = 30.0,
        lane_seconds: float = 1.0,
    ) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must be between 0 and 1, got {quantile:g}")
        if not 0 <= output_weight < math.inf:
            raise ValueError(f"output_weight must be at least 0 and finite, got {output_weight:g}")
        if not 0 < lateness_exponent < math.inf:
            raise ValueError(f"lateness_exponent must be above 0 and finite, got {lateness_exponent:g}")
        if not 0 < no_deadline_seconds <= _NO_DEADLINE_SECONDS_MAX:
            bounds = f"above 0 and at most {_NO_DEADLINE_SECONDS_MAX:g}"
            raise ValueError(f"no_deadline_seconds must be {bounds}, got {no_deadline_seconds:g}")
        if not LANE_SECONDS_MIN <= lane_seconds < math.inf:
            raise ValueError(f"lane_seconds must be at least {LANE_SECONDS_MIN:g} and finite, got {lane_seconds:g}")
        self._costs = costs
        self._quantile = quantile
        self._output_weight = output_weight
        self._exponent = lateness_exponent
        self._no_deadline_seconds = no_deadline_seconds
        self._lane_seconds = lane_seconds
        self._due = DueTimes()

    def lane(self, request: RequestView) -> tuple[int, int]:
        """The stretch of `lane_seconds` in which it has to start, and the power of two of the seconds allowed."""
        gain = min(self._gains(request), key=lambda one: one.allowed_seconds - one.takes_seconds)
        latest = request.arrived_at + gain.allowed_seconds - gain.takes_seconds
        return math.floor(latest / self._lane_seconds), math.frexp(max(0.0, gain.allowed_seconds))[1]

    def rank(self, request: RequestView) -> float:
        """Weighted tokens per second of service left, all in time; negative, since the most goes first."""
        return -sum(gain.tokens for gain in self._gains(request)) / self._seconds_left(request)

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The head with the most weighted tokens in time per second of service left; of equals the first to come."""
        lanes = cast(Mapping[tuple[int, int], RequestView], heads)
        return min(lanes, key=lambda lane: (-self._worth(lanes[lane], now), lanes[lane].arrived_at, lane))

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """The earliest time at which the head chosen can have fallen to what the next one is worth now.

        No request gains by waiting. Each factor falls as the time allowed over the time taken does.
        """
        if len(heads) == 1:
            return math.inf
        chosen = self.choose(heads, now)
        others = max(self._worth(head, now) for lane, head in heads.items() if lane != chosen)
        worth = self._worth(heads[chosen], now)
        if others <= 0 or worth <= 0:
            return now
        may_grow = math.exp(min(_GROWTH_LOG_MAX, math.log(worth / others) / self._exponent))
        change, waited = math.inf, now - heads[chosen].arrived_at
        for gain in self._gains(heads[chosen]):
            takes = waited + gain.takes_seconds
            change = min(change, now + max(takes, gain.allowed_seconds) * may_grow - takes)
        return max(now, change - _ROUNDING * (1 + abs(change)))

    def _worth(self, request: RequestView, now: float) -> float:
        """Weighted tokens in time per second of service left, were it to start now."""
        waited, worth = now - request.arrived_at, 0.0
        for gain in self._gains(request):
            takes = waited + gain.takes_seconds
            in_time = gain.allowed_seconds / takes if takes > gain.allowed_seconds else 1.0
            worth += gain.tokens * max(_FACTOR_LEAST, in_time) ** self._exponent
        return worth / self._seconds_left(request)

    def _gains(self, request: RequestView) -> tuple[_Gain, ...]:
        """What it gains, by kind: all at its end, or the prompt by the first token and the output by the last."""
        tokens = request.produced_tokens + self._upper_tokens(request)
        prompt, output = float(request.prompt_tokens), self._output_weight * tokens
        left, ends_by = self._seconds_left(request), self._due.ends_by(request)
        if ends_by < math.inf:
            return (_Gain(prompt + output, ends_by - request.arrived_at, left),)
        allowed = self._no_deadline_seconds if request.deadline is None else request.deadline - request.arrived_at
        first, later = prefill_seconds(request, self._costs), request.later_deadlines
        if later is None or later.tpot_seconds is None:
            return (_Gain(prompt + output, allowed, first),)
        by_last = allowed + later.tpot_seconds * (tokens - 1)
        return _Gain(prompt, allowed, first), _Gain(output, by_last, left)

    def _seconds_left(self, request: RequestView) -> float:
        seconds = prefill_seconds(request, self._costs)
        return seconds + self._costs.decode_seconds_per_token * self._upper_tokens(request)

    def _upper_tokens(self, request: RequestView) -> int:
        if request.estimate is None:
            raise ValueError(
                f"request {request.id!r} has no length estimate, which jitserve needs: name a predictor with "
                "--prediction (for example histogram)"
            )
        return max(1, request.estimate.remaining_quantile(self._quantile, request.produced_tokens))
