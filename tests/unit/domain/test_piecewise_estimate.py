"""A survival curve: its quantiles, means and conditional laws against plain sums over whole lengths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.estimate import GeometricEstimate, PointEstimate, remaining_survival, remaining_survivals
from headway.domain.piecewise_estimate import PiecewiseEstimate
from headway.testing.strategies import EmpiricalEstimate


@st.composite
def curves(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    steps = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    edges = [0]
    for step in steps:
        edges.append(edges[-1] + step)
    falls = sorted(draw(st.lists(st.floats(0, 1), min_size=len(steps), max_size=len(steps))), reverse=True)
    return edges, [1.0, *falls]


def masses(estimate: PiecewiseEstimate, up_to: int) -> list[float]:
    return [estimate.survival(x) - estimate.survival(x + 1) for x in range(up_to)]


@given(curve=curves(), produced=st.integers(0, 80))
def test_mean_and_survival_are_those_of_the_lengths_one_by_one(
    curve: tuple[list[int], list[float]], produced: int
) -> None:
    estimate = PiecewiseEstimate(*curve, "test")
    left = estimate.survival(produced)
    if left < 1e-6:
        return
    probabilities = masses(estimate, 400)
    mean = sum((x + 1 - produced) * p for x, p in enumerate(probabilities) if x + 1 > produced) / left
    assert estimate.remaining_mean(produced) == pytest.approx(max(1.0, mean), rel=1e-6)
    several = [0, 1, 2, 7, 40, 200]
    one_by_one = [estimate.remaining_survival(tokens, produced) for tokens in several]
    assert estimate.remaining_survivals(several, produced) == pytest.approx(one_by_one)
    assert one_by_one == pytest.approx([sum(probabilities[produced + tokens :]) / left for tokens in several], abs=1e-9)


@given(curve=curves(), produced=st.integers(0, 80), probability=st.floats(0.01, 0.99))
def test_a_quantile_is_the_least_length_likely_enough(
    curve: tuple[list[int], list[float]], produced: int, probability: float
) -> None:
    estimate = PiecewiseEstimate(*curve, "test")
    if estimate.survival(produced) < 1e-6:
        return
    tokens = estimate.remaining_quantile(probability, produced)
    assert 1 - estimate.remaining_survival(tokens, produced) >= probability - 1e-6
    if tokens > 1:
        assert 1 - estimate.remaining_survival(tokens - 1, produced) <= probability + 1e-6


@given(curve=curves(), bound=st.integers(1, 100))
def test_the_bound_cuts_off_and_changes_nothing_before(curve: tuple[list[int], list[float]], bound: int) -> None:
    free, bounded = PiecewiseEstimate(*curve, "test"), PiecewiseEstimate(*curve, "test", bound)
    assert bounded.survival(bound) == 0
    for tokens in range(bound):
        assert bounded.survival(tokens) == pytest.approx(free.survival(tokens), abs=1e-9)


def test_whoever_outlives_it_goes_on_as_long_again() -> None:
    estimate = PiecewiseEstimate([0, 10], [1.0, 0.0], "test")
    assert estimate.remaining_mean(50) == 50
    assert estimate.remaining_quantile(0.75, 50) == 50  # Pareto of index 2: half the way is gone by twice the length
    assert estimate.remaining_survival(50, 50) == 0.25


@pytest.mark.parametrize("curve", [([0], [1.0]), ([1, 2], [1.0, 0.5]), ([0, 2], [0.9, 0.5]), ([0, 1], [1.0])])
def test_what_is_no_curve_is_refused(curve: tuple[list[int], list[float]]) -> None:
    with pytest.raises(ValueError, match="a survival curve needs two points"):
        PiecewiseEstimate(*curve, "test")


def test_survival_of_the_other_estimates() -> None:
    point, geometric = PointEstimate(10, "p"), GeometricEstimate(4, 20, "g")
    assert [remaining_survival(point, tokens, 0) for tokens in (0, 9, 10)] == [1.0, 1.0, 0.0]
    assert remaining_survival(point, 9, 10) == 1.0
    assert remaining_survivals(geometric, [0, 1, 2, 20], 0) == pytest.approx([1.0, 0.75, 0.5625, 0.0])


def test_an_estimate_that_knows_quantiles_only_is_searched() -> None:
    lengths = EmpiricalEstimate([10, 20, 30, 40])
    assert remaining_survival(lengths, 5, 0) == 1.0
    assert remaining_survival(lengths, 20, 0) == pytest.approx(0.5, abs=1e-3)
    assert remaining_survival(lengths, 40, 0) == 0.0
