"""Scores: the published sums by hand, and when one line overtakes another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.policies.lanes.scoring import ScoreLine, authors, density_weighted, overtaken_at


@dataclass
class Weights:
    w_base: float = 1.0
    a_u: float = 0.0
    b_u: float = 1.0
    a_f: float = 0.0
    b_f: float = 0.1


def test_the_authors_score_by_hand() -> None:
    """1 s waited, step 200: 199 tokens 729.83, 200 tokens 365.2; step 1500: 4961 at 100, 6985 at 1499."""
    assert authors(199, 200, 0.0).at(1.0) == pytest.approx(729.83, abs=0.01)
    assert authors(200, 200, 0.0).at(1.0) == pytest.approx(365.17, abs=0.05)
    assert authors(100, 1_500, 0.0).at(1.0) == pytest.approx(4961, abs=1)
    assert authors(1_499, 1_500, 0.0).at(1.0) == pytest.approx(6985, abs=1)
    assert authors(50, 0, 0.0).at(2.0) == pytest.approx(2 * (1 + 0.5 * math.log(51)))


def test_the_published_score_by_hand() -> None:
    """q 3, b 99, W 4 s, C 0.5 s, w_urg 2·0.01·100 …: 3/100·(1 + 3·8 + 0.2·ln 100)."""
    weights = Weights(w_base=1.0, a_u=0.02, b_u=1.0, a_f=0.001, b_f=0.1)
    line = density_weighted(weights, 99, 100.0, 0.5, 10.0, queue_factor=3 / 100)
    assert line.at(14.0) == pytest.approx(0.03 * (1 + 3 * 8 + 0.2 * math.log(100)))


def test_parity_of_the_bounded_score_is_at_waits_in_proportion_to_cost() -> None:
    weights = Weights(b_f=0.0)
    long = density_weighted(weights, 1_000, 1_000.0, 1.0, 0.0, queue_factor=1)
    short = density_weighted(weights, 10, 10.0, 0.01, 9.9, queue_factor=1)
    assert long.at(10.0) == pytest.approx(short.at(10.0))


def test_urgency_is_never_switched_off_in_the_bounded_score_and_may_be_in_the_published() -> None:
    weights = Weights(a_u=-1.0, b_u=0.0, a_f=-1.0, b_f=0.0)
    assert density_weighted(weights, 100, 100.0, 1.0, 0.0, queue_factor=1).slope == pytest.approx(1e-3)
    published = density_weighted(weights, 100, 100.0, 1.0, 0.0, queue_factor=0.5)
    assert published == ScoreLine(0.5, 0.0, 0.0)


lines = st.builds(
    ScoreLine,
    st.sampled_from([0.0, 0.0, 1.0, 1.3, 10.0]),
    st.sampled_from([0.0, 0.5, 1.0, 1 / 3, 100.0]) | st.floats(0, 1_000),
    st.sampled_from([0.0, 1.0, 2.5, 1 / 3]),
)


@given(st.lists(lines, min_size=1, max_size=6), st.floats(3, 1e6), st.floats(0, 1, exclude_max=True))
def test_nobody_overtakes_before_it_is_foretold(drawn: list[ScoreLine], now: float, share: float) -> None:
    def leader(time: float) -> ScoreLine:
        return max(drawn, key=lambda line: (line.at(time), -line.arrived_at, -drawn.index(line)))

    first = leader(now)
    until = overtaken_at(first, drawn, now)
    assert until >= now
    end = until if until < math.inf else now + 1e6
    time = now + share * (end - now)
    if time < until:
        assert leader(time) == first


def test_it_is_not_foretold_much_too_early() -> None:
    leader, other = ScoreLine(1.0, 1.0, 0.0), ScoreLine(0.0, 2.0, 0.0)  # 1 + t = 2 t at t = 1
    assert overtaken_at(leader, [leader, other], 0.5) == pytest.approx(1.0, abs=1e-9)
    assert overtaken_at(leader, [ScoreLine(0.5, 1.0, 0.0), ScoreLine(0.0, 0.3, 0.0)], 0.5) == math.inf


def test_who_leads_by_less_than_rounding_may_be_overtaken_at_once() -> None:
    leader, other = ScoreLine(1.0, 1.0, 0.0), ScoreLine(1.0, 1.0, 1e-15)
    assert overtaken_at(leader, [leader, other], 5.0) == 5.0
    assert overtaken_at(leader, [leader], 5.0) == math.inf
    clear = ScoreLine(1.0, 1.0, 1e-9)
    assert overtaken_at(leader, [leader, clear], 5.0) == math.inf, "a parallel line stays behind"


def test_of_several_the_first_to_cross_counts() -> None:
    leader = ScoreLine(10.0, 1.0, 0.0)
    later, sooner = ScoreLine(0.0, 2.0, 0.0), ScoreLine(4.0, 3.0, 0.0)  # at 10 and at 3
    assert overtaken_at(leader, [later, leader, sooner], 1.0) == pytest.approx(3.0, abs=1e-9)
    assert overtaken_at(leader, [later, leader, sooner], 1.0) < 3.0, "early by what rounding may do"
    far = ScoreLine(10.0 + 1e6, 1.0, 0.0)
    assert overtaken_at(far, [later], 0.0) == pytest.approx(1e6 + 10, rel=1e-9)
    assert overtaken_at(far, [later], 0.0) <= 1e6 + 10
