"""Predictors: what each says, and that the noise is as stated."""

from __future__ import annotations

import math
import statistics

import pytest

from headway.domain.event import Admitted, Cancelled, Completed
from headway.domain.request import Request
from headway.policies.prediction.declared_max import DeclaredMax
from headway.policies.prediction.oracle import Oracle
from headway.policies.prediction.oracle_noisy import OracleNoisy
from headway.policies.prediction.running_mean import RunningMean


def request(id: int = 0, max_output_tokens: int | None = None) -> Request:
    return Request(id, 0.0, 10, max_output_tokens=max_output_tokens)


def test_oracle_tells_the_truth_by_id() -> None:
    truth = {1: 17, 2: 4}
    oracle = Oracle(truth=truth.__getitem__)
    assert [oracle.predict(request(i)).remaining_mean(0) for i in (1, 2)] == [17, 4]
    assert oracle.predict(request(1)).made_by == "oracle"


def errors(sigma: float, seed: int = 0, count: int = 4000) -> list[float]:
    noisy = OracleNoisy(truth=lambda _: 1_000_000, seed=seed, sigma=sigma)
    return [math.log(noisy.predict(request(i)).output_tokens / 1_000_000) for i in range(count)]


def test_the_noise_is_log_normal_with_median_1_and_the_stated_sigma() -> None:
    drawn = errors(0.7)
    assert statistics.median(drawn) == pytest.approx(0, abs=0.05)
    assert statistics.stdev(drawn) == pytest.approx(0.7, rel=0.05)
    law = statistics.NormalDist(0, 0.7)
    drawn.sort()
    worst = max(abs(law.cdf(error) - (i + 0.5) / len(drawn)) for i, error in enumerate(drawn))
    assert worst < 1.95 / math.sqrt(len(drawn))  # Kolmogorov–Smirnov, p = 1e-3
    mean_factor = statistics.fmean(math.exp(error) for error in drawn)
    assert mean_factor == pytest.approx(math.exp(0.7**2 / 2), rel=0.05)


def test_the_noise_depends_on_seed_and_id_alone() -> None:
    assert errors(0.7, seed=1, count=50) == errors(0.7, seed=1, count=50)
    assert errors(0.7, seed=1, count=50) != errors(0.7, seed=2, count=50)
    noisy = OracleNoisy(truth=lambda _: 1000, seed=1)
    forwards = {i: noisy.predict(request(i)).output_tokens for i in range(20)}
    backwards = {i: noisy.predict(request(i)).output_tokens for i in reversed(range(20))}
    assert forwards == backwards


def test_pinned_so_that_published_days_can_be_repeated() -> None:
    noisy = OracleNoisy(truth=lambda _: 1_000_000, seed=3)
    assert [noisy.predict(request(i)).output_tokens for i in range(4)] == [2016942, 611312, 742899, 1597042]


def test_a_length_beyond_reason_is_one_that_a_float_holds() -> None:
    assert OracleNoisy(truth=lambda _: 10**300, seed=0, sigma=0.0).predict(request(1)).output_tokens == 2**53


def test_more_sigma_stretches_the_same_error() -> None:
    for small, large in zip(errors(0.5, count=200), errors(1.0, count=200), strict=True):
        assert large == pytest.approx(2 * small, abs=1e-4)


def test_no_noise_is_the_oracle_and_no_bound_is_passed() -> None:
    exact = OracleNoisy(truth=lambda i: 10 + int(i), seed=3, sigma=0.0)
    assert [exact.predict(request(i)).output_tokens for i in range(5)] == [10, 11, 12, 13, 14]
    wild = OracleNoisy(truth=lambda _: 60, seed=3, sigma=3.0)
    drawn = [wild.predict(request(i, max_output_tokens=100)).output_tokens for i in range(200)]
    assert (min(drawn), max(drawn)) == (1, 100)


def test_declared_max_takes_the_client_at_its_word() -> None:
    assert DeclaredMax().predict(request(max_output_tokens=77)).output_tokens == 77
    assert DeclaredMax().predict(request()).output_tokens == 1024
    assert DeclaredMax(default_tokens=9).predict(request()).output_tokens == 9


def test_running_mean_starts_at_its_prior_and_weighs_it_by_count() -> None:
    mean = RunningMean(prior_tokens=100, prior_requests=1, half_life_requests=1)
    assert mean.predict(request()).remaining_mean(0) == 100
    mean.observe(Completed(request(), 1.0, 40))
    assert mean.predict(request()).remaining_mean(0) == pytest.approx((0.5 * 100 + 40) / 1.5)


def test_running_mean_halves_the_past_in_a_half_life() -> None:
    mean = RunningMean(prior_tokens=1000, prior_requests=1e6, half_life_requests=50)
    before = mean._weight
    for _ in range(50):
        mean.observe(Completed(request(), 1.0, 1))
    learned = sum(0.5 ** (k / 50) for k in range(50))
    assert mean._weight == pytest.approx(before / 2 + learned)


def test_running_mean_settles_on_the_mean_and_follows_a_change() -> None:
    mean = RunningMean()
    for length in [100, 300] * 1000:
        mean.observe(Completed(request(), 1.0, length))
    assert mean.predict(request()).remaining_mean(0) == pytest.approx(200, rel=0.01)
    for length in [1000] * 1000:
        mean.observe(Completed(request(), 1.0, length))
    assert mean.predict(request()).remaining_mean(0) == pytest.approx(1000, rel=0.01)


def test_running_mean_learns_from_completions_only() -> None:
    mean = RunningMean()
    before = mean.predict(request()).remaining_mean(0)
    mean.observe(Admitted(request(), 1.0))
    mean.observe(Cancelled(request(), 1.0))
    assert mean.predict(request()).remaining_mean(0) == before


def test_running_mean_survives_completions_without_a_token() -> None:
    mean = RunningMean(prior_tokens=1, prior_requests=1)
    mean.observe(Completed(request(), 1.0, 0))
    assert mean.predict(request()).remaining_mean(0) == 1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: OracleNoisy(truth=lambda _: 1, seed=0, sigma=-1.0), "sigma must be at least 0"),
        (lambda: OracleNoisy(truth=lambda _: 1, seed=0, sigma=math.nan), "sigma must be at least 0"),
        (lambda: DeclaredMax(default_tokens=0), "default_tokens must be at least 1"),
        (lambda: RunningMean(prior_tokens=0.5), "prior_tokens must be at least 1"),
        (lambda: RunningMean(half_life_requests=math.inf), "half_life_requests must be at least 1, got inf"),
    ],
)
def test_senseless_options_are_refused(make: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()  # type: ignore[operator]
