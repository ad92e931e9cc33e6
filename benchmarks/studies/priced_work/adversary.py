"""Days made to hurt `priced-work`: where a search finds it furthest behind another order, and its bound on each.

    python -m benchmarks.studies.priced_work.adversary  # lengths known, ample memory: two minutes
    python -m benchmarks.studies.priced_work.adversary --prediction histogram  # lengths learned on the day itself
    python -m benchmarks.studies.priced_work.adversary --kv-tokens 49152 --steps 200  # memory squeezed
    … --write docs/results/priced-work-measured.md --table hurtful  # into the place of that name

Llama-3.1-8B on one H100, vLLM's defaults, the simulator and the predictors as they are. Days are of 30 to 200 requests
in a few groups (`hurtful_days.py`). For each metric and opponent: random days, then hill climbing, evolution and
restarts (`headway.bounds.adversary.climb`), then the worst day made smaller as long as it stays nearly as bad. On every
day that is tried the bound of docs/priced-work.md is checked (`bound_witness.py`); a violation ends the search with
status 1. One core, nothing random but by --seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.page_tables import show
from benchmarks.studies.priced_work.bound_witness import Verdict, Witness
from benchmarks.studies.priced_work.hurtful_days import (
    HurtfulDay,
    as_trace,
    change,
    cross,
    draw,
    requests,
    simpler,
    told,
)
from headway.bench.experiment.bundles import Bundle
from headway.bench.progress import progress
from headway.bounds.adversary import Moves, climb
from headway.policies.ordering.priced_work import PricedWork
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.replica import Replica, replica
from headway.simulator.skipping import simulate
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

OURS = "priced-work"
DRAWS, STEPS = 60, 1_000
KEPT_SHARE = 0.9  # of how far a ratio is above 1, while its day is made smaller
TIMES = 10  # the day so often one after the other, to tell what lasts from what a small day makes of it

Waits = npt.NDArray[np.float64]
METRICS: dict[str, Callable[[Waits], float]] = {
    "mean TTFT": lambda waits: float(waits.mean()),
    "p99 TTFT": lambda waits: float(np.percentile(waits, 99)),
    "longest TTFT": lambda waits: float(waits.max()),
}
OBJECTIVES = (
    ("mean TTFT", "fcfs"),
    ("mean TTFT", "shortest-uncached-prefill-first"),
    ("mean TTFT", "highest-response-ratio"),
    ("p99 TTFT", "fcfs"),
    ("p99 TTFT", "highest-response-ratio"),
    ("longest TTFT", "fcfs"),
)


class Hurt(NamedTuple):
    """A day and how many times the opponent's metric ours is on it."""

    instance: HurtfulDay
    value: float


class BoundBrokenError(Exception):
    """The bound of docs/priced-work.md does not hold on a day; the message tells the day and who passed whom."""


@dataclass(frozen=True)
class Court:
    """Where days are tried: on which replica, with which predictor; counts them."""

    replica: Replica
    prediction: str
    known: dict[tuple[HurtfulDay, str], Waits]
    verdicts: list[Verdict]

    def ttft_seconds(self, day: HurtfulDay, order: str) -> Waits:
        """Everybody's time to first token; a day of ours is held against its bound."""
        if (day, order) not in self.known:
            trace = as_trace(day)
            self.known[day, order] = self._waits(trace, order, told(day))
        return self.known[day, order]

    def ratio(self, day: HurtfulDay, metric: str, opponent: str, times: int = 1) -> float:
        """Ours ÷ the opponent's; `times` over if asked."""
        if times > 1:
            trace = as_trace(day, times)
            ours, theirs = (self._waits(trace, order, told(day)) for order in (OURS, opponent))
        else:
            ours, theirs = self.ttft_seconds(day, OURS), self.ttft_seconds(day, opponent)
        return METRICS[metric](ours) / METRICS[metric](theirs)

    def _waits(self, trace: Trace, order: str, name: str) -> Waits:
        truth = trace.output_tokens.tolist().__getitem__
        policies = Bundle(order, order, prediction=self.prediction).build(costs=self.replica.costs, seed=0, truth=truth)
        witness = Witness(policies.ordering) if isinstance(policies.ordering, PricedWork) else None
        if witness is not None:
            policies = replace(policies, ordering=witness)
        outcome = simulate(trace, self.replica.rules, self.replica.step_time, policies)
        if witness is not None:
            verdict = witness.verdict()
            self.verdicts.append(verdict)
            if verdict.violations:
                raise BoundBrokenError(f"{name}: {verdict.violations[0]}")
        return _ttft_seconds(outcome)


