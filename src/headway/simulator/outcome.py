"""Outcome of a simulated day: one row a request, a few totals, and the curves to draw."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

NEVER = -1


class StepRecord(NamedTuple):
    """One engine step, for parity tests and for looking inside. Requests are named by their row in the trace."""

    started_ps: int
    duration_ps: int
    decodes: int
    context_tokens: int
    chunks: tuple[tuple[int, int, int], ...]  # (row, tokens computed now, tokens computed or cached before)
    preempted: tuple[int, ...]
    admitted: tuple[int, ...]
    blocks_free: int  # after the step's allocations


class StepObserver(Protocol):
    """Receives every step; this makes the fast engine slow."""

    def on_step(self, step: StepRecord) -> None:
        """Take note of one step, in order."""


class TokenGaps(NamedTuple):
    """Inter-token gaps in arithmetic progression: `tokens` gaps in each of `steps` steps, `growth_ps` longer each."""

    first_ps: int
    growth_ps: int
    steps: int
    tokens: int


class LoadPoints(NamedTuple):
    """Load over a day: requests that wait, requests that run and KV blocks in use, from each time on."""

    at_ps: list[int]
    waiting: list[int]
    running: list[int]
    blocks: list[int]


NO_POINTS = LoadPoints([], [], [], [])


@dataclass(slots=True)
class DayOutcome:
    """Result of simulating one trace. Times are picoseconds since the trace's start; NEVER where it did not happen."""

    arrived_ps: Ints
    admitted_ps: Ints  # first admission
    first_token_ps: Ints
    ended_ps: Ints
    cached_tokens: Ints  # prefix-cache hits at first admission
    preemptions: Ints
    recomputed_tokens: Ints  # KV tokens computed again after preemptions and failures, prefix-cache hits not counted
    refused: dict[int, str]  # row -> reason
    makespan_ps: int
    steps: int
    kv_blocks_peak: int
    failed: dict[int, str] = field(default_factory=dict)  # row -> reason; its replica failed (fleets)
    gaps: Ints = field(default_factory=lambda: np.empty((0, 4), np.int64))  # a `TokenGaps` a line
    curve_ps: list[int] = field(default_factory=list)
    curve_waiting: list[int] = field(default_factory=list)
    curve_running: list[int] = field(default_factory=list)
    curve_blocks: list[int] = field(default_factory=list)
