"""Fits scalars over a built-in profile, so that the simulated day comes nearest to the recorded one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp, log
from typing import Literal, TypeAlias, get_args

import numpy as np

from headway.bench.calibration.replay import replay
from headway.bench.metrics.recording import Recording, Seconds, seconds_per_token
from headway.simulator.rules import EngineRules
from headway.simulator.scaled_step_time import Scalars, ScaledStepTime
from headway.simulator.step_time import FlooredStepTime

ScalarName: TypeAlias = Literal["step_scale", "kv_scale", "prompt_step_scale", "step_us"]
SCALARS: tuple[ScalarName, ...] = get_args(ScalarName)

_FACTOR = (0.25, 4.0)
_STEP_US_MAX = 50_000.0
_ROUNDS = 3  # over all scalars; a single one needs one
_EVALUATIONS = 22  # of a golden section: 4× to within 0.1 %
_GOLDEN = (5**0.5 - 1) / 2
_UNIT_US = 100.0  # step_us is searched on a scale that is linear below this and logarithmic above


Replayed: TypeAlias = Callable[[Scalars], tuple[Seconds, Seconds]]
"""(TTFT, end to end) seconds of every request of a recording, replayed under these scalars."""


def replaying(recording: Recording, rules: EngineRules, profile: FlooredStepTime) -> Replayed:
    """First come first served on one replica of these rules, step times as in the profile."""

    def replayed(scalars: Scalars) -> tuple[Seconds, Seconds]:
        return replay(recording, rules, ScaledStepTime(profile, scalars))[:2]

    return replayed


def fit_scalars(recording: Recording, replayed: Replayed, names: Sequence[ScalarName]) -> Scalars:
    """The scalars called `names` that make `distance` least, the others neutral; by golden sections in turn.

    Raises:
        ValueError: no or unknown names.
    """
    if not names or any(name not in SCALARS for name in names):
        raise ValueError(f"fit at least one of {', '.join(SCALARS)}, got {', '.join(names) or 'none'}")

    def cost(scalars: Scalars) -> float:
        return distance(recording, *replayed(scalars))

    best = Scalars()
    for round_ in range(_ROUNDS if len(names) > 1 else 1):
        for name in names:
            best = _one(best, name, cost, width=1 / (1 + round_))
    return best


def distance(recording: Recording, ttft: Seconds, e2e: Seconds) -> float:
    """How far simulated times are from measured ones: mean |ln ratio| of end-to-end latency and of TPOT, summed.

    Logarithms, so that twice as long and half as long are equally far; absolute ones, so that outliers do not rule.
    """
    return _log_error(recording.e2e_seconds, e2e) + _log_error(
        recording.tpot_seconds, seconds_per_token(recording.trace, ttft, e2e)
    )


def _log_error(measured: Seconds, predicted: Seconds) -> float:
    known = np.isfinite(measured) & np.isfinite(predicted) & (np.nan_to_num(measured) > 0)
    known &= np.nan_to_num(predicted) > 0
    return float(np.mean(np.abs(np.log(predicted[known] / measured[known])))) if known.any() else 0.0


def _one(scalars: Scalars, name: ScalarName, cost: Callable[[Scalars], float], width: float) -> Scalars:
    """The best value of one scalar, the others held; `width` of the whole range around its value."""
    to_axis: Callable[[float], float] = _us_to_axis if name == "step_us" else log
    from_axis: Callable[[float], float] = _us_from_axis if name == "step_us" else exp
    low, high = (0.0, _us_to_axis(_STEP_US_MAX)) if name == "step_us" else (log(_FACTOR[0]), log(_FACTOR[1]))
    here, reach = to_axis(getattr(scalars, name)), width * (high - low) / 2
    if width < 1:
        low, high = max(low, here - reach), min(high, here + reach)

    def at(place: float) -> Scalars:
        return replace(scalars, **{name: max(0.0, from_axis(place))})

    best = at(_golden(lambda place: cost(at(place)), low, high))
    return min((scalars, best), key=cost)


def _us_to_axis(us: float) -> float:
    return us / _UNIT_US if us < _UNIT_US else 1 + log(us / _UNIT_US)


def _us_from_axis(place: float) -> float:
    return _UNIT_US * place if place < 1 else _UNIT_US * exp(place - 1)


def _golden(cost: Callable[[float], float], low: float, high: float) -> float:
    """Golden-section search (J. Kiefer, Sequential minimax search for a maximum, Proc. AMS 4, 1953)."""
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    values = [cost(inner[0]), cost(inner[1])]
    for _ in range(_EVALUATIONS - 2):
        if values[0] <= values[1]:
            high, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = high - _GOLDEN * (high - low)
            values[0] = cost(inner[0])
        else:
            low, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = low + _GOLDEN * (high - low)
            values[1] = cost(inner[1])
    return inner[0] if values[0] <= values[1] else inner[1]
