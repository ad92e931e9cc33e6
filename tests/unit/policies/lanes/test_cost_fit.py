"""The cost fit: an exact power law is found, wild points do not move it, and busy servers are read rightly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.event import Admitted, Cancelled, Completed, FirstToken, Preempted
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


# recomputed from the docstrings, in plain loops

drawn_points = st.lists(
    st.tuples(st.integers(0, 5_000), st.sampled_from([0.0, math.inf]) | st.floats(1e-4, 50.0)), max_size=60
)


def middle(values: list[float]) -> float:
    rising = sorted(values)
    half = len(rising) // 2
    return rising[half] if len(rising) % 2 else (rising[half - 1] + rising[half]) / 2


def usable(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(tokens, seconds) for tokens, seconds in points if tokens > 0 and 0 < seconds < math.inf]


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Every so-manieth from the last back, at most 80."""
    step = max(1, math.ceil(len(points) / 80))
    return [points[at] for at in range(len(points) - 1, -1, -step)]


def power_by_hand(points: list[tuple[int, float]], prior: PowerLaw) -> tuple[float, ...]:
    points = usable(points)
    if len(points) < 10:
        return prior
    logs = [(math.log(tokens), math.log(seconds)) for tokens, seconds in thinned(points)]
    slopes = [
        (logs[b][1] - logs[a][1]) / (logs[b][0] - logs[a][0])
        for a in range(len(logs))
        for b in range(a + 1, len(logs))
        if abs(logs[b][0] - logs[a][0]) > 0.05
    ]
    exponent = middle(slopes) if len(slopes) >= 10 else prior.exponent
    exponent = min(3.0, max(0.5, exponent))
    return math.exp(middle([y - exponent * x for x, y in logs])), exponent, min(s for _, s in points), 1.0


def beyond_by_hand(points: list[tuple[int, float]], prior: PowerLaw) -> tuple[float, ...]:
    points = usable(points)
    if len(points) < 20:
        return prior
    rising = sorted(tokens for tokens, _ in points)
    if rising[int(0.9 * len(rising))] < 2 * rising[int(0.1 * len(rising))]:
        return middle([seconds / tokens for tokens, seconds in points]), 1.0, 0.0, 1.0
    some = thinned(points)
    slopes = [
        (some[b][1] - some[a][1]) / (some[b][0] - some[a][0])
        for a in range(len(some))
        for b in range(a + 1, len(some))
        if some[a][0] != some[b][0]
    ]
    slope = middle(slopes) if len(slopes) >= 10 else 0.0
    overhead = max(0.0, middle([s - slope * t for t, s in points])) if slope > 0 else 0.0
    half = middle([float(tokens) for tokens, _ in points])
    left = [(tokens, seconds - overhead) for tokens, seconds in points if tokens >= half]
    law = power_by_hand(left, prior)
    return law if law is prior else (law[0], law[1], 0.0, half)


@pytest.mark.parametrize(("fit", "by_hand"), [(fit_power_law, power_by_hand), (fit_beyond_overhead, beyond_by_hand)])
@given(drawn=drawn_points)
def test_each_fit_is_what_its_docstring_says(fit: Any, by_hand: Any, drawn: list[tuple[int, float]]) -> None:
    prior = PowerLaw(1e-4, 1.25, 0.5)
    fitted = fit([PrefillPoint(*point) for point in drawn], prior)
    assert tuple(fitted) == pytest.approx(tuple(by_hand(drawn, prior)))


@pytest.mark.parametrize("count", [9, 10, 19, 20, 80, 81, 160, 161, 400])
@pytest.mark.parametrize("spread", [1, 30])
@pytest.mark.parametrize(("fit", "by_hand"), [(fit_power_law, power_by_hand), (fit_beyond_overhead, beyond_by_hand)])
def test_fits_to_few_and_to_many_points(fit: Any, by_hand: Any, spread: int, count: int) -> None:
    random = np.random.default_rng(count)
    seen = [
        (int(t), 0.03 + 1e-4 * t * random.lognormal(0, 0.4)) for t in random.integers(100, 101 + 99 * spread, count)
    ]
    prior = PowerLaw(1e-4, 1.25, 0.5)
    fitted = fit([PrefillPoint(*point) for point in seen], prior)
    assert tuple(fitted) == pytest.approx(tuple(by_hand(seen, prior)))


def test_seconds_by_hand() -> None:
    law = PowerLaw(0.5, 2.0, 3.0, 4.0)
    assert [law.seconds(tokens) for tokens in (8, 4, 3, 1, 0, -5)] == [32.0, 8.0, 6.0, 3.0, 3.0, 3.0]
    assert PowerLaw(0.5, 2.0).seconds(0) == 0.5
    assert PowerLaw(0.25).seconds(8) == 2.0


