"""Two knobs that turn themselves: the long-prefill threshold and the cap on active requests.

Pure: facts of a step in, settings for the next step out.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class StepFacts(NamedTuple):
    """What the knobs look at before a step.

    Attributes:
        token_budget: tokens of the step.
        decoding, prefilling: running requests by what they do.
        short_tokens: uncached prompt tokens of the short requests that wait.
        seats_free: how many more may run.
        waiting: requests that wait.
        preempted: preemptions since the step before.
    """

    token_budget: int
    decoding: int
    prefilling: int
    short_tokens: int
    seats_free: int
    waiting: int
    preempted: int


class Knobs(NamedTuple):
    """Settings for the next step. `long_prefill_threshold`: tokens one prefill may take, 0 for no limit."""

    long_prefill_threshold: int
    active_cap: int


class SelfTuned:
    """Both knobs, moved before every step.

    Threshold: vLLM serves running requests first, so one long prefill eats whole budgets while short requests wait
    with free seats. While short work waits, long prefills leave it room, at most `share` of what decodes leave; when
    none waits there is no limit, so nothing is ever kept idle for somebody who is not there.

    Cap: additive increase, multiplicative decrease, the rule of congestion control (Chiu and Jain, 1989): a
    preemption throws a prefill away, so it takes a tenth of the seats off, at most once in `calm_steps`; each
    `calm_steps` without one give a seat back while somebody waits.
    """

    def __init__(self, seats: int, own_threshold: int = 0, share: float = 0.5, calm_steps: int = 50) -> None:
        self._seats = seats
        self._own_threshold = own_threshold
        self._share = share
        self._calm_steps = calm_steps
        self._cap = seats
        self._steps_since_change = calm_steps

    def step(self, facts: StepFacts) -> Knobs:
        """The settings for the step that these facts lead to."""
        return Knobs(self._threshold(facts), self._active_cap(facts))

    def _threshold(self, facts: StepFacts) -> int:
        if facts.short_tokens == 0 or facts.seats_free <= 0 or facts.prefilling == 0:
            return self._own_threshold
        left = facts.token_budget - facts.decoding
        reserved = min(facts.short_tokens, int(left * self._share))
        threshold = max(1, (left - reserved) // facts.prefilling)
        return min(threshold, self._own_threshold) if self._own_threshold else threshold

    def _active_cap(self, facts: StepFacts) -> int:
        self._steps_since_change += 1
        running = facts.decoding + facts.prefilling
        if facts.preempted and self._steps_since_change >= self._calm_steps:
            self._cap = max(1, min(self._cap, math.floor(0.9 * (running + facts.preempted))))
            self._steps_since_change = 0
        elif facts.waiting and self._cap < self._seats and self._steps_since_change >= self._calm_steps:
            self._cap += 1
            self._steps_since_change = 0
        return max(self._cap, running)
