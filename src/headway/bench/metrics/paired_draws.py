"""Draws of whole stretches of a trace, the same for every policy, and what they say of differences.

Source: moving blocks (Künsch 1989), in a circle (Politis and Romano 1992); the set of candidates not worse than the
best by the largest of their standardised differences (Hsu 1984; Romano and Wolf 2005).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
_Rows: TypeAlias = npt.NDArray[np.int64]

DRAWS = 400
SURE = 0.95
EQUAL = 1e-12
_Z = 1.6448536269514722  # the normal distribution's 95th percentile


def drawn_rows(arrived_seconds: Floats, stretch: float, random: np.random.Generator) -> _Rows:
    """Rows of as many stretches as the trace has, each drawn with replacement; the trace is closed to a circle."""
    first, span = float(arrived_seconds[0]), float(arrived_seconds[-1] - arrived_seconds[0])
    starts = first + random.random(max(1, round(span / stretch))) * span
    rows = []
    for start in starts:
        end = start + stretch
        low, high = np.searchsorted(arrived_seconds, [start, end])
        rows.append(np.arange(low, high))
        if end > first + span:
            rows.append(np.arange(0, np.searchsorted(arrived_seconds, end - span)))
    drawn = np.concatenate(rows)
    return drawn if len(drawn) else np.arange(len(arrived_seconds))


def worse(behind: Floats, draws: Floats) -> npt.NDArray[np.bool_]:
    """Which are behind the best by more than chance makes all of them together, and in 95 of 100 draws as well.

    Where a few requests decide, draws are far from symmetric, and either of the two alone is too sure.

    Args:
        behind: how far each is behind the best one, which is 0 behind itself.
        draws: the same in each draw, draws × candidates.
    """
    spread = draws.std(axis=0)
    varies = spread > EQUAL
    standard = np.where(varies, spread, 1.0)
    chance = np.where(varies, (draws - behind) / standard, 0.0).max(axis=1)
    beyond_chance = behind / standard > np.quantile(chance, SURE)
    nearly_always = np.quantile(draws, 1 - SURE, axis=0) > EQUAL
    return np.asarray((behind > EQUAL) & (~varies | (beyond_chance & nearly_always)))


def small_sample_factor(parts: int) -> float:
    """By how much draws from so few independent parts are too close together, for an interval of 90 %.

    √(n / (n - 1)), since draws with replacement vary by the parts' own spread, times Student's t over the normal
    quantile (Abramowitz and Stegun 1964, 26.7.5; right to 0.3 % from 3 parts on).

    Raises:
        ValueError: fewer than 3 parts.
    """
    if parts < 3:
        raise ValueError(f"an interval needs 3 parts, got {parts}")
    free, z = parts - 1, _Z
    student = (
        z
        + (z**3 + z) / (4 * free)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92_160 * free**4)
    )
    return math.sqrt(parts / free) * student / z
