"""Linear lower bounds of a sequence: straight lines that stay below it and touch it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_TOUCHED = (1, 16, 64, 256, 1_024, 4_096, 16_384)


def supporting_lines(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Lines (at 0, slope), both ≥ 0, with at + slope · n ≤ values[n - 1] for every n from 1; fewest slope first.

    Each touches the sequence near one of a few places; the last one goes through the origin. The values are ≥ 0 and
    may go up and down.
    """
    counts = np.arange(1, len(values) + 1, dtype=np.float64)
    costs = np.array(values, dtype=np.float64)
    through_origin = float(np.min(costs / counts))
    slopes = {0.0, through_origin}
    for place in _TOUCHED:
        if place < len(values):
            slope = float(np.min((costs[place:] - costs[place - 1]) / (counts[place:] - place)))
            if 0.0 < slope < through_origin:
                slopes.add(slope)
    # `at` is the most that each slope leaves room for; through the origin it would be 0 but for rounding.
    lines = [(max(0.0, float(np.min(costs - slope * counts))), slope) for slope in sorted(slopes)]
    return tuple(line for place, line in enumerate(lines) if line not in lines[:place])
