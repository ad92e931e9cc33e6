"""Learned step time: a linear model of an engine's step, fitted to the steps that are measured. Pure; O(1) a step.

Seconds = fixed + a · decodes + b · their context + c · prompt tokens + d · tokens before them. Recursive least squares
that forgets (Haykin, "Adaptive Filter Theory", chapter 10); coefficients below 0 count as 0 in answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_KEEP = 0.998  # of the weight of what was measured, at each step
_SCALES = (1.0, 100.0, 100_000.0, 1_000.0, 10_000.0)  # of the five quantities, so that all are about 1
_BELIEF = 10.0  # variance of the first guess, in scaled units
_STEPS_MIN = 50
_SECONDS_MAX = 10.0  # a longer step was a pause of the machine


class StepWork(NamedTuple):
    """What a step computed: decodes, their context tokens, tokens of prompts, and tokens computed before these."""

    decodes: int
    context_tokens: int
    prompt_tokens: int
    prompts_before: int


class LearnedStepTime:
    """The model of one engine. `is_known` once enough steps were measured."""

    def __init__(self) -> None:
        size = len(_SCALES)
        self._weights = [0.0] * size
        self._inverse = [[_BELIEF * (row == column) for column in range(size)] for row in range(size)]
        self._steps = 0

    @property
    def is_known(self) -> bool:
        """Whether enough steps were measured to believe the model."""
        return self._steps >= _STEPS_MIN

    def measured(self, facts: StepWork, seconds: float) -> None:
        """A step took so long."""
        if not 0 < seconds < _SECONDS_MAX:
            return
        self._steps += 1
        given = _scaled(facts)
        spread = [_dot(row, given) for row in self._inverse]
        divisor = _KEEP + _dot(spread, given)
        gain = [one / divisor for one in spread]
        error = seconds - _dot(self._weights, given)
        self._weights = [weight + one * error for weight, one in zip(self._weights, gain, strict=True)]
        self._inverse = [
            [
                min(_BELIEF, max(-_BELIEF, (value - gain[row] * spread[column]) / _KEEP))
                for column, value in enumerate(line)
            ]
            for row, line in enumerate(self._inverse)
        ]

    def seconds(self, facts: StepWork) -> float:
        """How long such a step takes."""
        return _dot([max(0.0, weight) for weight in self._weights], _scaled(facts))


def _scaled(facts: StepWork) -> list[float]:
    return [value / scale for value, scale in zip((1.0, *facts), _SCALES, strict=True)]


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum([a * b for a, b in zip(one, other, strict=True)])
