"""Paired bootstrap: equal candidates never are, real differences are, and noise inside one rush is not one."""

from __future__ import annotations

import numpy as np
import pytest

from headway.bench.metrics.run_metrics import Slo
from headway.bench.recommendation.objective import Floats, OperatorObjective, RequestTimes, read_objective
from headway.bench.recommendation.paired_bootstrap import Differences, differences
from headway.config.wanted_objective import MEASURES

SECONDS = 2_000
ARRIVED = np.arange(SECONDS, dtype=np.float64)


def told(objective: OperatorObjective, *ttft: Floats, longest: float = 10.0) -> Differences:
    each = [objective.columns(RequestTimes(one, one + 1, one + 1, np.full(len(one), 0.01))) for one in ttft]
    columns = {name: np.array([one[name] for one in each]) for name in MEASURES}
    return differences(objective, columns, ARRIVED, longest, seed=0)


def rushes(seed: int, correlated_seconds: float = 20.0) -> Floats:
    """Waits that follow each other closely: an AR(1) series."""
    random, keep = np.random.default_rng(seed), np.exp(-1 / correlated_seconds)
    waits, now = [], 0.0
    for _ in range(SECONDS):
        now = keep * now + random.exponential(1.0) * (1 - keep)
        waits.append(now)
    return np.array(waits)


@pytest.mark.parametrize("name", ["mean-ttft", "p99-ttft", "balanced"])
def test_equal_candidates_never_differ(name: str) -> None:
    waits = rushes(1)
    found = told(read_objective(name, Slo(ttft_seconds=1.0)), waits, waits.copy(), waits.copy())
    assert found.alike == [True, True, True]
    assert found.low == found.high == [1.0, 1.0, 1.0]


def test_a_candidate_that_is_worse_everywhere_differs() -> None:
    waits = rushes(1)
    found = told(read_objective("mean-ttft", Slo()), 1.2 * waits, waits)
    assert found.alike == [False, True]
    assert found.low[0] == pytest.approx(1.2)
    assert found.high[0] == pytest.approx(1.2)


def test_one_rush_is_no_evidence_for_the_tail() -> None:
    """Better in a p99 that one rush alone decides; the rest of the day is the same."""
    waits = rushes(2)
    rush = waits.copy()
    rush[500:540] += 30.0
    longer = waits.copy()
    longer[500:540] += 45.0
    found = told(read_objective("p99-ttft", Slo()), rush, longer, longest=50.0)
    assert found.alike == [True, True]


def test_noise_of_the_same_law_is_seldom_called_a_difference() -> None:
    objective = read_objective("mean-ttft", Slo())
    wrong = sum(not all(told(objective, rushes(2 * seed), rushes(2 * seed + 1)).alike) for seed in range(20))
    assert wrong <= 3, "5 % are expected at the most"


def test_a_trace_without_room_for_its_waits_is_called_short() -> None:
    objective, waits = read_objective("mean-ttft", Slo()), rushes(3)
    assert not told(objective, waits, waits + 1, longest=10.0).is_short
    assert told(objective, waits, waits + 1, longest=500.0).is_short


def test_all_requests_at_one_moment() -> None:
    objective = read_objective("mean-ttft", Slo())
    columns = {name: np.array([[1.0, 2.0], [3.0, 4.0]]) for name in MEASURES}
    assert differences(objective, columns, np.zeros(2), 1.0, seed=0).alike[0]


def against(incumbent: int, *ttft: Floats, name: str = "mean-ttft") -> Differences:
    objective = read_objective(name, Slo())
    each = [objective.columns(RequestTimes(one, one + 1, one + 1, np.full(len(one), 0.01))) for one in ttft]
    columns = {name: np.array([one[name] for one in each]) for name in MEASURES}
    return differences(objective, columns, ARRIVED, 10.0, seed=0, incumbent=incumbent)


def test_the_incumbent_is_kept_unless_another_is_better_beyond_chance() -> None:
    waits = rushes(1)
    assert against(0, waits, waits.copy()).challenger(0) == 0
    assert against(0, waits, 0.9 * waits, 0.8 * waits).challenger(0) == 2
    assert against(0, waits, 1.1 * waits).challenger(0) == 0
    rush = waits.copy()
    rush[500:540] += 30.0
    assert rush.mean() > 1.2 * waits.mean()
    assert against(0, rush, waits, name="p99-ttft").challenger(0) == 0, "better in one rush alone"


def test_the_surest_gain_is_taken_and_not_the_largest() -> None:
    waits = rushes(1)
    gamble = 0.5 * waits
    gamble[:200] *= 5.0
    found = against(0, waits, 0.8 * waits, gamble)
    assert found.times_incumbent[0] == pytest.approx(1.0)
    assert found.times_incumbent[1] == pytest.approx(0.8)
    assert found.challenger(0) == 1
    assert found.challenger(0, left_out=[1, 2]) == 0
