"""Fits a linear step-time model to a recording, for a GPU and model without a profile.

Every guess is simulated as a whole day, with queueing, chunked prefill and preemption. The logarithm of each
coefficient is fitted, to the logarithms of measured over simulated TTFT and of the time after it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headway.bench.calibration.replay import replay
from headway.bench.metrics.recording import Recording, Seconds
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND, LinearStepTime

Floats = npt.NDArray[np.float64]

_STEPS = (0.15, 0.03)  # of a coefficient's logarithm, for slopes: single admissions show as noise in finer ones
_HUBER = 0.1  # log error beyond which a request counts less: a tenth of its time
_RIDGE = 0.003  # pull of the first guess, in the weight of one average residual: decides what the recording does not
_PHASE_STEPS = 2
_ROUNDS = 40
_SHIFTS = np.arange(-2.4, 1.3, 0.2)
_ENOUGH = 1e-4  # least improvement worth another round


def fit_linear(recording: Recording, rules: EngineRules) -> LinearStepTime:
    """The linear step time that replays the measured requests of `recording` best, first come first served.

    Levenberg (1944) and Marquardt (1963) on Huber-weighted residuals (P. Huber, Robust estimation of a location
    parameter, 1964), from a first guess read off the fastest requests.

    Raises:
        ValueError: no request has both a first and a last token measured.
    """

    def residuals(place: Floats) -> Floats:
        ttft, e2e, _ = replay(recording, rules, model(place))
        return log_errors(recording, ttft, e2e)

    guess = first_guess(recording)
    # A queue multiplies errors: first get the engine's speed right as a whole, then how it is made up.
    start = min((guess + shift for shift in _SHIFTS), key=lambda place: float(np.mean(_huber(residuals(place)))))
    place = start
    for step in _STEPS:
        place = _levenberg_marquardt(residuals, place, start, step)
    return model(place)


def model(place: Floats) -> LinearStepTime:
    """The model whose coefficients' logarithms (of picoseconds) are `place`: fixed, token, context, request, pair."""
    fixed, token, context, request, pair = (max(1, round(float(ps))) for ps in np.exp(place))
    return LinearStepTime(fixed, token, context, request, pair)


def first_guess(recording: Recording) -> Floats:
    """Logarithms of coefficients that explain the fastest requests: alone, a step is mostly fixed, a prompt tokens."""
    trace = recording.trace
    known = np.isfinite(recording.ttft_seconds) & np.isfinite(recording.tpot_seconds)
    known &= (np.nan_to_num(recording.ttft_seconds) > 0) & (np.nan_to_num(recording.tpot_seconds) > 0)
    if not known.any():
        raise ValueError(
            f"{recording.label}: no request of two tokens or more has both its times measured; "
            "record some, or fit scalars over a profile with --hardware"
        )
    decode_ps = float(np.percentile(recording.tpot_seconds[known], 5)) * PS_PER_SECOND
    token_ps = float(np.percentile(recording.ttft_seconds[known] / trace.prompt_tokens[known], 5)) * PS_PER_SECOND
    prompt, output = float(trace.prompt_tokens.mean()), float(trace.output_tokens.mean())
    context = prompt + output / 2
    guess = [0.6 * decode_ps, 0.7 * token_ps, 0.01 * decode_ps / context, 0.05 * decode_ps, 0.1 * token_ps / context]
    return np.log(np.maximum(guess, 1.0))


def log_errors(recording: Recording, ttft: Seconds, e2e: Seconds) -> Floats:
    """ln(simulated / measured) of every request's time to first token, then of its time after it.

    To both times a few steps are added, as long as TPOT is at the median: a request that comes just after a step began
    waits for its end, which no model of step times foretells. A time that is measured and not simulated, or the other
    way round, counts as no error; such requests are few.
    """
    tpot = recording.tpot_seconds
    slack = _PHASE_STEPS * float(np.median(tpot[np.isfinite(tpot)]))
    parts = []
    for measured, simulated in (
        (recording.ttft_seconds, ttft),
        (recording.e2e_seconds - recording.ttft_seconds, e2e - ttft),
    ):
        both = (np.nan_to_num(measured) > 0) & (np.nan_to_num(simulated) > 0)
        ratio = np.divide(simulated + slack, measured + slack, out=np.ones(len(measured)), where=both)
        parts.append(np.log(ratio)[np.nan_to_num(measured) > 0])
    return np.concatenate(parts)


def _levenberg_marquardt(residuals: Callable[[Floats], Floats], place: Floats, prior: Floats, step: float) -> Floats:
    """A better place than `place`, held to `prior` by the ridge; slopes are taken over `step`."""

    def cost(errors: Floats, place: Floats) -> float:
        return float(np.mean(_huber(errors)) + _RIDGE / 2 * np.mean((place - prior) ** 2))

    damping = 0.1
    errors = residuals(place)
    best = cost(errors, place)
    for _ in range(_ROUNDS):
        slopes = np.empty((len(errors), len(place)))
        for column in range(len(place)):
            moved = place.copy()
            moved[column] += step
            slopes[:, column] = (residuals(moved) - errors) / step
        weights = 1 / np.maximum(np.abs(errors), _HUBER) / len(errors)
        normal = slopes.T @ (slopes * weights[:, None]) + _RIDGE / len(place) * np.eye(len(place))
        pull = slopes.T @ (errors * weights) + _RIDGE / len(place) * (place - prior)
        gained = 0.0
        while damping < 1e4:
            move = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -pull)
            candidate = place + np.clip(move, -1.0, 1.0)
            tried = residuals(candidate)
            value = cost(tried, candidate)
            if value < best:
                gained = best - value
                place, errors, best, damping = candidate, tried, value, max(damping / 5, 1e-3)
                break
            damping *= 4
        if gained < _ENOUGH * max(best, 1e-3):
            break
    return place


def _huber(errors: Floats) -> Floats:
    size = np.abs(errors)
    return np.where(size <= _HUBER, size**2 / (2 * _HUBER), size - _HUBER / 2)
