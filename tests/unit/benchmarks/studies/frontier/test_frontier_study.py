"""The frontier study: what is beaten, how a choice on one window fares on the next, and days that are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.studies.frontier import days
from benchmarks.studies.frontier.days import Cell, Day
from benchmarks.studies.frontier.judging import GRID, OBJECTIVES, choose, is_calm, judge_frontier
from benchmarks.studies.frontier.picture import picture
from headway.bench.experiment.bundles import Bundle
from headway.bench.recommendation.objective import RequestTimes
from headway.simulator.trace import Trace

CELL = Cell("servegen_m_mid", "8B", "ample", 1.1)
SECONDS = 600


def times(mean: float, p99: float) -> RequestTimes:
    """1,000 requests of which the last 20 wait for the tail."""
    waits = np.full(1_000, (1_000 * mean - 20 * p99) / 980)
    waits[-20:] = p99
    return RequestTimes(waits, waits + 1, waits + 1, np.full(1_000, 0.01))


def day(**points: tuple[float, float]) -> Day:
    arms = {name.replace("_", "-"): times(*point) for name, point in points.items()}
    return Day(np.arange(1_000.0), np.full(1_000, 100), 0.1, arms)


def test_an_outside_order_beats_ours_by_a_lower_mean_at_equal_or_lower_p99() -> None:
    found = judge_frontier(CELL, 0, day(gittins=(1.0, 40.0), boost=(2.0, 10.0), fcfs=(1.5, 10.0), random=(1.02, 45.0)))
    assert [(one.ours, one.other) for one in found.beaten] == [("boost", "fcfs")]
    assert found.beaten[0].times == pytest.approx(2.0 / 1.5)
    assert found.uncovered == ["fcfs"]


def test_within_three_per_cent_nothing_is_beaten() -> None:
    found = judge_frontier(CELL, 0, day(gittins=(1.02, 10.0), fcfs=(1.0, 10.0)))
    assert not found.beaten
    assert not found.uncovered


def test_a_day_without_a_difference_is_calm() -> None:
    assert is_calm(day(gittins=(1.0, 10.0), fcfs=(1.04, 10.0)))
    assert not is_calm(day(gittins=(1.0, 10.0), fcfs=(1.06, 10.0)))


def whole_day(seed: int, means: dict[str, float]) -> Day:
    """Every candidate; waits are alike but for a factor."""
    random = np.random.default_rng(seed)
    base = random.exponential(1.0, SECONDS)
    arms = {}
    for label in GRID:
        waits = base * means.get(label, 3.0)
        arms[label] = RequestTimes(waits, waits + 1, waits + 1, np.full(SECONDS, 0.01))
    return Day(np.arange(float(SECONDS)), np.full(SECONDS, 100), None, arms)


def test_a_choice_is_made_on_the_first_window_and_judged_on_the_second() -> None:
    first = whole_day(1, {"smallest-volume-first": 1.0, "gittins": 2.0, "highest-response-ratio": 2.5})
    second = whole_day(2, {"smallest-volume-first": 2.0, "gittins": 1.0, "highest-response-ratio": 2.5})
    found = choose(CELL, 0, first, second, OBJECTIVES["mean-ttft"])
    assert (found.chosen, found.naive, found.best) == ("smallest-volume-first", "smallest-volume-first", "gittins")
    assert found.behind["recommended"] == pytest.approx(2.0)
    assert found.behind["default"] == pytest.approx(2.5)


def test_what_is_hardly_better_does_not_displace_the_incumbent() -> None:
    first = whole_day(1, {"gittins": 1.0})
    noise = np.random.default_rng(5).normal(0.0, 0.3, SECONDS)
    noise -= noise.mean() + 0.001
    told = first.arms["gittins"]
    waits = np.maximum(told.ttft_seconds + noise, 0.0)
    arms = dict(first.arms) | {"ewsjf": RequestTimes(waits, waits + 1, waits + 1, told.tpot_seconds)}
    found = choose(CELL, 0, Day(first.arrived_seconds, first.prompt_tokens, None, arms), first, OBJECTIVES["mean-ttft"])
    assert found.chosen == "gittins"


def test_the_picture_has_a_panel_for_each_objective_of_a_half() -> None:
    first = whole_day(1, {"gittins": 1.0})
    drawn = picture([choose(CELL, 0, first, first, one) for one in OBJECTIVES.values()])
    assert drawn.count('role="img"') == len(OBJECTIVES)


def test_what_a_folder_holds_is_not_simulated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    arrived = np.cumsum(random.exponential(0.05, 400))
    prompts, outputs = random.integers(10, 2_000, 400), random.integers(1, 50, 400)
    monkeypatch.setattr(days, "_whole", lambda trace: Trace(trace, arrived, prompts, outputs))
    runs = []
    simulate: Callable[..., Any] = days.simulate_bundle

    def counted(trace: Trace, server: Any, bundle: Bundle, seed: int) -> Any:
        runs.append(bundle.label)
        return simulate(trace, server, bundle, seed)

    monkeypatch.setattr(days, "simulate_bundle", counted)

    def arms(trace: Trace) -> list[Bundle]:
        return [Bundle("fcfs"), Bundle("gittins", "gittins")]

    for _ in range(2):
        days.measure(tmp_path, [CELL], [0, 1], arms, jobs=1, on_done=lambda: None)
    assert (runs.count("gittins"), len(runs)) == (2, len(runs))
    first = days.read(tmp_path, CELL, 0)
    assert first is not None
    assert set(first.arms) == {"fcfs", "gittins"}
    assert len(first.arrived_seconds) == len(first.arms["fcfs"].ttft_seconds) == 200
    assert first.bound is not None
    assert first.bound <= first.arms["gittins"].ttft_seconds.mean()
    assert days.read(tmp_path, CELL, 2) is None
