"""Hindsight optimum of small instances of the discrete model: an integer program, solved by HiGHS.

x_{i,t} = 1 iff request i starts at t; each starts once; no step holds more than the memory; the sum of completions is
least (arXiv 2606.22327, section 2). It is the best schedule *without kills*. With all lengths known kills cannot help:
a request that is killed could as well not have started. The starts are replayed by `discrete.replay`, which confirms
that they are feasible and what they cost. Needs `pip install headway[opt]`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from headway.bounds.discrete import Attempt, Instance, lower_bound, replay, serve
from headway.bounds.reference_policies import fcfs_peak, mc_sf, svf

VARIABLES_MOST = 200_000
"""Starts to choose from; beyond that the program is too large for memory and time."""

Progress: TypeAlias = Callable[[float, float], None]
"""Called now and then with the best total latency so far and the bound so far."""

_SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True, slots=True)
class Optimum:
    """Result of the search for an optimum.

    Attributes:
        starts: by request, of the best schedule found.
        total_latency: of that schedule, as replayed.
        bound: no schedule's total latency is below.
    """

    starts: tuple[int, ...]
    total_latency: int
    bound: int

    @property
    def is_proven(self) -> bool:
        """Whether nothing better exists."""
        return self.bound == self.total_latency

    @property
    def gap(self) -> float:
        """How much lower the optimum could still be, as a share of the schedule's total; 0 when proven."""
        return (self.total_latency - self.bound) / self.total_latency if self.total_latency else 0.0


class TooLarge(ValueError):
    """The instance has more starts to choose from than the program may have."""


def optimum(instance: Instance, *, time_limit_seconds: float = 60.0, progress: Progress | None = None) -> Optimum:
    """The schedule with the least total latency, or the best one found in time with what is known of the least.

    Args:
        instance: tens of requests, memory of tens of tokens.
        time_limit_seconds: the search stops then; the result says how far it got.
        progress: called now and then with the state of the search.

    Raises:
        TooLarge: more than `VARIABLES_MOST` starts would have to be considered.
        ImportError: highspy is not installed.
    """
    bound = lower_bound(instance)
    _check_size(instance, bound)
    known = _best_known(instance)
    cost = _cost(instance, known)
    if cost == bound:
        return Optimum(known, cost, bound)
    columns = _Columns.of(instance, cost)
    solver = _solver(instance, columns, integer=True)
    solver.setOptionValue("time_limit", time_limit_seconds)
    solver.setOptionValue("mip_abs_gap", 0.99)  # totals are whole steps
    solver.setOptionValue("mip_rel_gap", 0.0)
    _start_from(solver, columns.values_of(known))
    if progress is not None:
        _report_to(solver, progress, constant=_constant(instance))
    solver.run()
    info = solver.getInfo()
    starts = columns.starts(solver.getSolution().col_value) if info.primal_solution_status == 2 else known
    if _cost(instance, starts) > cost:  # stopped before it came back to what it started from
        starts = known
    cost = _cost(instance, starts)
    if math.isfinite(info.mip_dual_bound):
        bound = max(bound, math.ceil(info.mip_dual_bound + _constant(instance) - 1e-4))
    return Optimum(starts, cost, min(bound, cost))


def relaxation(instance: Instance) -> float:
    """Least total latency when requests may start in fractions (the linear program): a lower bound, in steps.

    Raises:
        TooLarge, ImportError: as `optimum`.
    """
    _check_size(instance, lower_bound(instance))
    columns = _Columns.of(instance, _cost(instance, _best_known(instance)))
    solver = _solver(instance, columns, integer=False)
    solver.run()
    return float(solver.getInfo().objective_function_value) + _constant(instance)


