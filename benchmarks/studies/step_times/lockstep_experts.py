"""Data-parallel ranks that share a mixture of experts: every step of one waits for the step of the other.

Each of the ranks attends to its own requests with all of the dense weights; the experts are parted over the ranks and
see everybody's tokens, which are gathered before and scattered after in every layer. A rank without requests runs an
empty batch. So a step takes the slowest rank's dense part, then experts and collectives over all tokens.

Only `recorded_runs.py` needs it. One thread a rank drives the reference engine, and they meet in the
step time; what comes out does not depend on how threads are scheduled, as nobody goes on before all have met.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from headway.bench.experiment.bundles import Bundle
from headway.bench.metrics.agreement import times_of
from headway.simulator.outcome import DayOutcome, StepRecord
from headway.simulator.reference import simulate_reference
from headway.simulator.replica import Replica
from headway.simulator.roofline import Roofline, _experts_touched, _interpolated
from headway.simulator.scaled_step_time import Scalars, ScaledStepTime
from headway.simulator.step_time import Chunk
from headway.simulator.trace import Trace

PS_PER_US = 1e6
IDLE = (1, 0, (), 1)  # an empty batch is one token
KEEP_TOGETHER_TOKENS = 200  # of a request that keeps every rank busy until the first real ones have come


class DensePart(Roofline):
    """Everything of a step but the experts."""

    def _products_us(self, tokens: int) -> float:
        weights = self._model.attention_parameters
        return self._product_us(self._gemm, weights, weights * tokens, calls=2)

    def experts_us(self, tokens: int, ranks: int) -> float:
        """Experts and collectives of one layer: gathering and scattering move what one all-reduce of all would."""
        model = self._model
        assert model.experts is not None
        touched = _experts_touched(model.experts.count, model.experts.active, tokens) / ranks
        visited = model.mlp_parameters * model.experts.active * tokens / ranks
        sizes, times = self._hardware.all_reduce[ranks]
        moved = _interpolated(sizes, times, 2.0 * tokens * model.hidden)
        return moved + self._product_us(self._hardware.experts, touched * model.mlp_parameters, visited, calls=1)


class Meeting:
    """Where the ranks' steps meet."""

    def __init__(self, replica: Replica, scalars: Scalars, ranks: int) -> None:
        self._part = DensePart(replica.hardware, replica.model)
        self._dense = ScaledStepTime(self._part, scalars)
        self._scalars = scalars
        self._layers = replica.model.layers
        self._changed = threading.Condition()
        self._steps: dict[int, tuple[int, int, Sequence[Chunk], int]] = {}
        self._answers: dict[int, int] = {}
        self._present = set(range(ranks))
        self._ranks = ranks

    def duration(self, rank: int, step: tuple[int, int, Sequence[Chunk], int]) -> int:
        """Wait for the others' steps; how long they all take together, picoseconds."""
        with self._changed:
            self._steps[rank] = step
            self._answer_if_complete()
            self._changed.wait_for(lambda: rank in self._answers)
            return self._answers.pop(rank)

    def leave(self, rank: int) -> None:
        """The rank's day is over; it runs empty batches from now on."""
        with self._changed:
            self._present.discard(rank)
            self._answer_if_complete()

    def _answer_if_complete(self) -> None:
        if not self._present or self._steps.keys() < self._present:
            return
        steps = [self._steps.get(rank, IDLE) for rank in range(self._ranks)]
        dense = max(self._dense.mixed_step(*step) for step in steps)
        tokens = sum(step[0] + sum(new for new, _ in step[2]) for step in steps)
        factor = self._scalars.step_scale * (self._scalars.prompt_step_scale if any(step[2] for step in steps) else 1)
        experts = round(self._layers * self._part.experts_us(tokens, self._ranks) * PS_PER_US * factor)
        self._answers = dict.fromkeys(self._steps, dense + experts)
        self._steps = {}
        self._changed.notify_all()


class RankStepTime:
    """`StepTime` of one rank, as the reference engine asks for it: step by step."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting, self._rank = meeting, rank

    def decode_step(self, requests: int) -> tuple[int, int]:
        raise NotImplementedError("ranks in lock step cannot skip over steps")

    def mixed_step(self, decodes: int, context_tokens: int, chunks: Sequence[Chunk], sampled: int) -> int:
        return self._meeting.duration(self._rank, (decodes, context_tokens, chunks, sampled))


class Starts:
    """When each step of a rank began."""

    def __init__(self) -> None:
        self.started_ps: list[int] = []

    def on_step(self, step: StepRecord) -> None:
        self.started_ps.append(step.started_ps)


def replay_in_lockstep(
    trace: Trace, replica: Replica, scalars: Scalars, split: Sequence[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(TTFT, end to end) of each request, `split` saying which rank serves it."""
    ranks = max(split) + 1
    meeting = Meeting(replica, scalars, ranks)
    rows = [np.flatnonzero(np.array(split) == rank) for rank in range(ranks)]
    outcomes: dict[int, DayOutcome] = {}
    starts = [Starts() for _ in range(ranks)]

    def serve(rank: int) -> None:
        try:
            policies = Bundle("fcfs").build(costs=replica.costs, seed=0, truth=lambda _: 1)
            outcomes[rank] = simulate_reference(
                _with_opener(trace, rows[rank]),
                replica.rules,
                RankStepTime(meeting, rank),
                policies,
                observer=starts[rank],
            )
        finally:
            meeting.leave(rank)

    threads = [threading.Thread(target=serve, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shared = min(len(one.started_ps) for one in starts)
    if any(one.started_ps[:shared] != starts[0].started_ps[:shared] for one in starts):
        raise RuntimeError("a rank ran out of requests in between, so that its steps are not those of the others")
    ttft, e2e = np.full(len(trace), np.nan), np.full(len(trace), np.nan)
    for rank, outcome in outcomes.items():
        first, last = times_of(outcome)
        ttft[rows[rank]], e2e[rows[rank]] = first[1:], last[1:]
    return ttft, e2e


def _with_opener(trace: Trace, rows: npt.NDArray[np.int64]) -> Trace:
    """The rank's requests behind a tiny one at 0 that keeps it in step until they come."""
    assert trace.prefix_ids is not None
    output = np.concatenate([[KEEP_TOGETHER_TOKENS], trace.output_tokens[rows]])
    return replace(
        trace,
        arrived_seconds=np.concatenate([[0.0], trace.arrived_seconds[rows]]),
        prompt_tokens=np.concatenate([[1], trace.prompt_tokens[rows]]),
        output_tokens=output,
        max_output_tokens=output,
        prefix_ids=[[], *(trace.prefix_ids[row] for row in rows)],
    )
