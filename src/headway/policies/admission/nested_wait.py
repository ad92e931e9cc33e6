"""Nested wait: requests are admitted at the pace that memory sustains, by counts of outputs of each length."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from headway.domain.event import Completed, Event
from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import RequestView
from headway.policies.contracts import Need

_BOUNDARIES = (0, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192)
"""Output tokens at which a request goes over to the next segment."""
_SEGMENTS = range(len(_BOUNDARIES))
_LEAST_REQUESTS = 20  # completions that displace what stands in for them
_PRIOR_TOKENS = 256  # of prompt and of output, of what stands in


class NestedWait:
    """Admit the head while no segment of output lengths holds more than its threshold; no length is predicted.

    Idea: running requests pass through segments of growing output; short ones leave early, long ones go on. At the
        highest steady rate of admission that memory sustains each segment holds so many KV tokens. Holding the head
        while a segment has more than that keeps the batch near that mix, and memory from filling up later.
    Source: Nested WAIT, arXiv 2504.11320, as far as we could read it: thresholds of nested segments from a fluid model,
        no prediction, and a buffer against chance that grows with the logarithm of the chance allowed. The constants
        are ours: boundaries at 64 tokens and each power of two up to 8,192; sums over the last `window_requests`
        completions; the rate r per step solves r·m + √(2·ln(1/`overflow_chance`)·r·v) = memory, m and v being sums of a
        request's tokens and of their squares over its steps (Poisson admissions, normal tail); a threshold is the same
        expression for its segment. Deviations: an engine decodes all that runs, so only the head can be held, and a
        full later segment holds it too. Segments are weighed in tokens, not counted, since prompts differ. Until 20
        have ended, requests of 256 prompt and 256 output tokens stand in.
    Reads: prompt and produced tokens of the running requests and of the head, completions, total memory. No estimate.
    Wins when: memory is the bottleneck, lengths cannot be told beforehand, and traffic is steady.
    Loses when: goodput counts. At the tightest memory and load 1.1 of docs/results/admission.md it recomputes at most
        0.98 % of tokens, greedy admission up to 3.66 %; but its goodput is at best equal, and at worst 0.05 against
        0.39. It spreads out bursts though memory may be free, and holds a small head where a segment is full.
    """

    NEEDS = frozenset([Need.STEPS, Need.MEMORY])
    hears = (Completed,)

    def __init__(self, *, overflow_chance: float = 0.01, window_requests: int = 1_000) -> None:
        if not 0 < overflow_chance < 1:
            raise ValueError(f"overflow_chance must be between 0 and 1, got {overflow_chance:g}")
        if window_requests < _LEAST_REQUESTS:
            raise ValueError(f"window_requests must be at least {_LEAST_REQUESTS}, got {window_requests}")
        self._spread = 2 * math.log(1 / overflow_chance)
        self._window_requests = window_requests
        self._window: deque[_TokenSteps] = deque()
        self._tokens = [0] * len(_BOUNDARIES)
        self._squares = [0] * len(_BOUNDARIES)
        self._stand_ins = _LEAST_REQUESTS  # of the window, at its end
        self._kept: dict[int, _Held] = {}  # by id() of the batch, one batch a replica
        for _ in range(_LEAST_REQUESTS):
            self._learn(token_steps(_PRIOR_TOKENS, _PRIOR_TOKENS))

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        """0 if each segment is within its threshold; else the steps until a request can reach its next segment."""
        if batch.size == 0:
            return 0
        kept = self._kept.get(id(batch))
        if kept is None or kept.batch is not batch or kept.version != batch.version:
            room = memory.blocks_total * memory.block_tokens
            kept = self._kept[id(batch)] = _Held(batch, batch.version, self.thresholds(room))
        held = [0] * len(_BOUNDARIES)
        to_next = 1 << 62
        for running in batch.running():
            segment = segment_of(running.produced_tokens)
            held[segment] += running.prompt_tokens + running.produced_tokens
            if segment + 1 < len(_BOUNDARIES):
                to_next = min(to_next, _BOUNDARIES[segment + 1] - running.produced_tokens)
        own = segment_of(request.produced_tokens)
        if held[own]:  # into an empty segment any request may go, however large
            held[own] += request.prompt_tokens + request.produced_tokens
        return 0 if all(held[n] <= kept.thresholds[n] or not held[n] for n in _SEGMENTS) else to_next

    def observe(self, event: Event) -> None:
        """Add a completed request to the sums, and take the oldest out."""
        if not isinstance(event, Completed):
            return
        self._learn(token_steps(event.request.prompt_tokens, event.output_tokens))
        if self._stand_ins or len(self._window) > self._window_requests:
            self._stand_ins = max(0, self._stand_ins - 1)
            self._add(self._window.popleft(), -1)

    def rate(self, memory_tokens: int) -> float:
        """Admissions per step that so much memory sustains, with the chance of overflow allowed."""
        count = len(self._window)
        mean, square = sum(self._tokens) / count, sum(self._squares) / count
        width = math.sqrt(self._spread * square)
        return float(((math.sqrt(width**2 + 4 * mean * memory_tokens) - width) / (2 * mean)) ** 2)

    def thresholds(self, memory_tokens: int) -> list[float]:
        """KV tokens that each segment may hold."""
        rate = self.rate(memory_tokens) / len(self._window)
        return [
            rate * tokens + math.sqrt(self._spread * rate * squares)
            for tokens, squares in zip(self._tokens, self._squares, strict=True)
        ]

    def _learn(self, steps: _TokenSteps) -> None:
        self._window.append(steps)
        self._add(steps, 1)

    def _add(self, steps: _TokenSteps, sign: int) -> None:
        for n in _SEGMENTS:
            self._tokens[n] += sign * steps.tokens[n]
            self._squares[n] += sign * steps.squares[n]


class _TokenSteps(NamedTuple):
    """KV tokens of one request and their squares, each summed over its steps in each segment."""

    tokens: Sequence[int]
    squares: Sequence[int]


class _Held(NamedTuple):
    """The thresholds of one version of a batch: while it stays a refusal has to stand."""

    batch: BatchView  # kept, so that its id() stays its own
    version: int
    thresholds: Sequence[float]


def segment_of(produced_tokens: int) -> int:
    """The number of the segment that a request with so much output is in."""
    return bisect_right(_BOUNDARIES, produced_tokens) - 1


def token_steps(prompt_tokens: int, output_tokens: int) -> _TokenSteps:
    """What a request holds, step by step from its prompt alone to one token before its end, by segment."""
    ends = [min(output_tokens, end) for end in (*_BOUNDARIES[1:], output_tokens)]
    sizes = [
        (prompt_tokens + min(start, end), prompt_tokens + end) for start, end in zip(_BOUNDARIES, ends, strict=True)
    ]
    return _TokenSteps(
        [(high * (high - 1) - low * (low - 1)) // 2 for low, high in sizes],
        [_squares_below(high) - _squares_below(low) for low, high in sizes],
    )


def _squares_below(number: int) -> int:
    """0² + 1² + … + (number - 1)²."""
    return (number - 1) * number * (2 * number - 1) // 6
