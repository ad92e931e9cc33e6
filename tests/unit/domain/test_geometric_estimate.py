"""The memoryless estimate, against sums over its law."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.estimate import GeometricEstimate


@given(st.integers(1, 300), st.integers(1, 400), st.integers(0, 500))
def test_cut_off_mean_is_the_sum_of_survival(mean: int, bound: int, produced: int) -> None:
    estimate = GeometricEstimate(mean, bound, "test")
    left = max(1, bound - produced)
    survival = sum((1 - 1 / mean) ** k for k in range(left))  # E[min(G, n)] = Σ P(G > k), k < n
    assert estimate.remaining_mean(produced) == pytest.approx(survival)
    assert 1 <= estimate.remaining_mean(produced) <= left + 1e-9


@given(st.floats(1.0, 1e6))
def test_without_a_bound_as_much_is_to_come_as_at_first(mean: float) -> None:
    estimate = GeometricEstimate(mean, None, "test")
    assert estimate.remaining_mean(0) == estimate.remaining_mean(12_345) == mean


@given(st.floats(1.01, 1000), st.floats(0.01, 0.99))
def test_quantile_is_the_least_length_that_suffices(mean: float, probability: float) -> None:
    tokens = GeometricEstimate(mean, None, "test").remaining_quantile(probability, 0)
    ends_by = [1 - (1 - 1 / mean) ** n for n in (tokens - 1, tokens)]
    assert ends_by[1] >= probability - 1e-12
    assert tokens == 1 or ends_by[0] < probability + 1e-12


def test_quantile_stops_at_the_bound() -> None:
    estimate = GeometricEstimate(100.0, 50, "test")
    assert estimate.remaining_quantile(0.99, 0) == 50
    assert estimate.remaining_quantile(0.99, 45) == 5
    assert estimate.remaining_quantile(0.99, 60) == 1
    assert GeometricEstimate(1.0, None, "test").remaining_quantile(0.99, 7) == 1


@pytest.mark.parametrize("mean", [0.5, float("inf"), float("nan")])
def test_no_request_has_less_than_one_token(mean: float) -> None:
    with pytest.raises(ValueError, match="mean_tokens must be at least 1"):
        GeometricEstimate(mean, None, "test")