def hunt(court: Court, metric: str, opponent: str, seed: int, steps: int, on_done: Callable[[], None]) -> Hurt:
    """The worst day found for one metric against one opponent."""
    rng = np.random.default_rng(seed)

    def rated(day: HurtfulDay) -> Hurt:
        on_done()
        return Hurt(day, court.ratio(day, metric, opponent))

    def worse_than(day: HurtfulDay, value: float) -> Hurt | None:
        found = rated(day)
        return found if found.value > value else None

    drawn = [rated(draw(rng)) for _ in range(DRAWS)]
    return climb(drawn, Moves(worse_than, change, cross), rng, steps=steps)


def shrunk(court: Court, metric: str, opponent: str, worst: Hurt) -> Hurt:
    """A day that is easier to tell and keeps nine tenths of what the worst one is above 1."""
    target = 1 + KEPT_SHARE * (worst.value - 1)
    best, tried = worst, {worst.instance}
    while True:
        for day in simpler(best.instance):
            if day in tried:
                continue
            tried.add(day)
            value = court.ratio(day, metric, opponent)
            if value >= target:
                best = Hurt(day, value)
                break
        else:
            return best


def row(court: Court, metric: str, opponent: str, worst: Hurt, small: Hurt) -> str:
    ours, theirs = (METRICS[metric](court.ttft_seconds(small.instance, order)) for order in (OURS, opponent))
    lasting = court.ratio(small.instance, metric, opponent, TIMES)
    cells = (
        f"{metric} against {opponent}",
        f"**{worst.value:.3g}** ({requests(worst.instance)})",
        f"{small.value:.3g} ({requests(small.instance)}; {ours:.3g} s against {theirs:.3g} s)",
        f"{lasting:.3g}",
        told(small.instance),
    )
    return "| " + " | ".join(cells) + " |"


def table(court: Court, seed: int, steps: int) -> str:
    heads = ("", "worst found (requests)", "made smaller", f"that {TIMES} times over", "count×(prompt, output)")
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---|---|---|"]
    with progress("searching", len(OBJECTIVES) * (DRAWS + steps)) as on_done:
        for number, (metric, opponent) in enumerate(OBJECTIVES):
            worst = hunt(court, metric, opponent, seed + number, steps, on_done)
            lines.append(row(court, metric, opponent, worst, shrunk(court, metric, opponent, worst)))
            court.known.clear()
    late = sum(verdict.overdue for verdict in court.verdicts)
    lines += ["", f"The bound held on all {len(court.verdicts):,} days tried, for all {late:,} overdue requests."]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prediction", default="oracle", choices=["oracle", "histogram"])
    parser.add_argument("--kv-tokens", type=int, help="KV memory instead of what the card leaves")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--steps", type=int, default=STEPS, help="days tried for each metric after the random ones")
    parser.add_argument("--write", type=Path, help="the page with a place for the table; else it is printed")
    parser.add_argument("--table", default="hurtful", help="name of that place")
    asked = parser.parse_args()
    court = Court(replica("h100", "llama-3.1-8b", kv_tokens=asked.kv_tokens), asked.prediction, {}, [])
    try:
        found = table(court, asked.seed, asked.steps)
    except BoundBrokenError as broken:
        print(broken, file=sys.stderr)
        return 1
    show({asked.table: found}, asked.write)
    return 0


def _ttft_seconds(outcome: DayOutcome) -> Waits:
    began = outcome.first_token_ps != NEVER
    return np.asarray((outcome.first_token_ps - outcome.arrived_ps)[began] / PS_PER_SECOND, np.float64)


if __name__ == "__main__":
    sys.exit(main())
