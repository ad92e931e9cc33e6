"""What the learned predictors learn, against sums done by hand and laws known beforehand."""

from __future__ import annotations

import math
import random

import pytest

from headway.domain.estimate import PointEstimate
from headway.domain.event import Arrived, Completed
from headway.domain.request import Request
from headway.policies.contracts import LengthPredictor
from headway.policies.prediction.conformal import Conformal, CorrectedEstimate, score
from headway.policies.prediction.external import External
from headway.policies.prediction.histogram import EDGES, Histogram, bin_of
from headway.policies.prediction.one_bit import OneBit
from headway.policies.prediction.past_future_prediction import EmpiricalLaw, PastFuturePrediction, Window
from headway.policies.prediction.running_mean import RunningMean


def request(number: int = 0, prompt_tokens: int = 100, **fields: object) -> Request:
    return Request(number, 0.0, prompt_tokens, **fields)  # type: ignore[arg-type]


def teach(predictor: LengthPredictor, lengths: list[int], **fields: object) -> None:
    for number, length in enumerate(lengths):
        one = request(number, **fields)  # type: ignore[arg-type]
        one.estimate = predictor.predict(one)
        predictor.observe(Arrived(one, 0.0))  # type: ignore[attr-defined]
        predictor.observe(Completed(one, 0.0, length))  # type: ignore[attr-defined]


def exponential(mean: float, count: int, seed: int = 1) -> list[int]:
    lots = random.Random(seed)
    return [1 + int(lots.expovariate(1 / mean)) for _ in range(count)]


class TestHistogram:
    def test_every_length_has_its_bin(self) -> None:
        for length in (1, 2, 8, 9, 10, 100, 12_345, EDGES[-1]):
            position = bin_of(length)
            assert EDGES[position] < length <= EDGES[position + 1]
        assert bin_of(10 * EDGES[-1]) == len(EDGES) - 2

    def test_it_learns_a_law(self) -> None:
        predictor = Histogram(half_life_requests=5_000)
        teach(predictor, exponential(300, 3_000))
        estimate = predictor.predict(request())
        assert estimate.remaining_mean(0) == pytest.approx(300, rel=0.1)
        assert estimate.remaining_quantile(0.5, 0) == pytest.approx(300 * math.log(2), rel=0.1)
        assert estimate.remaining_mean(600) == pytest.approx(300, rel=0.35)  # memoryless, but from few

    @pytest.mark.parametrize("half_life_requests", [1.0, 300.0])  # the first weighs anew every few dozen
    def test_sums_that_are_kept_are_those_of_all_it_learned(self, half_life_requests: float) -> None:
        asked, never_asked = (Histogram(half_life_requests=half_life_requests) for _ in range(2))
        for number, length in enumerate(exponential(100, 200, seed=2)):
            bound = (None, 20, 1)[number % 3]
            for predictor in (asked, never_asked):
                predictor.observe(Completed(request(number, max_output_tokens=bound), 0.0, length))
            asked.predict(request(number, max_output_tokens=bound))
        for bound in (None, 20, 1):
            one = request(max_output_tokens=bound)
            assert repr(asked.predict(one)) == repr(never_asked.predict(one))
            assert asked.predict(one).remaining_mean(0) == never_asked.predict(one).remaining_mean(0)

    def test_tenants_prompts_and_sessions_are_told_apart(self) -> None:
        predictor = Histogram()
        for _ in range(100):
            teach(predictor, [10], tenant="short")
            teach(predictor, [1_000], tenant="long")
            teach(predictor, [300], tenant="long", prompt_tokens=4_000)
        teach(predictor, [20] * 60, tenant="long", session="s")

        def median(**fields: object) -> int:
            return predictor.predict(request(**fields)).remaining_quantile(0.5, 0)  # type: ignore[arg-type]

        assert median(tenant="short") < 12
        assert median(tenant="long", prompt_tokens=4_000) == pytest.approx(300, rel=0.2)
        assert median(tenant="long", session="s") < 40
        assert 10 <= median(tenant="stranger") <= 1_000

    def test_a_kind_seen_once_leans_on_its_parent(self) -> None:
        predictor = Histogram()
        teach(predictor, [500] * 300, tenant="known")
        teach(predictor, [5], tenant="new")
        assert predictor.predict(request(tenant="new")).remaining_quantile(0.5, 0) > 300

    def test_outputs_cut_off_by_their_bound_count_as_far_as_they_got(self) -> None:
        predictor = Histogram(half_life_requests=5_000)
        lengths = exponential(300, 4_000)
        for length in lengths:
            teach(predictor, [min(length, 200)], max_output_tokens=200)
        # Bounded requests are a kind of their own; an unbounded one leans on all, whose hazard below 200 is right.
        estimate = predictor.predict(request(max_output_tokens=None))
        assert estimate.survival(150) == pytest.approx(math.exp(-0.5), abs=0.04)
        assert predictor.predict(request(max_output_tokens=200)).survival(199) > 0.4

    def test_it_forgets(self) -> None:
        predictor = Histogram(half_life_requests=100)
        teach(predictor, [50] * 1_000)
        teach(predictor, [2_000] * 400)
        assert predictor.predict(request()).remaining_quantile(0.5, 0) > 1_000

    def test_kinds_are_bounded(self) -> None:
        predictor = Histogram(kinds_max=50)
        for number in range(500):
            teach(predictor, [10], session=str(number))
        assert len(predictor._counts) == 50

    def test_weights_that_grow_for_ever_are_scaled_back(self) -> None:
        often, once = Histogram(half_life_requests=1), Histogram(half_life_requests=1)
        teach(often, [10] * 500 + [40] * 60)  # 2^560 unscaled
        teach(once, [40] * 60)
        assert often.predict(request()).survival(12) == pytest.approx(once.predict(request()).survival(12), abs=1e-6)


