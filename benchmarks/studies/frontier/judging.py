"""What a window says: whether an order outside ours beats ours, and how a choice on one window fares on the next.

A window is *calm* when the mean TTFT of all orders lies within 5 %: nothing waits there, and it is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.studies.frontier.days import Cell, Day
from benchmarks.studies.priced_work.regret_cells import SLO
from headway.bench.experiment.bundles import Bundle
from headway.bench.recommendation.candidates import DEFAULT, STEADY, candidates
from headway.bench.recommendation.objective import OperatorObjective, measured
from headway.bench.recommendation.paired_bootstrap import differences
from headway.config.wanted_objective import NAMED
from headway.twin.order_prior import UNBOUNDED

Floats = npt.NDArray[np.float64]

OURS = ("boost", "gittins", "priced-work", "shortest-uncached-prefill-first")
MARGIN = 1.03
CLOSE = 1.05
CALM = 1.05
OBJECTIVES = {name: OperatorObjective(name, NAMED[name], SLO) for name in ("mean-ttft", "goodput", "p99-ttft")}
ALSO = {name: OperatorObjective(name, NAMED[name], SLO) for name in ("e2e", "balanced")}
GRID = tuple(bundle.label for bundle in candidates(Bundle("template")))


class Beaten(NamedTuple):
    """An order outside ours that has a lower mean than one of ours at equal or lower p99."""

    ours: str
    other: str
    times: float  # our mean ÷ the other's


@dataclass(frozen=True)
class FrontierVerdict:
    """Of one window.

    Attributes:
        points: (mean, p99) TTFT in seconds, by arm.
        beaten: of the frontier of ours, what an outside order beats by more than 3 % of the mean.
        uncovered: outside orders that none of ours equals within 3 % in both mean and p99.
    """

    cell: Cell
    number: int
    points: Mapping[str, tuple[float, float]]
    beaten: Sequence[Beaten]
    uncovered: Sequence[str]


@dataclass(frozen=True)
class Choice:
    """One objective of one pair of windows: how many times the best candidate of the second window each choice has.

    Attributes:
        chosen: by the first window; the label.
        naive: best on the first window; the label.
        best: of the second window; the label.
        behind: by `recommended`, `naive`, `default`, `fcfs`.
        alike: candidates that could not be told apart on the first window.
        says_alike: whether the best one of the second window was among them, or was the choice.
        is_short: the first window says that it is too short.
    """

    cell: Cell
    number: int
    objective: str
    chosen: str
    naive: str
    best: str
    behind: Mapping[str, float]
    alike: int
    says_alike: bool
    is_short: bool


def is_calm(day: Day) -> bool:
    means = [arm.ttft_seconds.mean() for label, arm in day.arms.items() if not label.endswith(", running-mean")]
    return bool(max(means) <= CALM * min(means))


def judge_frontier(cell: Cell, number: int, day: Day) -> FrontierVerdict:
    points = {
        label: (float(arm.ttft_seconds.mean()), float(np.percentile(arm.ttft_seconds, 99)))
        for label, arm in day.arms.items()
        if not label.endswith(", running-mean")
    }
    ours = {label: point for label, point in points.items() if label.partition("(")[0] in OURS}
    others = {label: point for label, point in points.items() if label not in ours}
    front = {
        label: (mean, p99)
        for label, (mean, p99) in ours.items()
        if not any(m <= mean and q <= p99 and (m, q) != (mean, p99) for m, q in ours.values())
    }
    beaten = [
        Beaten(label, other, mean / their_mean)
        for label, (mean, p99) in front.items()
        for other, (their_mean, their_p99) in others.items()
        if their_p99 <= p99 and their_mean * MARGIN < mean
    ]
    uncovered = [
        other
        for other, (mean, p99) in others.items()
        if not any(m <= MARGIN * mean and q <= MARGIN * p99 for m, q in ours.values())
    ]
    return FrontierVerdict(cell, number, points, sorted(beaten, key=lambda one: -one.times), uncovered)


def choose(cell: Cell, number: int, first: Day, second: Day, objective: OperatorObjective, seed: int = 0) -> Choice:
    """Choose on the first window as `headway recommend` does among orders, and judge on the second."""
    labels = [label for label in GRID if label in first.arms and label in second.arms]
    order = np.argsort(first.arrived_seconds, kind="stable")
    known = {name: values[:, order] for name, values in _columns(objective, first, labels).items()}
    judged = _columns(objective, second, labels)
    longest = max(float(first.arms[label].ttft_seconds.max()) for label in labels)
    steady = labels.index(DEFAULT if objective.counts_the_tail else STEADY)
    is_unbounded = [label.partition("(")[0] in UNBOUNDED for label in labels]
    left_out = [place for place, starves in enumerate(is_unbounded) if starves and objective.rests_on_the_tail]
    told = differences(objective, known, first.arrived_seconds[order], longest, seed, steady)
    chosen, naive = told.challenger(steady, left_out), int(objective.scores(known).argmin())
    behind = _behind(objective, judged)
    best = int(behind.argmin())
    picks = {
        "recommended": chosen,
        "naive": naive,
        "default": labels.index(DEFAULT),
        "fcfs": labels.index("fcfs"),
        STEADY: labels.index(STEADY),
    }
    return Choice(
        cell,
        number,
        objective.name,
        labels[chosen],
        labels[naive],
        labels[best],
        {name: float(behind[place]) for name, place in picks.items()},
        sum(told.alike),
        told.alike[best] or best == chosen,
        told.is_short,
    )


def _columns(objective: OperatorObjective, day: Day, labels: Sequence[str]) -> dict[str, Any]:
    each = [objective.columns(day.arms[label]) for label in labels]
    return {name: np.array([columns[name] for columns in each]) for name in objective.weights}


def _behind(objective: OperatorObjective, columns: Mapping[str, Floats]) -> Floats:
    """Times the best: seconds ÷ seconds; of goodput the best's share ÷ the share; of several, the geometric mean."""
    if objective.name == "goodput":
        shares = 1 - measured("missed", columns["missed"])
        return np.asarray(shares.max() / np.maximum(shares, 1 / columns["missed"].shape[1]))
    scores = objective.scores(columns)
    return np.asarray(np.exp(scores - scores.min()))