def to_terminal(best: float, bound: float) -> None:
    """A `Progress` that writes one line over itself on stderr, where that is a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        gap = (best - bound) / best if best else 0.0
        sys.stderr.write(f"\rbest {best:,.0f} steps, at least {bound:,.0f} (gap {gap:.1%}) \x1b[K")
        sys.stderr.flush()


def _best_known(instance: Instance) -> tuple[int, ...]:
    """Starts of the best schedule that simple policies find."""
    tried = [serve(instance, policy(instance)) for policy in (svf, mc_sf, fcfs_peak)]
    best = min(tried, key=lambda attempts: replay(instance, attempts).total_latency)
    return tuple(attempt.started for attempt in sorted(best))


def _cost(instance: Instance, starts: Sequence[int]) -> int:
    attempts = [Attempt(i, start, instance.requests[i].output) for i, start in enumerate(starts)]
    return replay(instance, attempts).total_latency


def _constant(instance: Instance) -> int:
    """Total latency less the sum of starts."""
    return sum(request.output - request.arrived for request in instance.requests)


def _slack(instance: Instance, cost: int) -> int:
    """Most steps that a request can wait in a schedule of this total latency."""
    return cost - sum(request.output for request in instance.requests)


def _check_size(instance: Instance, cost: int) -> None:
    starts = _slack(instance, cost) + 1
    if len(instance.requests) * starts > VARIABLES_MOST:
        raise TooLarge(
            f"{len(instance.requests)} requests that may each start at any of {starts:,} steps are more than the "
            f"{VARIABLES_MOST:,} starts an integer program can take; give fewer or shorter requests"
        )


@dataclass(frozen=True, slots=True)
class _Columns:
    """The starts that come into question: column c starts request `place[c]` at step `when[c]`."""

    place: np.ndarray[tuple[int], np.dtype[np.int64]]
    when: np.ndarray[tuple[int], np.dtype[np.int64]]
    requests: int

    @classmethod
    def of(cls, instance: Instance, cost: int) -> _Columns:
        """A request that waits longer than a known schedule's waits all together is in no better schedule."""
        _check_size(instance, cost)
        count, slack = len(instance.requests), _slack(instance, cost)
        place = np.repeat(np.arange(count), slack + 1)
        arrived = np.array([request.arrived for request in instance.requests], np.int64)
        return cls(place, arrived[place] + np.tile(np.arange(slack + 1), count), count)

    def values_of(self, starts: Sequence[int]) -> list[float]:
        """The solution with these starts, a value a column."""
        return [float(hit) for hit in self.when == np.array(starts)[self.place]]

    def starts(self, values: Sequence[float]) -> tuple[int, ...]:
        """Starts by request of a whole solution."""
        chosen = np.flatnonzero(np.array(values) > 0.5)
        starts = np.zeros(self.requests, np.int64)
        starts[self.place[chosen]] = self.when[chosen]
        return tuple(starts.tolist())


def _solver(instance: Instance, columns: _Columns, *, integer: bool) -> Any:
    """The program, loaded into HiGHS."""
    import highspy

    count = columns.requests
    outputs = np.array([request.output for request in instance.requests], np.int64)
    prompts = np.array([request.prompt for request in instance.requests], np.int64)
    lengths = outputs[columns.place]
    begins = np.concatenate(([0], np.cumsum(lengths + 1)))
    rows = np.empty(begins[-1], np.int32)
    values = np.empty(begins[-1])
    rows[begins[:-1]], values[begins[:-1]] = columns.place, 1.0
    in_memory = np.ones(begins[-1], bool)
    in_memory[begins[:-1]] = False
    step = np.arange(begins[-1]) - np.repeat(begins[:-1], lengths + 1)  # j = 1 … o behind each column's first entry
    owner = np.repeat(columns.place, lengths + 1)
    started = np.repeat(columns.when, lengths + 1)
    rows[in_memory] = (count + started + step - 1)[in_memory]
    values[in_memory] = (prompts[owner] + step)[in_memory]
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(columns.place), int(rows.max()) + 1
    steps = program.num_row_ - count
    program.col_cost_ = columns.when.astype(float)
    program.col_lower_, program.col_upper_ = np.zeros(program.num_col_), np.ones(program.num_col_)
    program.row_lower_ = np.concatenate((np.ones(count), np.full(steps, -highspy.kHighsInf)))
    program.row_upper_ = np.concatenate((np.ones(count), np.full(steps, float(instance.memory))))
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_, program.a_matrix_.index_, program.a_matrix_.value_ = begins, rows, values
    if integer:
        program.integrality_ = [highspy.HighsVarType.kInteger] * program.num_col_
    solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]  # its constructor has no annotations
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("random_seed", 0)
    solver.passModel(program)
    return solver


def _start_from(solver: Any, values: list[float]) -> None:
    import highspy

    solution = highspy.HighsSolution()
    solution.col_value = values
    solver.setSolution(solution)


def _report_to(solver: Any, progress: Progress, *, constant: int) -> None:
    last = 0.0

    def on_log(event: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_REPORTS:
            last = now
            progress(event.data_out.mip_primal_bound + constant, event.data_out.mip_dual_bound + constant)

    solver.cbMipInterrupt.subscribe(on_log)
