"""Paired bootstrap: which candidates differ on one trace, by drawing stretches of its time.

Laws: candidates are compared on the same requests; whole stretches are drawn, since waits of neighbours belong to one
rush; two equal candidates never differ.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple

import numpy as np

from headway.bench.metrics.paired_draws import DRAWS, EQUAL, SURE, drawn_rows, worse
from headway.bench.recommendation.objective import Floats, OperatorObjective

# Stretches of the trace: more of them cut rushes apart, and of fewer nothing can be drawn.
_STRETCHES_MIN, _STRETCHES_MAX = 10, 50
_WAITS_IN_A_STRETCH = 3  # it should be so many times as long as the longest wait


class Differences(NamedTuple):
    """How sure the differences to the best candidate are.

    Attributes:
        alike: of each candidate, whether it does not differ from the best one by more than chance; the best is.
        low: of each, the least factor by which it is behind the best, at 90 % (the 5th percentile of the draws); None
            where it does not compete.
        high: the largest (the 95th).
        stretch_seconds: how long the stretches of time were that were drawn together.
        is_short: the trace has too few stretches as long as its waits would ask for.
        times_incumbent: of each, how many times the incumbent's distance it has at most, in 95 of 100 draws: of the
            three lengths of stretches the largest. Below 1 it is better beyond chance.
    """

    alike: list[bool]
    low: list[float | None]
    high: list[float | None]
    stretch_seconds: float
    is_short: bool
    times_incumbent: list[float | None]

    def challenger(self, incumbent: int, left_out: Container[int] = ()) -> int:
        """The one that beats the incumbent by the surest factor, of those alike to the best; else the incumbent.

        Those `left_out` are not taken; where they alone are alike to the best, any other may be.
        """
        numbers = [number for number, value in enumerate(self.times_incumbent) if value and number not in left_out]
        alike = [number for number in numbers if self.alike[number]] or numbers
        surest = min(alike, key=lambda number: self.times_incumbent[number] or 1.0, default=incumbent)
        return surest if (self.times_incumbent[surest] or 1.0) < 1 - EQUAL else incumbent


def differences(
    objective: OperatorObjective,
    columns: Mapping[str, Floats],
    arrived_seconds: Floats,
    longest_wait_seconds: float,
    seed: int,
    incumbent: int | None = None,
) -> Differences:
    """Compare each candidate with the best one, and with the incumbent.

    A candidate differs only if it does with stretches of half, once and twice the length: a verdict that flips with
    it is none.

    Args:
        objective: what is wanted.
        columns: by measure, candidates × requests.
        arrived_seconds: of each request, ascending.
        longest_wait_seconds: of all candidates and requests.
        seed: of the draws.
        incumbent: the candidate that is kept unless another is better beyond chance; None for the best one.
    """
    scores = objective.scores(columns)
    best = int(scores.argmin())
    kept = best if incumbent is None else incumbent
    stretch, is_short = _stretch(arrived_seconds, longest_wait_seconds)
    is_worse = np.ones(len(scores), bool)
    at_most = np.full(len(scores), -np.inf)
    draws = scores[np.newaxis]
    for factor in (0.5, 2.0, 1.0):  # the last one's draws are told
        random = np.random.default_rng(seed)
        draws = np.array(
            [objective.scores(columns, drawn_rows(arrived_seconds, factor * stretch, random)) for _ in range(DRAWS)]
        )
        is_worse &= worse(scores - scores[best], draws - draws[:, [best]])
        at_most = np.maximum(at_most, np.quantile(draws - draws[:, [kept]], SURE, axis=0))
    low, high = np.percentile(np.exp(draws - draws[:, [best]]), [5, 95], axis=0)
    return Differences(
        [bool(one) for one in ~is_worse],
        [*map(float, low)],
        [*map(float, high)],
        stretch,
        is_short,
        [*map(float, np.exp(at_most))],
    )


def drawn_gains(
    objective: OperatorObjective,
    columns: Mapping[str, Floats],
    arrived_seconds: Floats,
    longest_wait_seconds: float,
    seed: int,
    draws: int = DRAWS,
) -> Floats:
    """By how much each candidate is better than the first one: ln of the factor, draws × candidates; as above."""
    stretch, _ = _stretch(arrived_seconds, longest_wait_seconds)
    random = np.random.default_rng(seed)
    scores = [objective.scores(columns, drawn_rows(arrived_seconds, stretch, random)) for _ in range(draws)]
    drawn = np.array(scores)
    return np.asarray(drawn[:, [0]] - drawn)


def _stretch(arrived_seconds: Floats, longest_wait_seconds: float) -> tuple[float, bool]:
    """Seconds of a stretch, and whether the trace is too short for as many as its waits would ask for."""
    span = max(float(arrived_seconds[-1] - arrived_seconds[0]), 1e-9)
    wanted, most = _WAITS_IN_A_STRETCH * longest_wait_seconds, span / _STRETCHES_MIN
    return min(max(wanted, span / _STRETCHES_MAX), most), wanted > most
