"""Goodput first: just in time, the cheap before the dear, the hopeless last."""

from __future__ import annotations

import math

import pytest

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.request import Request
from headway.policies.ordering.goodput_first import GoodputFirst

COSTS = ServiceCosts(prefill_seconds_per_token=1e-3, decode_seconds_per_token=1e-2)


def request(number: int, prompt_tokens: int, length: int, deadline: float | None, arrived_at: float = 0.0) -> Request:
    made = Request(number, arrived_at, prompt_tokens, deadline=deadline)
    made.estimate = PointEstimate(length, "test")
    return made


def order(ordering: GoodputFirst, waiting: list[Request], now: float) -> list[object]:
    """Who goes first, second, … at one moment."""
    left, served = list(waiting), []
    while left:
        lanes: dict[object, Request] = {}
        for one in sorted(left, key=ordering.rank, reverse=True):
            lanes[ordering.lane(one)] = one
        head = lanes[ordering.choose(lanes, now)]
        left.remove(head)
        served.append(head.id)
    return served


def test_who_must_start_now_goes_before_the_cheap_and_the_hopeless_go_last() -> None:
    ordering = GoodputFirst(costs=COSTS)
    hopeless = request(0, 2_000, 10, deadline=1.0)  # two seconds of prefill
    urgent_dear = request(1, 1_000, 200, deadline=1.5)
    urgent_cheap = request(2, 100, 10, deadline=0.4)
    later = request(3, 10, 1, deadline=9.0)
    whenever = request(4, 20, 1, deadline=None)
    assert order(ordering, [hopeless, urgent_dear, urgent_cheap, later, whenever], 0.0) == [2, 1, 3, 4, 0]


def test_the_hopeless_go_by_arrival() -> None:
    ordering = GoodputFirst(costs=COSTS)
    late, early = request(0, 5, 1, 1.0, arrived_at=0.5), request(1, 5_000, 1, 1.6, arrived_at=0.1)
    assert order(ordering, [late, early], 5.0) == [1, 0]


def test_the_next_change_is_the_first_that_must_start_or_can_no_longer() -> None:
    ordering = GoodputFirst(costs=COSTS, guard_seconds=0.5)
    a, b = request(0, 100, 1, deadline=3.0), request(1, 100, 1, deadline=8.0)
    heads: dict[object, Request] = {ordering.lane(a): a, ordering.lane(b): b}
    assert ordering.next_change(heads, 0.0) == pytest.approx(2.4)
    assert ordering.next_change(heads, 2.5) == pytest.approx(2.9)
    assert ordering.next_change(heads, 3.0) == pytest.approx(7.4)
    assert ordering.next_change(heads, 9.0) == math.inf


def test_a_request_that_outlived_its_estimate_is_weighed_by_the_next() -> None:
    ordering = GoodputFirst(costs=COSTS)
    resumed = request(0, 100, 50, None)
    resumed.produced_tokens = 60
    assert ordering.rank(resumed) == pytest.approx(0.16 + 40 * 0.01)  # 100 believed now, 40 to come


def test_time_per_token_is_allowed_for_where_a_deadline_is_for_the_last() -> None:
    plain, per_token = GoodputFirst(costs=COSTS), GoodputFirst(costs=COSTS, tpot_seconds=0.02)
    one, other = request(0, 100, 101, 1.0), request(1, 100, 101, 50.0)
    for ordering, change in ((plain, 0.9), (per_token, 1.9)):
        heads: dict[object, Request] = {ordering.lane(one): one, ordering.lane(other): other}
        assert ordering.next_change(heads, 0.85 if change < 1 else 1.85) == pytest.approx(change)


def test_bad_options_are_said() -> None:
    with pytest.raises(ValueError, match="quantile must be between 0 and 1"):
        GoodputFirst(costs=COSTS, quantile=1.0)
    with pytest.raises(ValueError, match="name a predictor with --prediction"):
        GoodputFirst(costs=COSTS).rank(Request(0, 0.0, 5))
