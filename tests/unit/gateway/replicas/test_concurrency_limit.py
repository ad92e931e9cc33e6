"""The concurrency limit grows while it is used, and falls on congestion."""

from __future__ import annotations

from headway.gateway.replicas.concurrency_limit import ConcurrencyLimit


def test_the_limit_grows_while_it_is_used_and_backs_off_at_most_once_a_second() -> None:
    limit = ConcurrencyLimit()
    start = limit.requests_max
    limit.answered(1, None, 0.0)
    assert limit.requests_max == start
    for _ in range(10):
        limit.answered(limit.requests_max, None, 0.0)
    assert limit.requests_max == start + 10
    limit.congested(40, 1.0)
    limit.congested(40, 1.5)
    assert limit.requests_max == 36
    for _ in range(37):
        limit.answered(36, None, 3.0)
    assert limit.requests_max == 37
    for at in range(200):
        limit.congested(0, 10.0 + 2 * at)
    assert limit.requests_max == 1
    assert ConcurrencyLimit(fixed=5).requests_max == 5


def test_without_reports_a_swollen_time_to_first_byte_is_congestion() -> None:
    limit = ConcurrencyLimit()
    for _ in range(10):
        limit.answered(limit.requests_max, 1.0, 0.0)
    grown = limit.requests_max
    limit.answered(grown, 4.0, 5.0)
    assert limit.requests_max == grown + 1
    limit.answered(grown, 6.0, 6.0)
    assert limit.requests_max == int(0.9 * grown)
