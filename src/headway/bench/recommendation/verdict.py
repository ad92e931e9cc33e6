"""Recommends a bundle: simulates the candidates on a trace, compares them by an objective, and says how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.parallel import spread
from headway.bench.experiment.saturation import Saturation, measure_saturation
from headway.bench.experiment.simulated_runs import (
    Progress,
    mean_bounds,
    run_failure,
    simulate_bundle,
)
from headway.bench.experiment.unloaded import unloaded_seconds
from headway.bench.metrics.agreement import times_of
from headway.bench.metrics.run_metrics import RunMetrics, summarise
from headway.bench.recommendation import candidates as grid
from headway.bench.recommendation.objective import Floats, OperatorObjective, RequestTimes, measured
from headway.bench.recommendation.paired_bootstrap import Differences, differences
from headway.bench.recommendation.recommendation import Candidate, Recommendation, Task, columns_of, may_starve
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.config.wanted_objective import MEASURES
from headway.simulator.arrivals import check_clock
from headway.simulator.outcome import DayOutcome
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

Rows: TypeAlias = npt.NDArray[np.int64]
REQUESTS_MIN = 100
"""Fewer say nothing: a p99 would be the longest of them."""


def recommend(
    task: Task, *, jobs: int | None = None, progress: Progress | None = None, command: str = ""
) -> Recommendation:
    """Simulate the candidates over `jobs` processes (None: all cores), and choose by the objective.

    One candidate is kept unless another is better beyond chance: the incumbent. It is `STEADY` where the objective
    counts no tail, else the default, since the tail of one trace is often a single rush. Beside the plain order that is
    found so, another admission, victim or predictor is tried in the same way. Without an incumbent among the
    candidates, or where it breaks a bound, the best one is chosen.

    Raises:
        UserMistake: the trace has too few requests, or no rate that could be scaled; or a policy of another package
            failed.
        RunFailed: a run failed; the message names the bundle.
    """
    if len(task.trace) < REQUESTS_MIN:
        few = f"{len(task.trace)} request{'' if len(task.trace) == 1 else 's'}"
        raise UserMistake(f"{task.trace.name}: {few} cannot tell policies apart; give {REQUESTS_MIN} or more")
    report = progress or (lambda what, total: nullcontext(lambda: None))
    saturation = None
    traffic = task.trace
    if task.load is not None:
        with report("measuring saturation", 1):
            saturation = measure_saturation(task.trace, lambda day: _fcfs_day(task, day))
        traffic = saturation.at_load(task.trace, task.load)
    with as_mistakes():
        check_clock(traffic)
    bundles = list(task.chosen) or grid.candidates(task.template)
    reference = [] if any(one.label == "fcfs" for one in bundles) else [Bundle("fcfs")]
    alone = unloaded_seconds(traffic, task.replica.rules, task.replica.step_time)

    def lived(bundle: Bundle) -> Candidate:
        try:
            outcome = simulate_bundle(traffic, task.replica, bundle, task.seed)
        except Exception as failure:
            raise run_failure(bundle.label, bundle, failure) from failure
        kv_blocks = task.replica.rules.kv_blocks
        metrics = summarise(traffic, outcome, task.objective.slo, alone, kv_blocks=kv_blocks)
        return _candidate(task.objective, bundle, metrics, served(traffic, outcome))

    def simulated(those: Sequence[Bundle]) -> list[Candidate]:
        with report("simulating", len(those)) as on_done:
            return spread(lived, those, jobs=jobs, on_done=on_done)

    def narrowed(one: Candidate) -> Candidate:
        return _candidate(task.objective, one.bundle, one.metrics, rows_of(one.served, kept))

    found = simulated([*bundles, *reference])
    kept = served_by_some([one.served for one in found])
    arrived = traffic.arrived_seconds[kept]
    found = [narrowed(one) for one in found]
    fcfs = next(one for one in found if one.label == "fcfs")
    bounds = mean_bounds(traffic, task.replica)
    competing = found[: len(bundles)]
    steady = grid.DEFAULT if task.objective.counts_the_tail else grid.STEADY
    judged = replace(_judged(task, arrived, fcfs, competing, saturation, command, steady), bounds=bounds)
    if task.chosen:
        return judged
    plain = judged.verdict
    beside = [narrowed(one) for one in simulated(grid.variants(plain.bundle))]
    again = _judged(task, arrived, fcfs, [plain, *beside], saturation, command, plain.label)
    whole = _judged(task, arrived, fcfs, [*competing, *beside], saturation, command, steady)
    verdict = next(one for one in whole.competing if one.label == again.verdict.label)
    return replace(whole, bounds=bounds, verdict=verdict)


def served(trace: Trace, outcome: DayOutcome) -> RequestTimes:
    """Seconds of each request; one that was not served waited until the end of the day."""
    ttft, e2e = times_of(outcome)
    until_end = outcome.makespan_ps / PS_PER_SECOND - trace.arrived_seconds
    lost = ~np.isfinite(e2e)
    ttft, e2e = (np.where(lost, np.maximum(until_end, 0.0), values) for values in (ttft, e2e))
    more = trace.output_tokens - 1
    tpot = np.where(more > 0, (e2e - ttft) / np.maximum(more, 1), np.nan)
    return RequestTimes(ttft, e2e, e2e / trace.output_tokens, np.where(lost, math.inf, tpot))


def served_by_some(those: Sequence[RequestTimes]) -> Rows:
    """The requests that at least one of them served; all, where none did.

    The others can never fit the replica: they are the same under every policy, and would hide all differences.
    """
    served_rows = ~np.logical_and.reduce([np.isinf(one.tpot_seconds) for one in those])
    return np.flatnonzero(served_rows if served_rows.any() else ~served_rows)


def rows_of(told: RequestTimes, rows: Rows) -> RequestTimes:
    """What became of these requests alone."""
    return RequestTimes(
        told.ttft_seconds[rows], told.e2e_seconds[rows], told.normalised_seconds[rows], told.tpot_seconds[rows]
    )


def _fcfs_day(task: Task, day: Trace) -> DayOutcome:
    return simulate_bundle(day, task.replica, Bundle("fcfs"), task.seed)


def _candidate(objective: OperatorObjective, bundle: Bundle, metrics: RunMetrics, lived: RequestTimes) -> Candidate:
    columns = objective.columns(lived)
    measures = {name: float(measured(name, columns[name][np.newaxis])[0]) for name in MEASURES}
    return Candidate(bundle, metrics, lived, measures)


def _judged(
    task: Task,
    arrived_seconds: Floats,
    fcfs: Candidate,
    found: Sequence[Candidate],
    saturation: Saturation | None,
    command: str,
    incumbent: str,
) -> Recommendation:
    """The verdict: the incumbent (a label) or what is better than it beyond chance; without it the best."""
    objective = task.objective
    competing = [_with_breaks(objective, one, fcfs) for one in found]
    allowed = [one for one in competing if not one.breaks] or [_nearest(objective, competing, fcfs)]
    columns = columns_of(objective, allowed)
    longest = max(one.measures["longest-ttft"] for one in allowed)
    kept = next((number for number, one in enumerate(allowed) if one.label == incumbent), None)
    told = differences(objective, columns, arrived_seconds, longest, task.seed, kept)
    left_out = [number for number, one in enumerate(allowed) if may_starve(objective, one)]
    if kept is None:
        scores = objective.scores(columns)
        steady = [number for number in range(len(allowed)) if task.chosen or number not in left_out]
        at = min(steady or left_out, key=lambda number: scores[number])
    else:
        at = told.challenger(kept, left_out)
    return Recommendation(
        task,
        saturation,
        fcfs,
        tuple(competing),
        allowed[at],
        _of_all(told, allowed, competing),
        command,
        incumbent=None if kept is None else allowed[kept],
    )


def _of_all(told: Differences, allowed: Sequence[Candidate], competing: Sequence[Candidate]) -> Differences:
    """The same for all that compete: one that breaks a bound is not alike, and its distance is not said."""
    place = {one.label: number for number, one in enumerate(allowed)}
    at = [place.get(one.label) for one in competing]
    return told._replace(
        alike=[number is not None and told.alike[number] for number in at],
        low=[None if number is None else told.low[number] for number in at],
        high=[None if number is None else told.high[number] for number in at],
        times_incumbent=[None if number is None else told.times_incumbent[number] for number in at],
    )


def _with_breaks(objective: OperatorObjective, one: Candidate, fcfs: Candidate) -> Candidate:
    broken = tuple(
        name
        for name, bound in objective.bounds.items()
        if one.measures[name] > bound.limit(fcfs.measures[name]) * (1 + 1e-9)
    )
    return Candidate(one.bundle, one.metrics, one.served, one.measures, broken)


def _nearest(objective: OperatorObjective, competing: Sequence[Candidate], fcfs: Candidate) -> Candidate:
    """The one whose worst break of a bound is the least."""

    def excess(one: Candidate) -> float:
        limits = {name: bound.limit(fcfs.measures[name]) for name, bound in objective.bounds.items()}
        return max(one.measures[name] / max(limit, 1e-9) for name, limit in limits.items())

    return min(competing, key=excess)
