"""Gittins: the index against brute force, its laws, and the order of requests."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.estimate import PointEstimate
from headway.domain.event import Arrived
from headway.domain.piecewise_estimate import PiecewiseEstimate
from headway.domain.request import Request
from headway.policies.ordering.gittins import Gittins, gittins_index
from headway.policies.ordering.smallest_volume_first import volume
from headway.testing.examples import examples

costs = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=20).map(sorted)


def test_the_worked_example() -> None:
    """1, 10 and 100 with 0.3, 0.3 and 0.4: better tried than a sure 20, whatever its mean of 43.3."""
    assert gittins_index([1] * 3 + [10] * 3 + [100] * 4) == pytest.approx(10 / 3)
    assert gittins_index([20] * 10) == 20


@given(costs, st.integers(0, 40))
@settings(max_examples=examples(200))
def test_no_amount_of_work_is_a_better_bet(sizes: list[float], point: int) -> None:
    invested = sizes[0] + (sizes[-1] - sizes[0]) * point / 40
    finished = sum(size <= invested for size in sizes) / len(sizes)
    expected = sum(min(size, invested) for size in sizes) / len(sizes)
    assert gittins_index(sizes) <= expected / finished * (1 + 1e-9)


@given(costs)
@settings(max_examples=examples(200))
def test_it_is_at_most_the_mean_and_at_least_the_least(sizes: list[float]) -> None:
    assert sizes[0] * (1 - 1e-9) <= gittins_index(sizes) <= sum(sizes) / len(sizes) * (1 + 1e-9)


@given(costs, st.floats(0.01, 100))
@settings(max_examples=examples(200))
def test_it_scales_with_the_costs(sizes: list[float], factor: float) -> None:
    assert gittins_index([size * factor for size in sizes]) == pytest.approx(gittins_index(sizes) * factor)


def request(prompt_tokens: int, estimate: PointEstimate | PiecewiseEstimate) -> Request:
    made = Request(0, 0.0, prompt_tokens)
    made.estimate = estimate
    return made


def sure(prompt_tokens: int, output_tokens: int) -> Request:
    return request(prompt_tokens, PointEstimate(output_tokens, "test"))


MAYBE_SHORT = PiecewiseEstimate([0, 10, 20, 990, 1_010], [1.0, 1.0, 0.5, 0.5, 0.0], "test")
"""Half of them end after some 15 tokens, half after 1,000."""


def test_a_request_that_may_end_soon_is_tried_before_a_sure_one_that_costs_less_in_the_mean() -> None:
    order = Gittins()
    order.observe(Arrived(sure(100, 500), 0.0))
    assert volume(100, 600) < (volume(100, 15) + volume(100, 1_000)) / 2
    assert order.rank(request(100, MAYBE_SHORT)) < order.rank(sure(100, 600))


def test_with_the_tail_counted_it_stands_back() -> None:
    order = Gittins(tail_weight=2.0)
    order.observe(Arrived(sure(100, 500), 0.0))
    assert order.rank(request(100, MAYBE_SHORT)) > order.rank(sure(100, 600))


def test_prefill_and_memory_count_alike() -> None:
    order = Gittins()
    order.observe(Arrived(sure(100, 50), 0.0))
    assert order.rank(sure(100, 50)) == pytest.approx(2.0)
    assert order.rank(sure(200, 50)) > order.rank(sure(100, 50)) < order.rank(sure(100, 100))


def test_before_any_arrival_and_without_an_estimate() -> None:
    assert Gittins().rank(sure(10, 10)) > 0
    with pytest.raises(ValueError, match="needs: name a predictor"):
        Gittins().rank(Request("r", 0.0, 10))
    with pytest.raises(ValueError, match="tail_weight must be at least 0"):
        Gittins(tail_weight=-math.inf)
