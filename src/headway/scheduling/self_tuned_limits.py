"""Self-tuned limits: the long-prefill threshold and the cap on running requests, computed for each step.

Pure: facts of a step in, limits for the next step out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_SHARE = 0.5  # of the tokens that decodes leave of a step, at most so many are kept for the next request
_CALM_STEPS = 50  # between two changes of the cap
_LOST = 0.25  # tokens thrown away by preemptions, of those computed, from which on the cap falls


class StepFacts(NamedTuple):
    """What the limits depend on, before a step.

    Attributes:
        token_budget: tokens of the step.
        decoding: running requests that decode.
        prefill_left: for each prefilling request, the tokens it has left.
        next_tokens: uncached tokens of the next request in the order; 0 unless it is short and its blocks are free.
        seats_free: how many more may run.
        waiting: requests that wait.
        preempted: preemptions since the step before.
        lost_tokens: tokens that the preempted requests had computed.
        computed_tokens: tokens of the step before.
    """

    token_budget: int
    decoding: int
    prefill_left: Sequence[int]
    next_tokens: int
    seats_free: int
    waiting: int
    preempted: int
    lost_tokens: int
    computed_tokens: int


class StepLimits(NamedTuple):
    """Limits for the next step. `long_prefill_threshold`: tokens one prefill may take, 0 for no limit."""

    long_prefill_threshold: int
    active_cap: int


class SelfTunedLimits:
    """Both limits, moved before every step.

    Threshold: vLLM serves running requests first, so one long prefill takes whole budgets while a short request waits
    beside a free seat. While the next request is short and would fit, long prefills leave it the tokens it needs, at
    most half of what decodes leave. They share the rest by water-filling. No token is kept for a request that cannot
    use it: keeping tokens for all short waiting requests was tried and cost 5 % of the throughput in overload.

    Cap: additive increase, multiplicative decrease, the rule of congestion control (Chiu and Jain, 1989). Where
    preemptions throw away more than a quarter of what is computed, a tenth of the seats goes, at most once in
    `_CALM_STEPS`; each `_CALM_STEPS` without that give a seat back while requests wait.
    """

    def __init__(self, seats: int, own_threshold: int = 0) -> None:
        self._seats = seats
        self._own_threshold = own_threshold
        self._cap = seats
        self._steps_since_change = _CALM_STEPS
        self._lost = self._computed = 0.0  # decayed sums of tokens

    def step(self, facts: StepFacts) -> StepLimits:
        """The limits for the step with these facts."""
        return StepLimits(self._threshold(facts), self._active_cap(facts))

    def _threshold(self, facts: StepFacts) -> int:
        left = max(0, facts.token_budget - facts.decoding)
        room = left - min(facts.next_tokens, int(left * _SHARE))
        if facts.next_tokens == 0 or facts.seats_free <= 0 or sum(facts.prefill_left) <= room:
            return self._own_threshold
        threshold = max(1, _level(facts.prefill_left, room))
        return min(threshold, self._own_threshold) if self._own_threshold else threshold

    def _active_cap(self, facts: StepFacts) -> int:
        self._steps_since_change += 1
        keep = 1 - 1 / _CALM_STEPS
        self._lost = self._lost * keep + facts.lost_tokens
        self._computed = self._computed * keep + facts.computed_tokens
        running = facts.decoding + len(facts.prefill_left)
        if self._steps_since_change >= _CALM_STEPS:
            if facts.preempted and self._lost > _LOST * self._computed:
                self._cap = max(1, min(self._cap, math.floor(0.9 * (running + facts.preempted))))
                self._steps_since_change = 0
            elif facts.waiting and self._cap < self._seats:
                self._cap += 1
                self._steps_since_change = 0
        return max(self._cap, running)


def _level(wanted: Sequence[int], room: int) -> int:
    """Water-filling: the largest whole level so that the sum of min(wanted, level) is within `room`."""
    rising = sorted(wanted)
    for index, tokens in enumerate(rising):
        sharing = len(rising) - index
        if tokens * sharing > room:
            return room // sharing
        room -= tokens
    return rising[-1]
