"""Rewards of a trial: the published one, about lanes, and a plain one, about requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.policies.lanes.partition import Span

Floats = npt.NDArray[np.float64]


class Emphasis(NamedTuple):
    """λ1 to λ4 of the published reward, Eq. 5. Their published values are not known; 1 each here."""

    compactness: float = 1.0
    balance: float = 1.0
    proliferation: float = 1.0
    latency: float = 1.0


def published_reward(
    sizes: Sequence[int],
    lanes: Sequence[Span],
    lanes_max: int,
    mean_wait_seconds: float,
    emphasis: Emphasis | None = None,
) -> float:
    """λ1·C + λ2·L − λ3·S − λ4·U: compactness, load balance, lane proliferation, latency penalty.

    Source: EWSJF, arXiv 2601.21758, section 4.4, as reported; the definitions are a public re-implementation's:
    C = 1/(1 + mean within-lane variance/10⁶), L = 1/(1 + coefficient of variation of lane sizes), S = lanes over
    `lanes_max`, U = mean wait/10 s. It says little about what clients see: three of its four terms are about the shape
    of the lanes.
    """
    emphasis = emphasis or Emphasis()
    seen = np.array(sizes, np.float64)
    own = [seen[(seen >= lane.low) & (seen <= lane.high)] for lane in lanes]
    variances = [float(part.var()) for part in own if len(part)]
    counts = np.array([len(part) for part in own], np.float64)
    compactness = 1 / (1 + (float(np.mean(variances)) if variances else 0.0) / 1e6)
    spread = float(counts.std() / counts.mean()) if len(counts) and counts.mean() else 0.0
    return (
        emphasis.compactness * compactness
        + emphasis.balance / (1 + spread)
        - emphasis.proliferation * len(lanes) / lanes_max
        - emphasis.latency * mean_wait_seconds / 10.0
    )


class Objective(NamedTuple):
    """Promise to clients, for the plain reward.

    Attributes:
        ttft_seconds: a first token later than this is a miss.
        starved_seconds: one later than this is starved.
        starvation_penalty: what a starved request costs, in requests served well.
    """

    ttft_seconds: float = 2.0
    starved_seconds: float = 60.0
    starvation_penalty: float = 2.0


def plain_reward(ttft_seconds: Floats, objective: Objective, weights: Floats | None = None) -> float:
    """Weighted SLO goodput, less a penalty for starved requests, in [−penalty, 1.01]: more is better.

    Args:
        ttft_seconds: of each request; how long it has waited so far, where it has no first token yet; infinite where it
            never got one.
        objective: the promise.
        weights: of each request, such as 2^−priority; 1 each if None.

    A hundredth rewards being early inside the promise, so that trials that all meet it still differ.
    """
    if not len(ttft_seconds):
        return 0.0
    weights = np.ones(len(ttft_seconds)) if weights is None else weights
    shares = weights / weights.sum()
    good = float(shares[ttft_seconds <= objective.ttft_seconds].sum())
    starved = float(shares[ttft_seconds > objective.starved_seconds].sum())
    early = float((shares / (1 + ttft_seconds / objective.ttft_seconds)).sum())
    return good - objective.starvation_penalty * starved + 0.01 * early
