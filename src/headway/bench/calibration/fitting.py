"""Fits a calibration to the first part of a recording, and judges it on the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headway.bench.calibration.linear_fit import fit_linear
from headway.bench.calibration.replay import compare_with
from headway.bench.calibration.scalars import ScalarName, fit_scalars, replaying
from headway.bench.metrics.agreement import Agreement
from headway.bench.metrics.recording import Recording
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.simulator.calibration import Calibration, ProfileUnderScalars
from headway.simulator.replica import Replica
from headway.simulator.rules import EngineRules
from headway.simulator.scaled_step_time import Scalars, ScaledStepTime
from headway.simulator.step_time import FlooredStepTime, LinearStepTime

FITTED_SHARE = 0.7
_FEWEST = 20  # measured requests; fewer show more of chance than of the engine


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibration and its errors.

    Attributes:
        calibration: the content of the file.
        fitted: its error on the requests that it was fitted to.
        held_out: its error on the later ones.
        before: the profile's own error on the later ones; None without a profile.
    """

    calibration: Calibration
    fitted: Agreement
    held_out: Agreement
    before: Agreement | None


def calibrate_profile(
    recording: Recording, server: Replica, names: Sequence[ScalarName], name: str, profile_names: tuple[str, str]
) -> Calibrated:
    """Fit scalars over the replica's own profile; its rules are those that the engine ran under.

    `profile_names` are GPU and model as the calibration file names them: packaged names, or TOML files.

    Raises:
        UserMistake: too few requests were measured, or could have been served under these rules.
    """
    early, late = _parts(recording, server.rules)
    profile = server.step_time
    assert isinstance(profile, FlooredStepTime), "profiles are rooflines"
    scalars = fit_scalars(early, replaying(early, server.rules, profile), names)
    fitted = ProfileUnderScalars(*profile_names, server.tp, server.precision, scalars)
    before = compare_with(late, server.rules, ScaledStepTime(profile, Scalars()))
    return _judged(early, late, ScaledStepTime(profile, scalars), fitted, server.rules, name, before)


def calibrate_linear(recording: Recording, rules: EngineRules, name: str) -> Calibrated:
    """Fit a linear model, for an engine without a profile.

    Raises:
        UserMistake: too few requests were measured, or could have been served under these rules.
    """
    early, late = _parts(recording, rules)
    with as_mistakes():
        fitted = fit_linear(early, rules)
    return _judged(early, late, fitted, fitted, rules, name, None)


def _parts(recording: Recording, rules: EngineRules) -> tuple[Recording, Recording]:
    """The measured requests in two parts: the earlier to fit, the later to judge. All are replayed each time."""
    trace = recording.trace
    measured = recording.e2e_seconds > 0
    rows = np.flatnonzero(measured & (trace.prompt_tokens + trace.output_tokens <= rules.context_tokens))
    if len(rows) < _FEWEST:
        too_long = int(measured.sum()) - len(rows)
        why = (
            f", another {too_long} are longer than the {rules.context_tokens:,} tokens that it takes"
            if too_long
            else ""
        )
        raise UserMistake(
            f"{recording.label}: {len(rows)} requests were measured{why}; a calibration needs at least {_FEWEST}"
        )
    cut = int(FITTED_SHARE * len(rows))
    return recording.measured_only(rows[:cut]), recording.measured_only(rows[cut:])


def _judged(
    early: Recording,
    late: Recording,
    step_time: FlooredStepTime,
    step_times: ProfileUnderScalars | LinearStepTime,
    rules: EngineRules,
    name: str,
    before: Agreement | None,
) -> Calibrated:
    fitted, held_out = compare_with(early, rules, step_time), compare_with(late, rules, step_time)
    calibration = Calibration(
        name=name,
        source=f"{fitted.requests + held_out.requests:,} requests of {early.trace.name}, fitted to the first "
        f"{fitted.requests:,}",
        error=f"held out, of the same recording: {held_out.sentence()}",
        error_before="" if before is None else before.sentence(),
        step_times=step_times,
        rules=rules,
    )
    return Calibrated(calibration, fitted, held_out, before)
