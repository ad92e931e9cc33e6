"""Exact percentiles of all inter-token gaps of a run, from runs of equal steps, without listing every gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headway.simulator.outcome import TokenGaps
from headway.simulator.step_time import PS_PER_SECOND

Ints: TypeAlias = npt.NDArray[np.int64]


def gap_spread(
    gaps: Sequence[TokenGaps] | Ints, shares: Sequence[float] = (0.5, 0.9, 0.99)
) -> tuple[float, ...] | tuple[()]:
    """(mean, one percentile per share) in seconds of all gaps; () when there are none.

    A run stands for `tokens` gaps of `first_ps + i * growth_ps` for each i in 0 … steps - 1. Percentiles interpolate
    linearly at position share · (n - 1), as numpy's do over the expanded list. Order statistics are found by bisection
    over the integer picoseconds, so the cost is O(runs · log range) whatever the number of tokens.
    """
    runs = np.asarray(gaps, np.int64).reshape(-1, 4)
    runs = runs[(runs[:, 2] > 0) & (runs[:, 3] > 0)]
    if len(runs) == 0:
        return ()
    rising = _rising(runs)
    first, growth, steps, tokens = rising.T
    total = int((steps * tokens).sum())
    sums = (steps * first + growth * (steps * (steps - 1) // 2)) / PS_PER_SECOND * tokens
    return (float(sums.sum()) / total, *(_percentile(rising, total, share) for share in shares))


def _rising(runs: Ints) -> Ints:
    """The same gaps with every run in rising order; a run without growth counts as one step of more tokens."""
    first, growth, steps, tokens = runs.T
    falling, flat = growth < 0, growth == 0
    return np.stack(
        [
            np.where(falling, first + growth * (steps - 1), first),
            np.where(flat, 1, np.abs(growth)),
            np.where(flat, 1, steps),
            np.where(flat, tokens * steps, tokens),
        ],
        axis=1,
    )


def _percentile(rising: Ints, total: int, share: float) -> float:
    position = share * (total - 1)
    rank = min(int(position), total - 1)
    low = _order_statistic(rising, rank)
    fraction = position - rank
    if fraction == 0 or _at_most(rising, low) > rank + 1:
        return low / PS_PER_SECOND
    high = _next_above(rising, low)
    return (low + (high - low) * fraction) / PS_PER_SECOND


def _order_statistic(rising: Ints, rank: int) -> int:
    """Smallest value that has more than `rank` gaps at or below it."""
    first, growth, steps, _ = rising.T
    low, high = int(first.min()), int((first + growth * (steps - 1)).max())
    while low < high:
        middle = (low + high) // 2
        if _at_most(rising, middle) > rank:
            high = middle
        else:
            low = middle + 1
    return low


def _at_most(rising: Ints, value: int) -> int:
    """How many gaps are at most `value`."""
    first, growth, steps, tokens = rising.T
    return int((np.clip((value - first) // growth + 1, 0, steps) * tokens).sum())


def _next_above(rising: Ints, value: int) -> int:
    """Smallest gap above `value`, which is not the largest."""
    first, growth, steps, _ = rising.T
    passed = np.clip((value - first) // growth + 1, 0, steps)
    return int((first + growth * passed)[passed < steps].min())
