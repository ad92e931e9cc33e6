"""The bound of second tries, and the moment before each."""

from __future__ import annotations

from headway.gateway.queueing.retries import Retries
from headway.gateway.settings import RequestSettings
from tests.support.gateway_requests import gateway_request


def test_the_bound_is_a_share_of_the_requests_inside_and_never_below_the_least() -> None:
    """Envoy's default: a fifth of what is active, and three always."""
    retries, settings = Retries(seed=0), RequestSettings()
    requests = [gateway_request(number) for number in range(20)]
    for request in requests[:3]:
        assert retries.has_place(1, settings)
        retries.begin(request)
    assert not retries.has_place(15, settings)
    assert retries.has_place(16, settings)
    for request in requests:
        retries.ended(request)  # those that were tried once too
    assert retries.has_place(0, settings)


def test_the_moment_before_a_second_try_is_drawn_from_the_seed() -> None:
    settings = RequestSettings(backoff_seconds=2.0)
    drawn = [[Retries(seed).backoff_seconds(settings) for seed in (1, 2, 3)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3
    retries = Retries(0)
    many = [retries.backoff_seconds(settings) for _ in range(200)]
    assert 1.0 <= min(many) < 1.2
    assert 2.8 < max(many) <= 3.0


def test_a_second_try_needs_time() -> None:
    retries, settings = Retries(0), RequestSettings(backoff_seconds=2.0)
    assert retries.has_time(gateway_request(), 1e9, settings)
    assert retries.has_time(gateway_request(ends_by=103.1), 100.0, settings)
    assert not retries.has_time(gateway_request(ends_by=103.0), 100.0, settings)
