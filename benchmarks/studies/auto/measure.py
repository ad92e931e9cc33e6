"""Days of `ordering = "auto"`: under the twin, under each fixed bundle, and under the best switcher in hindsight.

    python -m benchmarks.studies.auto.measure FOLDER [DAY …] [--half test] [--objective NAME …]

One JSON file for each day and objective. What the folder holds already is not simulated again, so a study that was
stopped goes on where it was. `report.py` makes the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.auto.days import DEFAULT, JOINED, LOAD, SEED, StudyDay, fixed_times, make_day, names_of
from headway.bench.experiment.bundles import Bundle
from headway.bench.recommendation.candidates import candidates
from headway.bench.recommendation.objective import OperatorObjective, RequestTimes, measured, read_objective
from headway.bench.recommendation.verdict import rows_of, served
from headway.bench.twin.virtual_day import steered_day
from headway.config.typed_values import read_table
from headway.config.wanted_objective import MEASURES
from headway.scheduling.bundle import bundle_of
from headway.scheduling.scheduler import Policies, Scheduler
from headway.simulator.arrivals import FOREVER
from headway.simulator.skipping import simulate
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS
from headway.twin.auto_settings import AutoSettings
from headway.twin.chosen_bundle import ChosenBundle

OBJECTIVES = ("mean-ttft", "goodput", "p99-ttft", "balanced")


def lived(folder: Path, traces: Path, name: str, objective_name: str) -> dict[str, Any]:
    """One day under the twin and under each fixed bundle."""
    began, used = time.perf_counter(), time.process_time()
    day = make_day(traces, name)
    slo = day.slo
    objective = read_objective(objective_name, slo)
    fixed = fixed_times(day, folder / f"{name}.npz")
    given = {"objective": objective_name, "ttft_seconds": slo.ttft_seconds, "tpot_seconds": slo.tpot_seconds}
    settings = read_table(AutoSettings, {"on": True, **given})
    steered = steered_day(day.trace, day.server, settings, DEFAULT, SEED)
    auto = served(day.trace, steered.outcome)
    times = {"auto": auto, **fixed}
    if day.changes:
        times["hindsight"], parts = switcher(day, objective, fixed)
    scores, measures = judged(objective, list(times.values()))
    later = auto.ttft_seconds - fixed[DEFAULT.ordering].ttft_seconds
    return {
        "day": name,
        "objective": objective_name,
        "load": LOAD,
        "requests": len(day.trace),
        "seconds": float(day.trace.arrived_seconds[-1]),
        "slowed": day.slowed,
        "rows": [
            {"label": label, "behind": score, **found}
            for label, score, found in zip(times, scores, measures, strict=True)
        ],
        "changes": day.changes,
        "parts": parts if day.changes else [],
        "switches": steered.switches,
        "sentences": steered.sentences,
        "worst_harm": {"seconds": float(later.max()), "then_waited": float(auto.ttft_seconds[later.argmax()])},
        "cpu_seconds": time.process_time() - used,
        "wall_seconds": time.perf_counter() - began,
    }


def judged(objective: OperatorObjective, every: Sequence[RequestTimes]) -> tuple[list[float], list[dict[str, float]]]:
    """How far each is from the best by the objective (1 is best), and its measures."""
    each = [objective.columns(one) for one in every]
    columns = {name: np.array([one[name] for one in each]) for name in MEASURES}
    measures = [{name: float(measured(name, columns[name])[row]) for name in MEASURES} for row in range(len(every))]
    return [float(np.exp(score)) for score in objective.scores(columns)], measures


def switcher(
    day: StudyDay, objective: OperatorObjective, fixed: Mapping[str, RequestTimes]
) -> tuple[RequestTimes, list[str]]:
    """The best of some days that switch when the traffic changes, knowing each part: a bound on what a twin can do.

    Of each part the two fixed bundles that did best on its requests are known. Tried are the best of each part, and
    that with one part's second best. No proof that nothing is better: the queue that a part leaves differs.
    """
    arrived, labels = day.trace.arrived_seconds, list(fixed)
    borders = [0.0, *day.changes, np.inf]
    ranked = []
    for begins, ends in pairwise(borders):
        rows = np.flatnonzero((arrived >= begins) & (arrived < ends))
        scores, _ = judged(objective, [rows_of(one, rows) for one in fixed.values()])
        ranked.append([labels[number] for number in np.argsort(scores, kind="stable")[:2]])
    best = [first for first, _ in ranked]
    tried = [best, *([*best[:at], ranked[at][1], *best[at + 1 :]] for at in range(len(best)))]
    lived_each = [scheduled_day(day, one) for one in tried]
    scores, _ = judged(objective, lived_each)
    at = int(np.argmin(scores))
    return lived_each[at], tried[at]


def scheduled_day(day: StudyDay, labels: Sequence[str]) -> RequestTimes:
    """The day under a fixed bundle for each part, switched as the twin switches."""
    bundles = {one.label: one for one in candidates(Bundle("", "fcfs", prediction=DEFAULT.prediction))}
    steering = _Schedule(day, [bundles[label] for label in labels])
    return served(
        day.trace,
        simulate(day.trace, day.server.rules, day.server.step_time, steering.policies(0), steering=steering),
    )


class _Schedule:
    """Switches to the next bundle when the next part begins, as soon as the last switch is over."""

    def __init__(self, day: StudyDay, bundles: Sequence[Bundle]) -> None:
        self._day, self._bundles = day, bundles
        self._times = [round(at * PS_PER_SECOND) for at in day.changes]
        self._ruling = 0
        self._prediction: Any = None
        self.next_check_ps = self._times[0]

    def policies(self, number: int) -> Policies:
        one = self._bundles[number]
        chosen = ChosenBundle(one.ordering, one.admission, one.preemption, one.prediction, one.options)
        made = bundle_of(chosen, costs=self._day.server.costs, seed=SEED)
        self._prediction = self._prediction or made.prediction
        return Policies(made.ordering, made.admission, made.preemption, self._prediction)

    def check(self, scheduler: Scheduler, now_ps: int) -> None:
        """The next part has begun."""
        self.next_check_ps = now_ps + PS_PER_SECOND
        if scheduler.is_switching:
            return
        self._ruling += 1
        scheduler.switch(self.policies(self._ruling), now_ps * SECONDS_PER_PS)
        later = self._times[self._ruling :]
        self.next_check_ps = max(self.next_check_ps, later[0]) if later else FOREVER


def main() -> None:
    """Simulate what the folder does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("days", nargs="*")
    parser.add_argument("--half", choices=list(JOINED), default="test")
    parser.add_argument("--objective", action="append", choices=OBJECTIVES)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"), help="folder of the traces")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for objective in given.objective or OBJECTIVES:
        for name in given.days or names_of(given.half):
            file = given.folder / f"{name}.{objective}.json"
            if file.exists():
                continue
            found = lived(given.folder, given.traces, name, objective)
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            auto, *others = found["rows"]
            best = min((row for row in others if row["label"] != "hindsight"), key=lambda row: float(row["behind"]))
            print(
                f"{name} {objective}: auto {auto['behind']:.3f}, best fixed {best['label']} {best['behind']:.3f}, "
                f"{len(found['switches'])} switches, {found['cpu_seconds']:.0f} s of {found['wall_seconds']:.0f} s",
                file=sys.stderr,
                flush=True,
            )


if __name__ == "__main__":
    main()