class TestPastFuture:
    def test_the_window_starts_half_full_of_the_longest(self) -> None:
        predictor = PastFuturePrediction(window_requests=10, default_max_tokens=100)
        assert predictor._window.by_size == [100] * 5
        teach(predictor, [7] * 8)
        assert predictor._window.by_size == [7] * 8 + [100] * 2
        teach(predictor, [7] * 8)
        assert predictor._window.by_size == [7] * 10

    def test_before_the_first_token_one_of_the_window_is_drawn_and_capped(self) -> None:
        law = EmpiricalLaw(Window(4, [10, 20, 30, 400]), bound=100)
        assert [law.remaining_quantile(p, 0) for p in (0.1, 0.3, 0.6, 0.9)] == [10, 20, 30, 100]
        assert law.remaining_mean(0) == 40

    def test_after_it_the_published_interpolation(self) -> None:
        law = EmpiricalLaw(Window(4, [10, 20, 30, 40]), bound=100)
        # d = 15: support 15, 20, 30, 40, 100, and u evenly in [0, 4).
        assert law.remaining_quantile(0.25, 15) == 20 - 15
        assert law.remaining_quantile(0.5, 15) == 30 - 15
        assert law.remaining_quantile(0.875, 15) == 70 - 15
        assert law.remaining_mean(15) == pytest.approx((15 / 2 + 20 + 30 + 40 + 100 / 2) / 4 - 15)

    def test_the_one_point_support_that_breaks_the_published_code_leaves_one_token(self) -> None:
        law = EmpiricalLaw(Window(4, [10, 20]), bound=50)
        assert law.remaining_quantile(0.7, 50) == 1
        assert law.remaining_mean(60) == 1

    def test_the_law_moves_with_the_window(self) -> None:
        predictor = PastFuturePrediction(window_requests=4, default_max_tokens=100)
        estimate = predictor.predict(request())
        before = estimate.remaining_quantile(0.5, 0)
        teach(predictor, [3] * 4)
        assert (before, estimate.remaining_quantile(0.5, 0)) == (100, 3)


class TestOneBit:
    def test_threshold_and_class_means_are_learnt(self) -> None:
        predictor = OneBit()
        for _ in range(50):
            teach(predictor, [10, 30], tenant="short")
            teach(predictor, [500, 700], tenant="long")
        assert predictor.threshold_tokens == 30
        assert predictor.predict(request(tenant="short")).output_tokens == 20
        assert predictor.predict(request(tenant="long")).output_tokens == 600
        assert predictor.share_long(request(tenant="stranger")) == pytest.approx(0.5, abs=0.05)

    def test_the_window_forgets_and_keeps_no_empty_kind(self) -> None:
        predictor = OneBit(window_requests=10)
        teach(predictor, [10] * 20, tenant="gone")
        teach(predictor, [99] * 10, tenant="here")
        assert predictor._by_size == [99] * 10
        assert all("gone" not in str(kind) for kind in predictor._lengths)


