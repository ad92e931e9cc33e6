"""The wait forecast: work ahead over the rate it leaves at, corrected by length class."""

from __future__ import annotations

import pytest

from headway.gateway.queueing.wait_forecast import WaitForecast
from tests.support.estimated_request import estimated_request


def test_the_forecast_is_the_work_ahead_over_the_rate_it_leaves_at() -> None:
    forecast = WaitForecast()
    assert forecast.drain_seconds(500.0) is None
    forecast.backlog(True, 0.0)
    for second in range(1, 11):
        forecast.dispatched(100.0, float(second))
    assert forecast.rate() == pytest.approx(100.0, rel=0.1)
    drain_seconds = forecast.drain_seconds(500.0)
    assert drain_seconds is not None
    assert forecast.wait_seconds(estimated_request(0), drain_seconds) == drain_seconds == pytest.approx(5.0, rel=0.1)
    forecast.backlog(False, 10.0)
    rate = forecast.rate()
    forecast.dispatched(9e9, 500.0)  # nobody waited: says nothing of how fast a queue drains
    assert forecast.rate() == rate


def test_what_a_length_class_waits_is_learnt() -> None:
    forecast = WaitForecast()
    forecast.backlog(True, 0.0)
    forecast.dispatched(1_000.0, 10.0)
    for _ in range(100):
        forecast.waited(estimated_request(0, 50), 10.0, 1.0)
    assert forecast.wait_seconds(estimated_request(1, 60), 10.0) == pytest.approx(1.0, rel=0.1)
    assert forecast.wait_seconds(estimated_request(2, 5_000), 10.0) == pytest.approx(10.0, rel=0.1)
