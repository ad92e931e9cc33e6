"""The wait forecast: work ahead over the rate it leaves at, corrected by length class."""

from __future__ import annotations

import pytest

from headway.gateway.queueing.wait_forecast import WaitForecast, work_of
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


def test_the_rate_by_hand() -> None:
    """What left long ago counts half after 30 s; less than 3 s of backlog says nothing; nor does nothing that left."""
    forecast = WaitForecast()
    forecast.backlog(True, 0.0)
    forecast.dispatched(300.0, 2.9)
    assert forecast.rate() is None
    forecast.dispatched(300.0, 3.2)
    assert forecast.rate() == pytest.approx((300 * 2 ** (-0.3 / 30) + 300) / (2.9 * 2 ** (-0.3 / 30) + 0.3))
    forecast.dispatched(0.0, 33.2)
    first = 300 * 2 ** (-0.3 / 30) + 300
    seconds = (2.9 * 2 ** (-0.3 / 30) + 0.3) / 2 + 30
    assert forecast.rate() == pytest.approx(first / 2 / seconds)
    idle = WaitForecast()
    idle.backlog(True, 0.0)
    idle.backlog(True, 10.0)
    assert idle.rate() is None
    idle.backlog(False, 10.0)
    idle.backlog(True, 1_000.0)
    idle.dispatched(500.0, 1_010.0)
    assert idle.rate() == pytest.approx(500 / (10 * 2 ** (-10 / 30) + 10)), "while none waited no time passed"


def test_a_share_is_taken_first_and_then_a_tenth_at_a_time_up_to_three() -> None:
    forecast = WaitForecast()
    forecast.backlog(True, 0.0)
    forecast.dispatched(1_000.0, 10.0)

    def share() -> float | None:
        return forecast.wait_seconds(estimated_request(1, 60), 1.0)

    assert share() == 1.0
    forecast.waited(estimated_request(0, 50), 10.0, 5.0)
    assert share() == 0.5
    forecast.waited(estimated_request(0, 50), 10.0, 15.0)
    assert share() == pytest.approx(0.5 + 0.1 * (1.5 - 0.5))
    forecast.waited(estimated_request(0, 50), 0.0, 15.0)
    assert share() == pytest.approx(0.6)
    forecast.waited(estimated_request(0, 5_000), 1.0, 15.0)
    assert forecast.wait_seconds(estimated_request(2, 5_000), 1.0) == 3.0


def test_the_work_of_a_request() -> None:
    """Prompt tokens to compute, and twice the output expected, of every sequence."""
    request = estimated_request(0, 50)
    request.cached_prompt_tokens = 20
    request.sequences = 3
    assert request.estimate is not None
    assert work_of(request) == 30 + 2 * request.estimate.remaining_mean(0) * 3


def test_a_replica_that_goes_down_takes_its_share_of_the_speed_at_once() -> None:
    forecast = WaitForecast()
    forecast.backlog(True, 0.0)
    for second in range(1, 11):
        forecast.dispatched(100.0, float(second))
    before = forecast.drain_seconds(500.0)
    assert before is not None
    forecast.speed_up(0.25, 10.0)
    assert forecast.drain_seconds(500.0) == pytest.approx(4 * before)
    for second in range(11, 100):
        forecast.dispatched(25.0, float(second))
    assert forecast.rate() == pytest.approx(25.0, rel=0.05), "what is measured meanwhile is a quarter's"
    forecast.speed_up(1.0, 100.0)
    assert forecast.rate() == pytest.approx(100.0, rel=0.05)
    forecast.speed_up(0.0, 100.0)
    assert forecast.rate() is None
    assert forecast.drain_seconds(500.0) is None
