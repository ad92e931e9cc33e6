"""A recommendation: what was asked, the candidates, the verdict and how sure it is; in sentences and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.comparison import MeanBounds, trace_facts
from headway.bench.experiment.saturation import Saturation, is_closed_loop
from headway.bench.experiment.simulated_runs import facts_of_replica, traffic_facts
from headway.bench.metrics.run_metrics import RunMetrics
from headway.bench.recommendation import candidates as grid
from headway.bench.recommendation.objective import OperatorObjective, RequestTimes, value_text
from headway.bench.recommendation.paired_bootstrap import Differences
from headway.config.wanted_objective import MEASURES, TAILS
from headway.policies.catalog import KINDS
from headway.simulator.replica import Replica
from headway.simulator.trace import Trace
from headway.twin.order_prior import UNBOUNDED
from headway.version import __version__

SCHEMA = 1


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

    def is_allowed(self, one: Candidate) -> bool:
        """Whether it keeps every bound of the objective; where no candidate does, all are allowed."""
        return not one.breaks or bool(self.verdict.breaks)

    def is_dominated(self, one: Candidate) -> bool:
        """Whether an allowed one is at least as good in mean and in p99 TTFT, and better in one of them."""
        mine = one.measures["mean-ttft"], one.measures["p99-ttft"]
        allowed = [other.measures for other in self.competing if self.is_allowed(other)]
        theirs = [(measures["mean-ttft"], measures["p99-ttft"]) for measures in allowed]
        return any(mean <= mine[0] and p99 <= mine[1] and (mean, p99) != mine for mean, p99 in theirs)

    def runner_up(self) -> Candidate | None:
        """The best of the others within the bounds; None where there is none."""
        scores = self._scores()
        others = [one for one in self.competing if one is not self.verdict and one.label in scores]
        return min(others, key=lambda one: scores[one.label], default=None)

    def sentences(self) -> list[str]:
        """The verdict with its price, and how sure it is."""
        said = [f"{self.verdict.label}: {self._against_fcfs(self.verdict)} of fcfs."]
        said += self._on_bounds()
        other = self.runner_up()
        if self.incumbent is not None:
            said.append(self._against_incumbent(self.incumbent))
        if other is not None:
            said.append(f"The runner-up is {other.label}: {self._against_fcfs(other)}.")
        said += self._how_sure()
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

    def _on_bounds(self) -> list[str]:
        """What the verdict has of each measure that is bounded, and whether its order bounds a wait at all."""
        bounds, measures = self.task.objective.bounds, self.verdict.measures
        if not bounds:
            return []
        each = []
        for name, bound in bounds.items():
            times = "" if bound.times_fcfs is None else f" ({bound.times_fcfs:g} times fcfs)"
            most = bound.limit(self.fcfs.measures[name])
            each.append(f"{name} {value_text(name, measures[name])} of at most {value_text(name, most)}{times}")
        said = [f"Within your bounds: {', '.join(each)}."] if not self.verdict.breaks else []
        waits = [name for name in bounds if name in TAILS]
        order = self.verdict.bundle.ordering
        if waits and order in UNBOUNDED:
            said.append(f"{order} sets no bound on a wait: on a heavier day it may break {' and '.join(waits)}.")
        return said

    def _against_incumbent(self, incumbent: Candidate) -> str:
        scores = self._scores()
        best = min(scores, key=scores.__getitem__)
        if self.verdict is not incumbent:
            times = self.told.times_incumbent[self.competing.index(self.verdict)]
            distance = f"{times or 1.0:.3g} times as far from the best as {incumbent.label}"
            return f"In 95 of 100 draws of this trace it is at most {distance}."
        if best == incumbent.label:
            return "It did best on this trace."
        if any(one.label == best and may_starve(self.task.objective, one) for one in self.competing):
            return f"{best} did best on this trace, but its waits have no bound, so {incumbent.label} is kept."
        why = "the default" if incumbent.label == grid.DEFAULT else "an order that held on other traces"
        return f"{best} did best on this trace, but not beyond chance, so {incumbent.label} is kept, {why}."

    def _how_sure(self) -> list[str]:
        alike, scores = self.alike, self._scores()
        best, from_what = min(scores, key=scores.__getitem__), "it"
        if not self.told.alike[self.competing.index(self.verdict)]:  # the best one may not be recommended
            from_what = f"{best}, the best one,"
            alike = [label for label in alike if label != best]
        if alike:
            listed = ", ".join(alike[:5]) + (f" and {len(alike) - 5} more" if len(alike) > 5 else "")
            return [f"On this trace these do not differ from {from_what} by more than chance: {listed}."]
        if len(scores) == 1 or from_what != "it":
            return []
        of_whom = "the other" if len(scores) == 2 else f"all {len(scores) - 1} others"
        where = "" if len(scores) == len(self.competing) else " within the bounds"
        return [f"It differs from {of_whom}{where} by more than chance."]

    def _scores(self) -> dict[str, float]:
        """By label, of those that were compared: of all within the bounds, or of the verdict alone."""
        kept = [one for one in self.competing if not one.breaks] or [self.verdict]
        found = self.task.objective.scores(columns_of(self.task.objective, kept))
        return {one.label: float(score) for one, score in zip(kept, found, strict=True)}

    def _against_fcfs(self, one: Candidate) -> str:
        named = {"mean TTFT": "mean-ttft", "p99": "p99-ttft", "longest wait": "longest-ttft"}
        return ", ".join(f"{said} {_ratio(one.measures[key], self.fcfs.measures[key])}" for said, key in named.items())


def may_starve(objective: OperatorObjective, one: Candidate) -> bool:
    """Whether a tail is wanted, and the order has no bound on a wait."""
    return objective.rests_on_the_tail and one.bundle.ordering in UNBOUNDED


def columns_of(objective: OperatorObjective, those: Sequence[Candidate]) -> dict[str, Any]:
    """By measure, candidates × requests."""
    each = [objective.columns(one.served) for one in those]
    return {name: np.array([columns[name] for columns in each]) for name in MEASURES}


def _ratio(value: float, reference: float) -> str:
    return f"{value / reference:.3g}×" if reference > 0 else ("the same" if value == reference else "more")
