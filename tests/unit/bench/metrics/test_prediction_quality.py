"""Calibration: an honest law is found honest, a point is found to be a point, and the numbers are the textbook's."""

from __future__ import annotations

import numpy as np
import pytest

from headway.bench.metrics.prediction_quality import CalibrationListener, PredictionCalibration
from headway.domain.estimate import GeometricEstimate, LengthEstimate, PointEstimate
from headway.domain.event import Arrived, Completed
from headway.domain.request import Request


def judged(estimates: list[LengthEstimate], lengths: list[int], sample: int = 2_000) -> PredictionCalibration:
    listener = CalibrationListener(len(lengths), sample)
    for number, (estimate, length) in enumerate(zip(estimates, lengths, strict=True)):
        request = Request(number, 0.0, 10)
        request.estimate = estimate
        listener.observe(Arrived(request, 0.0))
        listener.observe(Completed(request, 1.0, length))
    result = listener.result()
    assert result is not None
    return result


def test_the_true_law_is_found_honest() -> None:
    lengths = np.random.default_rng(1).geometric(1 / 200, 4_000).tolist()
    told = judged([GeometricEstimate(200, None, "true")] * len(lengths), lengths, sample=4_000)
    assert told.coverage["50"] == pytest.approx(0.5, abs=0.03)
    assert told.coverage["90"] == pytest.approx(0.9, abs=0.02)
    assert told.coverage["99"] == pytest.approx(0.99, abs=0.007)
    assert told.crps_tokens == pytest.approx(100, rel=0.06)  # of an exponential law: half its mean
    assert abs(told.bias_tokens) < 8
    assert told.completions == 4_000


def test_a_point_has_no_spread_and_its_crps_is_its_absolute_error() -> None:
    told = judged([PointEstimate(100, "point")] * 2, [80, 140])
    assert told.coverage == {"50": 0.0, "90": 0.0, "99": 0.0}
    assert told.crps_tokens == pytest.approx(30)
    assert told.pinball_loss_tokens["90"] == pytest.approx((0.1 * 20 + 0.9 * 40) / 2)
    assert told.bias_tokens == pytest.approx(-10)
    assert told.made_by == "point"


def test_of_a_long_trace_every_nth_is_judged() -> None:
    told = judged([PointEstimate(5, "point")] * 1_000, [5] * 1_000, sample=100)
    assert told.completions == 100
    assert told.coverage["99"] == 1.0


def test_nothing_completed_is_nothing_told() -> None:
    assert CalibrationListener(10).result() is None
