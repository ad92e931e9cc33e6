"""Self-tuned limits: the long-prefill threshold and the cap on running requests, computed for each step.

Pure: facts of a step in, limits for that step out. The vLLM plug-in and both simulated engines set what it says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from headway.domain.replica_view import MemoryView
from headway.domain.request import RequestView, uncached_prefill_tokens

Tuning: TypeAlias = Literal["off", "self-tuned"]

_SHARE = 0.5  # of the tokens that decodes leave of a step, at most so many are kept for the next request
_CALM_STEPS = 50  # between two changes of the cap
_LOST = 0.25  # tokens thrown away by preemptions, of those computed, from which on the cap falls


class StepFacts(NamedTuple):
    """What the limits depend on, before a step.

    Attributes:
        token_budget: tokens of the step.
        running: requests that run, whatever they compute.
        prefill_left: for each prefilling request, the tokens it has left.
        head: the next request in the order; None if none waits. It is read where a request prefills.
        memory: KV blocks.
        waiting: requests that wait.
    """

    token_budget: int
    running: int
    prefill_left: Sequence[int]
    head: RequestView | None
    memory: MemoryView
    waiting: int


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
        self._preempted = 0  # in the last step
        self._lost_tokens = 0  # by these
        self._lost = self._computed = 0.0  # decayed sums of tokens

    def before_step(self, facts: StepFacts) -> StepLimits:
        """The limits for the step with these facts."""
        cap = self._active_cap(facts)
        limits = StepLimits(self._threshold(facts, cap), cap)
        self._preempted = 0
        return limits

    def preempted(self, lost_tokens: int) -> None:
        """The step that is composed preempts a request that had computed so many tokens."""
        self._preempted += 1
        self._lost_tokens += lost_tokens

    def after_step(self, tokens: int, steps: int = 1) -> None:
        """A step that computes so many tokens was composed, or several with as many each and no preemption between."""
        keep = 1 - 1 / _CALM_STEPS
        for _ in range(steps):  # one by one, since k steps at once have to round as k single ones do
            self._lost = self._lost * keep + self._lost_tokens
            self._computed = self._computed * keep + tokens
            self._lost_tokens = 0
        self._steps_since_change += steps

    def steps_unchanged(self, waiting: int) -> int | None:
        """For how many further steps the cap stands, if nothing prefills and none is preempted; None: for ever."""
        if not waiting or self._cap >= self._seats:
            return None
        return max(0, _CALM_STEPS - 1 - self._steps_since_change)

    def _threshold(self, facts: StepFacts, cap: int) -> int:
        left = max(0, facts.token_budget - facts.running + len(facts.prefill_left))
        next_tokens = _short_tokens(facts)
        room = left - min(next_tokens, int(left * _SHARE))
        if next_tokens == 0 or facts.running >= cap or sum(facts.prefill_left) <= room:
            return self._own_threshold
        threshold = max(1, _level(facts.prefill_left, room))
        return min(threshold, self._own_threshold) if self._own_threshold else threshold

    def _active_cap(self, facts: StepFacts) -> int:
        if self._steps_since_change >= _CALM_STEPS:
            if self._preempted and self._lost > _LOST * self._computed:
                self._cap = max(1, min(self._cap, math.floor(0.9 * (facts.running + self._preempted))))
                self._steps_since_change = 0
            elif facts.waiting and self._cap < self._seats:
                self._cap += 1
                self._steps_since_change = 0
        return max(self._cap, facts.running)


def _short_tokens(facts: StepFacts) -> int:
    """Tokens that the next request has to compute; 0 unless that is at most half a step and its blocks are free."""
    if facts.head is None or not facts.prefill_left:
        return 0
    tokens = uncached_prefill_tokens(facts.head)
    fits = -(-tokens // facts.memory.block_tokens) <= facts.memory.blocks_free
    return tokens if fits and tokens <= facts.token_budget // 2 else 0


def _level(wanted: Sequence[int], room: int) -> int:
    """Water-filling: the largest whole level so that the sum of min(wanted, level) is within `room`."""
    rising = sorted(wanted)
    for index, tokens in enumerate(rising):
        sharing = len(rising) - index
        if tokens * sharing > room:
            return room // sharing
        room -= tokens
    return rising[-1]