def test_it_refits_at_ten_then_at_about_doublings_then_every_two_hundred() -> None:
    fit = CostFit(PRIOR)
    seen = points(760, PowerLaw(2e-4))
    assert [number for number, point in enumerate(seen, 1) if fit.add(point)] == [10, 20, 39, 77, 153, 305, 505, 705]
    assert len(fit.points) == 500
    assert not fit.add(PrefillPoint(0, 1.0))
    assert not fit.add(PrefillPoint(1, 0.0))
    assert not fit.add(PrefillPoint(1, math.inf))
    assert fit.points[-1] == seen[-1], "what is no prefill is no point"


def test_a_saturated_replica_begins_a_new_observation_after_256_prefills() -> None:
    """One prompt is computed all the while, so time is carried forward, but not for ever."""
    fit = CostFit(PRIOR)
    fit.observe(Admitted(request(-1, 10), 0.0))
    fit.observe(FirstToken(request(-1, 10), 1.0))
    fit.observe(Admitted(request(0, 99_999), 0.5))
    for number in range(1, 301):
        fit.observe(Admitted(request(number, 10), float(number)))
        fit.observe(FirstToken(request(number, 10), number + 0.5))
    assert [point.tokens for point in fit.points] == [10, 2_560]
    assert fit.points[1].seconds == pytest.approx(256.5 - 1.0)


def test_those_preempted_or_ended_before_a_token_leave_no_point() -> None:
    fit = CostFit(PRIOR)
    for number, end in enumerate((Preempted, Cancelled, lambda who, at: Completed(who, at, 1))):
        who = request(number, 10)
        fit.observe(Admitted(who, 10.0 * number))
        fit.observe(end(who, 10.0 * number + 1))
        fit.observe(FirstToken(who, 10.0 * number + 2))
    assert not fit.observe(Admitted(request(9, 10), 100.0))
    assert not fit.points


def test_tokens_are_counted_as_one_is_told_to() -> None:
    for tokens_of, tokens in ((None, 60), (lambda request: request.prompt_tokens, 100)):
        fit = CostFit(PRIOR) if tokens_of is None else CostFit(PRIOR, tokens_of=tokens_of)
        who = Request(1, 0.0, 100, cached_prompt_tokens=40)
        fit.observe(Admitted(who, 0.0))
        fit.observe(FirstToken(who, 1.0))
        fit.observe(Admitted(request(2, 5), 2.0))
        assert list(fit.points) == [PrefillPoint(tokens, 1.0)]


SOUND: dict[str, Any] = {"law": [1e-4, 1.0, 0.0, 1.0], "points": [[1, 0.5], [7, 2.0]]}


@pytest.mark.parametrize(
    "law",
    [[1e-30, 1.0, 0.0, 1.0], [1e30, 1.0, 0.0, 1.0], [1.0, 0.5, 0.0, 1.0], [1.0, 3.0, 0.0, 1.0], [1.0, 1.0, 9.0, 700.0]],
)
def test_a_state_at_its_bounds_is_taken(law: list[float]) -> None:
    fit = CostFit(PRIOR)
    fit.restore({**SOUND, "law": law})
    assert fit.law == PowerLaw(*law)
    assert list(fit.points) == [PrefillPoint(1, 0.5), PrefillPoint(7, 2.0)]
    assert fit.state() == {"law": law, "points": [[1, 0.5], [7, 2.0]]}
    fit.restore({**SOUND, "points": [[1, 1.0]] * 501})
    assert len(fit.points) == 500


@pytest.mark.parametrize(
    "part",
    [
        {"law": [9e-31, 1.0, 0.0, 1.0]},
        {"law": [1.1e30, 1.0, 0.0, 1.0]},
        {"law": [1.0, 0.49, 0.0, 1.0]},
        {"law": [1.0, 3.01, 0.0, 1.0]},
        {"law": [1.0, 1.0, -0.1, 1.0]},
        {"law": [1.0, 1.0, math.inf, 1.0]},
        {"law": [1.0, 1.0, 0.0, 0.9]},
        {"law": [1.0, 1.0, 0.0, math.inf]},
        {"law": [1.0, 1.0, 0.0]},
        {"law": [1.0, 1.0, 0.0, 1.0, 1.0]},
        {"law": (1.0, 1.0, 0.0, 1.0)},
        {"points": ((1, 1.0),)},
        {"points": [[0, 1.0]]},
        {"points": [[1, 0.0]]},
        {"points": [[1, math.inf]]},
    ],
)
def test_a_state_past_its_bounds_changes_nothing(part: dict[str, Any]) -> None:
    fit = CostFit(PRIOR)
    fit.restore(SOUND)
    with pytest.raises(ValueError, match="the cost fit"):
        fit.restore({**SOUND, **part})
    assert fit.state() == SOUND
