"""The bound of second tries, and the moment before each."""

from __future__ import annotations

from headway.gateway.queueing.retries import Retries
from headway.gateway.settings import RequestSettings
from tests.support.gateway_requests import gateway_request


def test_the_bound_is_a_share_of_the_requests_inside_and_never_below_the_least() -> None:
    """Envoy's default: a fifth of what is active, and three always."""
    retries, settings = Retries(seed=0), RequestSettings()
    requests = [gateway_request(number) for number in range(20)]
    for request in requests[:8]:
        retries.wait(request, float(request.arrived.number))
    assert list(retries.begin(1, settings)) == [0, 1, 2]
    assert list(retries.begin(15, settings)) == []
    assert list(retries.begin(16, settings)) == [3]
    assert retries.ended(requests[19]), "others wait"
    assert retries.ended(requests[0])
    assert list(retries.begin(16, settings)) == [4]
    assert retries.overdue(6.0) == [5, 6]
    retries.ended(requests[5])
    assert [retries.is_waiting(request) for request in requests[4:8]] == [False, False, True, True]
    assert [retries.are_possible(9, RequestSettings(retry_share=s, retries_min=0)) for s in (0.0, 0.1, 0.2)] == [
        False,
        False,
        True,
    ]


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
