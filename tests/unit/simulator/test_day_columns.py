"""A day's columns and curves: what was noted comes out, and a long day is drawn in few points that still tell it."""

from __future__ import annotations

import numpy as np
import pytest

from headway.simulator.day_columns import DayColumns, LoadCurve
from headway.simulator.outcome import NEVER, NO_POINTS, TokenGaps


def test_nothing_noted_is_a_day_on_which_nothing_happened() -> None:
    day = DayColumns(2).outcome(0, 0, NO_POINTS)
    for column in (day.arrived_ps, day.admitted_ps, day.first_token_ps, day.ended_ps):
        assert column.tolist() == [-1, -1]  # NEVER: below every time there is
    for column in (day.cached_tokens, day.preemptions, day.recomputed_tokens):
        assert column.tolist() == [0, 0]
    assert (day.makespan_ps, day.steps, day.kv_blocks_peak, day.refused) == (0, 0, 0, {})
    assert day.gaps.shape == (0, 4)
    assert DayColumns(0).outcome(0, 0, NO_POINTS).makespan_ps == 0


def test_what_was_noted_comes_out() -> None:
    columns, curve = DayColumns(2), LoadCurve()
    columns.admit(1, 500, 32)
    columns.admit(1, 900, 64)  # a second admission, after a preemption
    columns.ended_ps[0] = 800
    columns.gap(10, 2, 5, 3)
    columns.gap(7, 0, 1, 1)
    for point in ((0, 4, 1, 10), (100, 3, 2, 40), (200, 0, 1, 30)):
        curve.sample(*point)
    day = columns.outcome(17, curve.blocks_peak, curve.points())
    assert day.admitted_ps.tolist() == [NEVER, 500]
    assert day.cached_tokens.tolist() == [0, 32]
    assert (day.makespan_ps, day.steps, day.kv_blocks_peak) == (800, 17, 40)
    assert [TokenGaps(*line) for line in day.gaps.tolist()] == [TokenGaps(10, 2, 5, 3), TokenGaps(7, 0, 1, 1)]
    assert day.curve_ps == [0, 100, 200]
    assert day.curve_waiting == [4, 3, 0]
    assert day.curve_running == [1, 2, 1]
    assert day.curve_blocks == [10, 40, 30]


def test_a_day_of_8_191_points_is_drawn_whole() -> None:
    curve = LoadCurve()
    for place in range(8_191):
        curve.sample(place, place, 1, 1)
    assert curve.points().waiting == list(range(8_191))


@pytest.mark.parametrize("began_ps", [0, 10**15])
def test_a_longer_day_is_cut_into_4_096_spans_and_each_shows_a_moment_of_its_own(began_ps: int) -> None:
    curve = LoadCurve()
    for place in range(8_192):  # the curves show how many points went before: the time itself
        curve.sample(began_ps + 1_000 * place, place, 2 * place, 3 * place)
    day = curve.points()
    assert len(day.at_ps) == 4_097
    span = 8_191 * 1_000 / 4_096
    starts = [began_ps + place * span for place in range(4_096)]
    assert day.at_ps == pytest.approx([*starts, began_ps + 8_191_000], abs=1, rel=0)
    for place, shown in enumerate(day.waiting[:-1]):
        assert place * span - 1_000 < 1_000 * shown <= (place + 1) * span
    assert day.waiting[-1] == 8_191
    assert day.running == [2 * shown for shown in day.waiting]
    assert day.blocks == [3 * shown for shown in day.waiting]
    assert curve.blocks_peak == 3 * 8_191


def test_busy_and_idle_points_by_turns_are_both_kept() -> None:
    """Every second point would show a replica that is always busy, or always idle."""
    curve = LoadCurve()
    for place in range(50_000):
        curve.sample(1_000 * place, place % 2, place % 2, place % 2)
    day = curve.points()
    assert len(day.at_ps) < 8_192
    assert day.at_ps == sorted(day.at_ps)
    assert day.at_ps[0] == 0
    assert day.at_ps[-1] == 49_999_000
    assert np.mean(day.running) == pytest.approx(0.5, abs=0.05)
