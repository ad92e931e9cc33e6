"""Lower bound from crowding: requests that decode side by side make each other's steps longer. Proof: docs/bounds.md.

To get much done in little time a replica has to put many requests into a step. Then each of them sits through what all
of them cost. Time is given a price: each request is charged for the time it cannot do without, and the price of all the
time there was is given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from headway.bounds.chains import Chains, Floats
from headway.bounds.resource_needs import Needs
from headway.bounds.step_cost import context, decode_work, fixed_of_steps, further_token, prompt_work
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import StepFloor

_CROWDS = 24  # sizes of the batch that prices are made of, from one request to as many as may run
_CAPS = (1.0, 0.5, 2.0)  # of what a decode costs on average: what counts of a single one
_LATER = (1.0, 2.0, 4.0, 8.0)  # horizons: that many mean latencies of a request alone after the last arrival,
_ARRIVED = (0.8, 0.9, 1.0)  # and when that share has arrived
_ROUNDED = 1 + 1e-12  # a difference of large sums errs on the safe side
_KEPT = 2  # floors that all of these are tried on


class _Charges(NamedTuple):
    """Costs under one floor, by chain, picoseconds.

    Attributes:
        steps: fixed costs of the steps whose batch it is in.
        capped: its variable cost, no more than `cap` in a step.
        work: its variable cost.
        fixed: of any step.
        cap: see `capped`.
    """

    steps: Floats
    capped: Floats
    work: Floats
    fixed: float
    cap: float


def crowding_bound(
    served: Chains, needed: Needs, floors: Sequence[StepFloor], rules: EngineRules, alone: Floats
) -> float:
    """Total end-to-end latency of all chains, picoseconds, is no less; 0 where no floor has a fixed cost.

    Args:
        served: the chains.
        needed: what their requests need.
        floors: of the step time.
        rules: of the replica.
        alone: by chain, least picoseconds it takes on an idle replica.
    """
    horizons = _horizons(served, alone)
    crowds = np.geomspace(1.0, max(2.0, min(rules.max_num_seqs, len(needed.outputs))), _CROWDS).tolist()

    def best(floor: StepFloor, caps: Sequence[float], ends: Sequence[float]) -> float:
        ways = _charged(served, needed, floor, rules, caps)
        return max(
            (_priced(served, alone, way, crowd, end) for way in ways for crowd in crowds for end in ends), default=0
        )

    usable = [floor for floor in floors if floor.fixed > 0]
    ranked = sorted(usable, key=lambda floor: best(floor, _CAPS[:1], horizons[:1]), reverse=True)
    return max((best(floor, _CAPS, horizons) for floor in ranked[:_KEPT]), default=0.0)


def _priced(served: Chains, alone: Floats, charges: _Charges, crowd: float, horizon: float) -> float:
    """The bound at one price. A chain not done by the horizon is charged its time until then, if that is less."""
    price = crowd * crowd * charges.cap / charges.fixed
    done = charges.steps + 2 * crowd * charges.capped + price * charges.work
    late = np.maximum(alone, horizon - served.arrived_ps - served.think_ps)
    given_back = price * (horizon - float(served.arrived_ps.min()))
    return float(np.minimum(done, late).sum()) - given_back * _ROUNDED


def _charged(
    served: Chains, needed: Needs, floor: StepFloor, rules: EngineRules, caps: Sequence[float]
) -> list[_Charges]:
    token, per_context = further_token(floor) + floor.sample, context(floor, rules)
    further = needed.outputs - 1
    if not further.sum():
        return []
    mean = token + per_context * float(needed.contexts.sum() / further.sum())
    return [
        _Charges(
            steps=served.sums(fixed_of_steps(needed, floor, rules)),
            capped=served.sums(capped_ramp(token, per_context, needed.prompts, further, share * mean)),
            work=served.sums(prompt_work(needed, floor) + decode_work(needed, floor, rules)),
            fixed=floor.fixed,
            cap=share * mean,
        )
        for share in caps
        if mean > 0
    ]


def capped_ramp(start: float, slope: float, first: Floats, count: Floats, cap: float) -> Floats:
    """Σ min(start + slope · (first + k), cap) over k = 0 … count - 1."""
    if slope <= 0:
        return np.asarray(min(start, cap) * count)
    below = np.clip(np.floor((cap - start) / slope - first) + 1, 0, count)
    return np.asarray(start * below + slope * (first * below + below * (below - 1) / 2) + cap * (count - below))


def _horizons(served: Chains, alone: Floats) -> list[float]:
    arrived = served.arrived_ps.astype(np.float64)
    last, mean = float(arrived.max()), float(alone.mean())
    return [last + times * mean for times in _LATER] + [float(np.quantile(arrived, share)) for share in _ARRIVED]
