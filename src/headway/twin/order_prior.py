"""What is expected of an order before this traffic was seen: how it did on other traffic, measure by measure.

The figures are means over the days of the training half of benchmarks/studies/auto (`expectations.py` there makes the
table). An order that is not among them is expected to do as the default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from headway.config.wanted_objective import TAILS, shares
from headway.twin.chosen_bundle import ChosenBundle

UNBOUNDED = frozenset(["shortest-uncached-prefill-first", "shortest-job-first", "smallest-volume-first", "gittins"])
"""Orders under which a request may wait without bound. None of them is taken for a tail: on a calm day they have a
short one, on the next heavier day one ten times as long (agentic_coding_weka in docs/results/frontier.md)."""
SPREAD = 0.25
"""Standard deviation of the logarithms below from day to day, of means, tails and shares together."""
BEGIN_MARGIN = 0.15
"""ln of the factor by which an order has to be expected to be better for a start with it: over six days, chance makes a
tenth (SPREAD ÷ √6)."""
MEASURED = ("mean-ttft", "p99-ttft", "longest-ttft", "e2e", "normalised-latency", "missed")


class KnownOrder(NamedTuple):
    """An order with the value of its dial, and ln of each of `MEASURED` under it over that under the default."""

    ordering: str
    dials: Mapping[str, float]
    logarithms: tuple[float, ...]


KNOWN: Sequence[KnownOrder] = (  # of equals the first is taken: gittins held best in docs/results/frontier.md
    KnownOrder("highest-response-ratio", {}, (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
    KnownOrder("gittins", {}, (-0.25, 0.08, 0.61, -0.03, -0.03, -0.49)),
    KnownOrder("fcfs", {}, (0.36, 0.01, -0.47, 0.08, 0.14, 0.43)),
    KnownOrder("shortest-uncached-prefill-first", {}, (-0.25, 0.0, 0.63, -0.03, -0.03, -0.49)),
    KnownOrder("shortest-job-first", {}, (-0.08, 0.23, 0.51, -0.02, -0.05, -0.09)),
    KnownOrder(
        "shortest-job-first-aging", {"service_seconds_per_second_waited": 0.03}, (0.0, 0.21, -0.02, -0.01, -0.05, 0.01)
    ),
    KnownOrder(
        "shortest-job-first-aging", {"service_seconds_per_second_waited": 0.3}, (0.23, 0.04, -0.26, 0.06, 0.04, 0.22)
    ),
    KnownOrder("smallest-volume-first", {}, (-0.17, 0.08, 0.61, -0.02, -0.04, -0.36)),
    KnownOrder("priced-work", {"patience": 1.25}, (-0.15, -0.1, 0.6, -0.02, -0.06, -0.16)),
    KnownOrder("priced-work", {"patience": 2.0}, (-0.2, -0.13, 0.56, -0.03, -0.03, -0.33)),
    KnownOrder("priced-work", {"patience": 5.0}, (-0.23, 0.02, 0.57, -0.03, -0.03, -0.38)),
    KnownOrder("boost", {"decay_factor": 0.1}, (-0.14, 0.03, 0.48, -0.02, -0.02, -0.15)),
    KnownOrder("boost", {"decay_factor": 0.3}, (-0.08, -0.05, 0.03, -0.02, -0.05, -0.03)),
    KnownOrder("boost", {"decay_factor": 1.0}, (0.02, -0.07, -0.21, -0.01, -0.02, 0.09)),
    KnownOrder("boost", {"decay_factor": 3.0}, (0.19, -0.13, -0.39, 0.03, 0.07, 0.23)),
    KnownOrder("ewsjf", {}, (-0.03, 0.05, 0.06, -0.01, -0.01, -0.05)),
)


def expected_distance(bundle: ChosenBundle, weights: Mapping[str, float]) -> float:
    """ln of how many times worse than the default its order is expected to be, by these weights of measures."""
    dials = dict(bundle.options.get("ordering", {}))
    known = next((one for one in KNOWN if one.ordering == bundle.ordering and dict(one.dials) == dials), None)
    return 0.0 if known is None else _distance(known, weights)


def first_bundle(weights: Mapping[str, float], default: ChosenBundle) -> ChosenBundle:
    """What to begin with: the default with the order that is expected to be best, if it is by more than chance.

    Where some of the weight lies on a tail, it is one that bounds waits.
    """
    allowed = [one for one in KNOWN if TAILS.isdisjoint(weights) or one.ordering not in UNBOUNDED]
    best = min(allowed, key=lambda one: _distance(one, weights))
    if _distance(best, weights) > expected_distance(default, weights) - BEGIN_MARGIN:
        return default
    options = {kind: given for kind, given in default.options.items() if kind != "ordering"}
    return replace(
        default, ordering=best.ordering, options={**options, "ordering": best.dials} if best.dials else options
    )


def _distance(known: KnownOrder, weights: Mapping[str, float]) -> float:
    return sum(share * known.logarithms[MEASURED.index(name)] for name, share in shares(weights).items())
