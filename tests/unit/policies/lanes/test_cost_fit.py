"""The cost fit: an exact power law is found, wild points do not move it, and busy servers are read rightly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headway.domain.event import Admitted, Cancelled, FirstToken
from headway.domain.request import Request
from headway.policies.lanes.cost_fit import CostFit, PowerLaw, PrefillPoint, fit_beyond_overhead, fit_power_law

PRIOR = PowerLaw(1e-4)


def points(count: int, law: PowerLaw, *, overhead: float = 0.0, wild: float = 0.0, seed: int = 0) -> list[PrefillPoint]:
    random = np.random.default_rng(seed)
    made = []
    for tokens in random.integers(16, 8_192, count).tolist():
        seconds = overhead + law.seconds(tokens) * math.exp(random.normal(0, 0.05))
        made.append(PrefillPoint(tokens, seconds * (1_000 if random.random() < wild else 1)))
    return made


def test_an_exact_power_is_found_exactly() -> None:
    exact = [PrefillPoint(tokens, 2e-5 * tokens**1.3) for tokens in range(50, 1_000, 37)]
    law = fit_power_law(exact, PRIOR)
    assert law.exponent == pytest.approx(1.3, rel=1e-9)
    assert law.coefficient == pytest.approx(2e-5, rel=1e-9)
    assert law.floor_seconds == min(point.seconds for point in exact)
    assert law.seconds(1) == law.floor_seconds


def test_a_fifth_of_wild_points_moves_it_little_where_least_squares_is_lost() -> None:
    noisy = points(200, PowerLaw(3e-5, 1.1), wild=0.2)
    law = fit_power_law(noisy, PRIOR)
    assert law.exponent == pytest.approx(1.1, abs=0.1)
    assert law.seconds(2_000) == pytest.approx(PowerLaw(3e-5, 1.1).seconds(2_000), rel=0.25)
    least_squares = np.polyfit(np.log([t for t, _ in noisy]), np.log([s for _, s in noisy]), 1)
    assert math.exp(np.polyval(least_squares, math.log(2_000))) > 2 * law.seconds(2_000)


def test_overhead_is_taken_off_the_marginal_cost() -> None:
    true = PowerLaw(5e-5, 1.0)
    seen = points(300, true, overhead=0.05)
    plain, marginal = fit_power_law(seen, PRIOR), fit_beyond_overhead(seen, PRIOR)
    assert plain.seconds(4_000) / plain.seconds(40) < 40
    assert marginal.seconds(4_000) / marginal.seconds(40) == pytest.approx(100, rel=0.3)
    assert marginal.seconds(4_000) == pytest.approx(true.seconds(4_000), rel=0.2)


@pytest.mark.parametrize("fit", [fit_power_law, fit_beyond_overhead])
def test_few_points_or_useless_ones_leave_the_prior(fit: object) -> None:
    assert fit([PrefillPoint(100, 0.1)] * 9, PRIOR) is PRIOR  # type: ignore[operator]
    assert fit([PrefillPoint(0, 0.1), PrefillPoint(5, 0.0), PrefillPoint(5, math.inf)] * 20, PRIOR) is PRIOR  # type: ignore[operator]


def test_one_length_only_fits_the_coefficient() -> None:
    law = fit_power_law([PrefillPoint(1_000, 0.2)] * 30, PRIOR)
    assert law.exponent == 1.0
    assert law.seconds(1_000) == pytest.approx(0.2)


def test_exponents_stay_in_their_range() -> None:
    assert fit_power_law([PrefillPoint(t, float(t) ** 5) for t in range(1, 40)], PRIOR).exponent == 3.0
    assert fit_power_law([PrefillPoint(t, 1.0 / t) for t in range(1, 40)], PRIOR).exponent == 0.5


def test_below_the_sizes_it_was_fitted_on_cost_is_in_proportion() -> None:
    law = PowerLaw(1e-9, 2.0, linear_below=1_000.0)
    assert law.seconds(1_000) == pytest.approx(1e-3)
    assert law.seconds(100) == pytest.approx(1e-4)
    assert law.seconds(2_000) == pytest.approx(4e-3)


def request(number: int, tokens: int) -> Request:
    return Request(number, 0.0, tokens)


def test_prefills_of_a_busy_server_are_told_apart_by_their_first_tokens() -> None:
    fit = CostFit(PRIOR)
    a, b, c, d = request(1, 100), request(2, 900), request(3, 50), request(4, 70)
    for event in (
        Admitted(a, 1.0),
        Admitted(b, 1.1),
        FirstToken(a, 1.5),
        Admitted(c, 1.6),
        Admitted(d, 1.6),
        FirstToken(b, 3.0),
        FirstToken(c, 3.2),
        FirstToken(d, 3.2),
        Admitted(request(5, 10), 9.0),
    ):
        fit.observe(event)
    # a alone; b since a came out; c and d together since b did
    assert list(fit.points) == [
        PrefillPoint(100, pytest.approx(0.5)),
        PrefillPoint(900, pytest.approx(1.5)),
        PrefillPoint(120, pytest.approx(0.2)),
    ]


def test_time_shared_with_a_longer_prompt_is_not_charged_to_the_short_one() -> None:
    fit = CostFit(PRIOR)
    first, long, short = request(0, 10), request(1, 9_000), request(2, 20)
    for event in (
        Admitted(first, 0.0),
        Admitted(long, 0.05),
        FirstToken(first, 0.1),
        FirstToken(request(7, 1), 0.4),  # admitted before it was watched: not counted
        Admitted(short, 0.5),
        FirstToken(short, 0.9),  # while the long one is being computed
        FirstToken(long, 1.4),
        Admitted(request(3, 5), 2.0),
    ):
        fit.observe(event)
    seconds = sum(point.seconds for point in fit.points)
    assert seconds == pytest.approx(0.1 + 1.3)
    assert sum(point.tokens for point in fit.points) == 9_030


def test_who_is_cancelled_or_was_preempted_leaves_no_point() -> None:
    fit = CostFit(PRIOR)
    gone, back = request(1, 10), request(2, 20)
    back.produced_tokens = 5
    for event in (Admitted(gone, 0.0), Cancelled(gone, 0.1), Admitted(back, 0.2), FirstToken(back, 0.5)):
        fit.observe(event)
    fit.observe(Admitted(request(3, 1), 5.0))
    assert not fit.points


def test_it_refits_as_points_come_and_survives_a_restart() -> None:
    fit = CostFit(PRIOR)
    changes = [fit.add(point) for point in points(120, PowerLaw(2e-4))]
    assert changes[9]
    assert sum(changes) < 12
    assert fit.law.seconds(1_000) == pytest.approx(0.2, rel=0.2)
    again = CostFit(PRIOR)
    again.restore(fit.state())
    assert again.law == fit.law
    assert again.points == fit.points
    for broken in ({}, {"law": [1, 2], "points": []}, {"law": [-1.0, 1.0, 0.0, 1.0], "points": []}):
        with pytest.raises((KeyError, ValueError)):
            again.restore(broken)