class TestConformal:
    @pytest.mark.parametrize("mean", [60.0, 300.0, 3_000.0])
    def test_a_wrong_inner_law_is_made_honest(self, mean: float) -> None:
        """The inner law is right about nothing: always the same mean, whatever comes."""
        predictor = Conformal(inner=RunningMean(prior_tokens=300, prior_requests=1e9, half_life_requests=1e9))
        teach(predictor, exponential(mean, 400))
        estimate = predictor.predict(request())
        fresh = exponential(mean, 4_000, seed=2)
        for probability in (0.25, 0.5, 0.9):
            held = sum(length <= estimate.remaining_quantile(probability, 0) for length in fresh) / len(fresh)
            assert held == pytest.approx(probability, abs=0.06)

    def test_a_constant_length_is_learnt_through_a_point(self) -> None:
        predictor = Conformal(inner=External())  # as long as the prompt
        teach(predictor, [450] * 100, prompt_tokens=100)
        estimate = predictor.predict(request(prompt_tokens=200))
        assert estimate.remaining_quantile(0.5, 0) == pytest.approx(900, rel=0.01)

    def test_until_there_is_something_to_go_by_the_inner_law_stands(self) -> None:
        predictor = Conformal(least_requests=20)
        teach(predictor, [10] * 19)
        assert not isinstance(predictor.predict(request()), CorrectedEstimate)
        teach(predictor, [10])
        assert isinstance(predictor.predict(request()), CorrectedEstimate)

    @pytest.mark.parametrize("bound", [None, 4_096])
    def test_who_outlives_the_window_goes_on_as_the_inner_law_says_up_to_the_bound(self, bound: int | None) -> None:
        predictor = Conformal()
        teach(predictor, [50 + number % 100 for number in range(400)], max_output_tokens=bound)
        estimate = predictor.predict(request(max_output_tokens=bound))
        assert isinstance(estimate, CorrectedEstimate)
        for produced in (155, 600, 2_000):
            for probability in (0.1, 0.5, 0.9):
                inner = estimate.inner.remaining_quantile(probability, produced)
                assert estimate.remaining_quantile(probability, produced) == inner
        assert estimate.remaining_mean(600) > 100
        if bound is not None:
            assert estimate.remaining_quantile(0.99, 4_000) <= 96
            assert estimate.remaining_quantile(0.99, 4_096) == 1

    def test_what_somebody_else_foretold_is_not_held_against_the_inner_law(self) -> None:
        predictor = Conformal(inner=External())
        for number in range(40):
            one = request(number)
            one.estimate = PointEstimate(1_000_000, "a client")
            predictor.observe(Arrived(one, 0.0))
            predictor.observe(Completed(one, 0.0, 10))
        assert not isinstance(predictor.predict(request()), CorrectedEstimate)

    def test_over_a_law_that_moves_the_corrected_one_moves(self) -> None:
        still, moving = Conformal(), Conformal(inner=PastFuturePrediction())
        for predictor, moves in ((still, False), (moving, True)):
            teach(predictor, [10] * 40)
            estimate = predictor.predict(request())
            assert isinstance(estimate, CorrectedEstimate)
            assert estimate.law_moves is moves

    def test_the_score_rises_with_the_length_and_is_even_under_the_true_law(self) -> None:
        estimate = RunningMean(prior_tokens=300).predict(request())
        scores = [score(estimate, length) for length in range(1, 5_000, 7)]
        assert scores == sorted(scores)
        drawn = sorted(score(estimate, length) for length in exponential(300, 2_000))
        assert drawn[500] == pytest.approx(0.25, abs=0.04)
        assert drawn[1_500] == pytest.approx(0.75, abs=0.04)


def quantiles(asked: Request) -> dict[float, float]:
    return {0.9: 400.0, 0.5: 100.0}


def nonsense(asked: Request) -> float:
    return math.nan


def endless(asked: Request) -> dict[float, float]:
    return {0.5: 100.0, 0.9: math.inf}


class TestExternal:
    def test_a_number_is_a_point_and_quantiles_are_a_law(self) -> None:
        assert External().predict(request(prompt_tokens=77)).remaining_quantile(0.5, 0) == 77
        estimate = External(function=f"{__name__}:quantiles").predict(request())
        assert [estimate.remaining_quantile(p, 0) for p in (0.25, 0.5, 0.9)] == [50, 100, 400]

    @pytest.mark.parametrize(
        ("function", "said"),
        [
            ("nocolon", "must be written package.module:name"),
            ("no_such_module_here:f", "cannot be loaded"),
            ("os:sep", "is not callable but str"),
        ],
    )
    def test_what_cannot_be_asked_is_said_at_once(self, function: str, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            External(function=function)

    def test_an_answer_that_is_no_length_is_said(self) -> None:
        with pytest.raises(ValueError, match="answered nan; it must return output tokens"):
            External(function=f"{__name__}:nonsense").predict(request())
        with pytest.raises(ValueError, match=r"inf\}; it must return output tokens"):
            External(function=f"{__name__}:endless").predict(request())
