"""What was put into an engine comes out of a calibration to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headway.bench.calibration.fitting import calibrate_linear, calibrate_profile
from headway.bench.calibration.replay import compare_with
from headway.bench.calibration.scalars import SCALARS, ScalarName, fit_scalars, replaying
from headway.bench.user_mistake import UserMistake
from headway.simulator.replica import replica
from headway.simulator.scaled_step_time import Scalars, ScaledStepTime
from tests.support.recorded_days import ENGINE, RULES, recorded, traffic

TRUE = {"step_scale": 1.3, "kv_scale": 1.8, "prompt_step_scale": 1.4, "step_us": 4_000.0}


@pytest.mark.parametrize("name", SCALARS)
def test_one_scalar_is_found_again(name: ScalarName) -> None:
    server = replica("rtx-4090", "llama-3.1-8b", kv_tokens=40_000, max_num_seqs=32)
    truth = ScaledStepTime(server.step_time, Scalars(**{name: TRUE[name]}))  # type: ignore[arg-type]
    trace = traffic(80, 8.0)
    day = recorded(trace, truth, server.rules)
    found = fit_scalars(day, replaying(day, server.rules, server.step_time), [name])  # type: ignore[arg-type]
    assert getattr(found, name) == pytest.approx(TRUE[name], rel=0.03)


def test_a_profile_gets_its_error_before_and_after() -> None:
    server = replica("rtx-4090", "llama-3.1-8b", kv_tokens=40_000, max_num_seqs=32)
    truth = ScaledStepTime(server.step_time, Scalars(step_scale=1.2))  # type: ignore[arg-type]
    day = recorded(traffic(60, 8.0), truth, server.rules)
    found = calibrate_profile(day, server, ["step_scale"], "mine", ("rtx-4090", "llama-3.1-8b"))
    assert found.before is not None
    assert found.before.e2e_mape > 0.1
    assert found.held_out.e2e_mape < 0.02
    assert found.held_out.requests == 18
    assert "18 requests" in found.calibration.error
    assert found.calibration.error_before == found.before.sentence()


@pytest.mark.slow
def test_a_linear_engine_is_predicted_on_requests_that_the_fit_did_not_see() -> None:
    found = calibrate_linear(recorded(traffic(120, 2.5)), RULES, "mine")
    assert found.held_out.e2e_mape < 0.03
    other = recorded(traffic(120, 3.5, seed=9))
    assert compare_with(other, RULES, found.calibration.step_times).e2e_mape < 0.08  # type: ignore[arg-type]


def test_agreement_of_a_day_with_itself_is_perfect() -> None:
    told = compare_with(recorded(traffic(40)), RULES, ENGINE)
    assert told.e2e_mape == 0
    assert all(figure.error == 0 for figure in told.figures.values())
    assert told.to_json()["requests"] == 40


def test_agreement_counts_a_slower_engine_as_slower() -> None:
    day = recorded(traffic(40))
    slower = ScaledStepTime(ENGINE, Scalars(step_scale=1.5))
    told = compare_with(day, RULES, slower)
    assert told.figures["e2e mean"].error > 0.4
    assert told.figures["throughput"].error < 0
    assert told.e2e_mape == pytest.approx(np.mean(np.abs(_ratio(day, slower) - 1)))


def _ratio(day: object, step_time: object) -> np.ndarray:
    from headway.bench.calibration.replay import replay

    return replay(day, RULES, step_time)[1] / day.e2e_seconds  # type: ignore[arg-type, attr-defined]


def test_a_handful_of_requests_is_no_calibration() -> None:
    with pytest.raises(UserMistake, match="at least 20"):
        calibrate_linear(recorded(traffic(10)), RULES, "mine")


def test_an_engine_that_could_serve_nobody_is_a_mistake() -> None:
    """Not a failure of ours: the limits were named wrongly."""
    short = replace(RULES, max_model_tokens=5)
    with pytest.raises(UserMistake, match="another 30 are longer than the 5 tokens"):
        calibrate_linear(recorded(traffic(30)), short, "mine")


def test_single_tokens_say_nothing_of_steps() -> None:
    day = recorded(replace(traffic(30), output_tokens=np.ones(30, np.int64), max_output_tokens=None))
    with pytest.raises(UserMistake, match="no request of two tokens or more"):
        calibrate_linear(day, RULES, "mine")


def test_a_latency_of_nothing_was_not_measured() -> None:
    day = recorded(traffic(40))
    half = replace(day, e2e_seconds=np.where(np.arange(40) < 25, day.e2e_seconds, 0.0))
    assert compare_with(half, RULES, ENGINE).requests == 25
    assert compare_with(half, RULES, ENGINE).e2e_mape == 0
