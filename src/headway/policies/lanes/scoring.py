"""Scores of lane heads, all linear in the time waited: which leads now, and when that may change.

EWSJF, arXiv 2601.21758, Eq. 1 and 4, as reported by two independent third parties that agree: with b the size of the
lane's head, W the seconds it waited and b̄ the mean size of its lane,

    score = qf·(w_base + w_urg(b̄)·W/C(b) + w_fair(b̄)·ln(b + 1)),    qf = q/(b + 1),
    w_urg(b̄) = a_u·b̄ + b_u,    w_fair(b̄) = a_f·b̄ + b_f,

q being the number of lanes less the lane's index, the shortest lane having index 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol

_ROUNDING = 64 * 2.0**-53  # relative error of a computed score or crossing time, with room to spare


class Weights(Protocol):
    """Θ without the partition's part: how base, urgency and fairness are weighed, the last two along the mean size."""

    w_base: float
    a_u: float
    b_u: float
    a_f: float
    b_f: float


class ScoreLine(NamedTuple):
    """A head's score at time t: `base + slope·(t − arrived_at)`, slope ≥ 0 per second."""

    base: float
    slope: float
    arrived_at: float

    def at(self, time: float) -> float:
        """The score."""
        return self.base + self.slope * (time - self.arrived_at)


def density_weighted(
    weights: Weights, size: int, mean_size: float, cost_seconds: float, arrived_at: float, *, queue_factor: float
) -> ScoreLine:
    """The published score; `queue_factor` is qf, 1 for the bounded variant.

    w_fair is never below 0; w_urg never below 1e-3 in the bounded variant, 0 in the published.
    """
    fairness = max(0.0, weights.a_f * mean_size + weights.b_f)
    urgency = max(1e-3 if queue_factor == 1 else 0.0, weights.a_u * mean_size + weights.b_u)
    base = weights.w_base + fairness * math.log(size + 1)
    return ScoreLine(queue_factor * base, queue_factor * urgency / cost_seconds, arrived_at)


def authors(size: int, step: int, arrived_at: float) -> ScoreLine:
    """The authors' code: W·(1 + 0.5·ln(b + 1))·step/(⌊b/step⌋ + 1); the last factor is 1 where step is 0."""
    factor = step / (size // step + 1) if step else 1.0
    return ScoreLine(0.0, (1 + 0.5 * math.log(size + 1)) * factor, arrived_at)


def overtaken_at(leader: ScoreLine, others: Iterable[ScoreLine], now: float) -> float:
    """The earliest time from `now` on at which another line may lead; `math.inf` if none ever does.

    Early by what rounding may do to scores and crossings; `now` where two lines cannot be told apart.
    """
    base, slope, _ = leader
    score = leader.at(now)
    earliest = math.inf
    for other in others:
        if other == leader:
            continue
        lead = score - other.at(now)
        gain = other.slope - slope
        doubt = _ROUNDING * (abs(base) + abs(other.base) + (slope + other.slope) * (abs(now) + 1.0))
        if lead <= doubt:
            return now
        if gain > 0:
            wait = lead / gain
            wait -= (doubt + _ROUNDING * (slope + other.slope) * wait) / gain + _ROUNDING * (abs(now) + wait)
            earliest = min(earliest, now + max(0.0, wait))
    return earliest
