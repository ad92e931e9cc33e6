"""Recommends a bundle: simulates the candidates on a trace, compares them by an objective, and says how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.comparison import MeanBounds, trace_facts
from headway.bench.experiment.parallel import spread
from headway.bench.experiment.saturation import Saturation, is_closed_loop, measure_saturation
from headway.bench.experiment.simulated_runs import (
    Progress,
    facts_of_replica,
    mean_bounds,
    run_failure,
    simulate_bundle,
    traffic_facts,
)
from headway.bench.experiment.unloaded import unloaded_seconds
from headway.bench.metrics.agreement import times_of
from headway.bench.metrics.run_metrics import RunMetrics, summarise
from headway.bench.recommendation import candidates as grid
from headway.bench.recommendation.objective import MEASURES, Floats, OperatorObjective, RequestTimes, measured
from headway.bench.recommendation.paired_bootstrap import Differences, differences
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.policies.catalog import KINDS
from headway.simulator.arrivals import check_clock
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import Replica
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace
from headway.version import __version__

Rows: TypeAlias = npt.NDArray[np.int64]
SCHEMA = 1
REQUESTS_MIN = 100
"""Fewer say nothing: a p99 would be the longest of them."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked.

    Attributes:
        trace: the traffic, arrivals as recorded.
        replica: what serves it.
        objective: what is wanted.
        template: policies beside the order, where nothing else is tried.
        chosen: the bundles that compete; empty for the grid of `candidates`.
        load: share of saturation; None for the trace's own arrivals.
        seed: of everything random.
    """

    trace: Trace
    replica: Replica
    objective: OperatorObjective
    template: Bundle
    chosen: Sequence[Bundle] = ()
    load: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One bundle and what it made of the day; `measures` by their names in `MEASURES`."""

    bundle: Bundle
    metrics: RunMetrics
    served: RequestTimes
    measures: Mapping[str, float]
    breaks: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Of its bundle."""
        return self.bundle.label


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The verdict and what it rests on.

    Attributes:
        task: what was asked.
        saturation: how the unit of a load was measured; None without a load.
        fcfs: first come first served, the reference of the ratios; it need not compete.
        competing: those that were compared, in order.
        verdict: the one that is recommended.
        told: of each of `competing`, how sure its distance from the best is.
        incumbent: the one that is kept unless another is better beyond chance; None where the best one is taken.
        command: the command line that repeats it.
        bounds: seconds that no policy's means are below on this traffic.
    """

    task: Task
    saturation: Saturation | None
    fcfs: Candidate
    competing: tuple[Candidate, ...]
    verdict: Candidate
    told: Differences
    command: str
    incumbent: Candidate | None = None
    bounds: MeanBounds = field(default_factory=MeanBounds)

    @property
    def alike(self) -> list[str]:
        """Labels of those that do not differ from the best one by more than chance, the verdict left out."""
        pairs = zip(self.competing, self.told.alike, strict=True)
        return [one.label for one, is_alike in pairs if is_alike and one is not self.verdict]

    def is_dominated(self, one: Candidate) -> bool:
        """Whether another one is at least as good in mean and in p99 TTFT, and better in one of them."""
        mine = one.measures["mean-ttft"], one.measures["p99-ttft"]
        theirs = [(other.measures["mean-ttft"], other.measures["p99-ttft"]) for other in self.competing]
        return any(mean <= mine[0] and p99 <= mine[1] and (mean, p99) != mine for mean, p99 in theirs)

    def runner_up(self) -> Candidate | None:
        """The best of the others that keep the bounds; None where there is none."""
        scores = self._scores()
        others = [one for one in self.competing if one is not self.verdict and one.label in scores]
        return min(others, key=lambda one: scores[one.label], default=None)

    def sentences(self) -> list[str]:
        """The verdict with its price, and how sure it is."""
        said = [f"{self.verdict.label}: {self._against_fcfs(self.verdict)} of fcfs."]
        other = self.runner_up()
        if self.incumbent is not None:
            said.append(self._against_incumbent(self.incumbent))
        if other is not None:
            said.append(f"The runner-up is {other.label}: {self._against_fcfs(other)}.")
        alike = self.alike
        if alike:
            listed = ", ".join(alike[:5]) + (f" and {len(alike) - 5} more" if len(alike) > 5 else "")
            said.append(f"On this trace these do not differ from it by more than chance: {listed}.")
        elif len(self.competing) > 1:
            said.append(f"It differs from all {len(self.competing) - 1} others by more than chance.")
        if self.told.is_short:
            said.append("The trace is short beside its longest waits, so a single rush may decide: give a longer one.")
        if is_closed_loop(self.task.trace):
            said.append(
                "Its sessions wait for their answers: on such traces a verdict held less well on the next window."
            )
        if self.verdict.breaks:
            said.append(f"No candidate keeps every bound; this one breaks {', '.join(self.verdict.breaks)} by least.")
        return said

    def to_json(self) -> dict[str, Any]:
        """The object that docs/recommend.md describes."""
        trace, verdict = self.task.trace, self.verdict.bundle
        return {
            "schema": SCHEMA,
            "headway": __version__,
            "command": self.command,
            "trace": trace_facts(trace) | traffic_facts(trace),
            "replica": facts_of_replica(self.task.replica),
            "load": self.task.load,
            "saturation": None if self.saturation is None else self.saturation.to_json(),
            "lower_bounds": {
                "mean_e2e_seconds": self.bounds.e2e_seconds,
                "mean_ttft_seconds": self.bounds.ttft_seconds,
            },
            "objective": self.task.objective.name,
            "objective_as_read": self.task.objective.to_json(),
            "verdict": {"label": verdict.label}
            | {kind: getattr(verdict, kind) for kind in KINDS}
            | {"options": {kind: dict(given) for kind, given in verdict.options.items()}},
            "sentences": self.sentences(),
            "alike": self.alike,
            "incumbent": None if self.incumbent is None else self.incumbent.label,
            "stretch_seconds": self.told.stretch_seconds,
            "is_short": self.told.is_short,
            "candidates": [self._of_candidate(number) for number in range(len(self.competing))],
            "config": {"gateway": grid.gateway_text(verdict), "vllm": grid.vllm_text(verdict)},
        }

    def _of_candidate(self, number: int) -> dict[str, Any]:
        one, told = self.competing[number], self.told
        head = {
            "label": one.label,
            "bundle": one.bundle.to_json(),
            "dominated": self.is_dominated(one),
            "breaks": list(one.breaks),
            "alike": told.alike[number],
            "behind_best": {"low": told.low[number], "high": told.high[number]},
            "times_incumbent": told.times_incumbent[number],
            "measures": dict(one.measures),
        }
        return head | one.metrics.to_json()

    def _against_incumbent(self, incumbent: Candidate) -> str:
        scores = self._scores()
        best = min(scores, key=scores.__getitem__)
        if self.verdict is not incumbent:
            times = self.told.times_incumbent[self.competing.index(self.verdict)]
            distance = f"{times or 1.0:.3g} times as far from the best as {incumbent.label}"
            return f"In 95 of 100 draws of this trace it is at most {distance}."
        if best == incumbent.label:
            return "It did best on this trace."
        if any(one.label == best and _may_starve(self.task.objective, one) for one in self.competing):
            return f"{best} did best on this trace, but its waits have no bound, so {incumbent.label} is kept."
        why = "the default" if incumbent.label == grid.DEFAULT else "an order that held on other traces"
        return f"{best} did best on this trace, but not beyond chance, so {incumbent.label} is kept, {why}."

    def _scores(self) -> dict[str, float]:
        kept = [one for one in self.competing if one.breaks == self.verdict.breaks]
        found = self.task.objective.scores(_columns(self.task.objective, kept))
        return {one.label: float(score) for one, score in zip(kept, found, strict=True)}

    def _against_fcfs(self, one: Candidate) -> str:
        named = {"mean TTFT": "mean-ttft", "p99": "p99-ttft", "longest wait": "longest-ttft"}
        return ", ".join(f"{said} {_ratio(one.measures[key], self.fcfs.measures[key])}" for said, key in named.items())


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
        raise UserMistake(f"{task.trace.name}: {len(task.trace)} requests say too little; give {REQUESTS_MIN} or more")
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
    columns = _columns(objective, allowed)
    longest = max(one.measures["longest-ttft"] for one in allowed)
    kept = next((number for number, one in enumerate(allowed) if one.label == incumbent), None)
    told = differences(objective, columns, arrived_seconds, longest, task.seed, kept)
    left_out = [number for number, one in enumerate(allowed) if _may_starve(objective, one)]
    at = int(objective.scores(columns).argmin()) if kept is None else told.challenger(kept, left_out)
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


def _may_starve(objective: OperatorObjective, one: Candidate) -> bool:
    """Whether a tail is wanted, and the order has no bound on a wait."""
    return objective.rests_on_the_tail and one.bundle.ordering in grid.UNBOUNDED


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


def _columns(objective: OperatorObjective, those: Sequence[Candidate]) -> dict[str, Any]:
    each = [objective.columns(one.served) for one in those]
    return {name: np.array([columns[name] for columns in each]) for name in MEASURES}


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


def _ratio(value: float, reference: float) -> str:
    return f"{value / reference:.3g}×" if reference > 0 else ("the same" if value == reference else "more")
