"""What a look counts and believes: traffic as it is now, evidence drawn to what is known, bounds before weights."""

from __future__ import annotations

import numpy as np
import pytest

from headway.bench.experiment.bundles import Bundle
from headway.bench.metrics.run_metrics import Slo
from headway.bench.recommendation.objective import OperatorObjective, RequestTimes
from headway.bench.twin import looking
from headway.bench.twin.window_trace import ReplayedWindow, changed_row, window_of
from headway.config.wanted_objective import Bound
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.look_messages import EngineFacts, TwinLook
from headway.twin.traffic_window import SeenRequest

USUAL = ChosenBundle("highest-response-ratio")
MEAN = OperatorObjective("mean-ttft", {"mean-ttft": 1.0}, Slo())


def window(prompts: list[int]) -> ReplayedWindow:
    rows = []
    for number, prompt in enumerate(prompts):
        one = SeenRequest(float(number), prompt)
        one.started(number + 0.5, prompt, "a")
        one.answered(number + 0.5, number + 1.0, number + 2.0, 10)
        rows.append(one)
    return window_of(TwinLook(EngineFacts(), float(len(rows)), USUAL, USUAL).of(rows))


def replayed(ordering: str, waits: np.ndarray, **other: str) -> looking._Replayed:
    times = RequestTimes(waits, waits + 1, waits + 1, np.full(len(waits), 0.01))
    return looking._Replayed(Bundle(ordering, ordering, **other), times)


def test_what_came_before_a_change_of_the_traffic_is_not_counted() -> None:
    random = np.random.default_rng(0)
    before, now = random.integers(100, 300, 1_000), random.integers(2_000, 3_000, 400)
    found = window([*before.tolist(), *now.tolist()])
    assert found.changed_at == 1_000.0
    assert len(found.ttft_seconds) <= 400
    assert window(before.tolist()).changed_at is None


def test_of_two_changes_the_last_one_counts_and_a_short_rush_is_none() -> None:
    random = np.random.default_rng(1)
    parts = [random.integers(low, 2 * low, 500) for low in (100, 1_000, 10_000)]
    assert changed_row(np.concatenate(parts).astype(float)) == 1_000
    rush = np.concatenate([parts[0], parts[1][:40]]).astype(float)
    assert changed_row(rush) == 0, "fewer than a look needs"


def test_noisy_evidence_is_drawn_to_what_is_known_and_clear_evidence_decides() -> None:
    there = window([100] * 1_000)
    random = np.random.default_rng(2)
    waits = random.exponential(1.0, 1_000)
    clear = [replayed("gittins", waits), replayed("fcfs", waits / 2)]
    assert looking._gains(MEAN, there, clear)[0][1] == pytest.approx(np.log(2), rel=0.05)
    rush = np.where(np.arange(1_000) // 25 == 20, 200.0, 1.0)
    noisy = [replayed("gittins", rush), replayed("fcfs", np.ones(1_000))]
    gain = looking._gains(MEAN, there, noisy)[0][1]
    assert gain < np.log(rush.mean()) / 2, "one rush of the window says little"


def test_another_admission_has_to_be_surely_better_and_another_order_need_not_be() -> None:
    there = window([100] * 1_000)
    random = np.random.default_rng(3)
    waits = random.exponential(1.0, 1_000)
    luck = waits.copy()
    luck[::2] *= random.uniform(0.2, 1.7, 500)
    order, admission = replayed("gittins", luck), replayed("gittins", luck, admission="peak-check")
    gains, shares = looking._gains(MEAN, there, [replayed("gittins", waits), order, admission])
    assert 0.5 < shares[2] < there.look.sure
    assert gains[1] > 0 >= gains[2]


def test_bounds_go_before_weights() -> None:
    bounded = OperatorObjective("mine", {"mean-ttft": 1.0}, Slo(), {"p99-ttft": Bound(times_fcfs=1.2)})
    short, long = np.full(1_000, 1.0), np.where(np.arange(1_000) % 50 == 0, 40.0, 0.1)
    found = [replayed("gittins", long), replayed("fcfs", 2 * short), replayed("ewsjf", short), replayed("boost", long)]
    gains = looking._within_bounds(bounded, found, np.array([0.0, -1.0, -0.5, 0.2]))
    assert gains[0] == 0.0
    assert gains[1] == gains[2] == pytest.approx(np.log(40 / 2.4)), "by as much as the first one breaks its bound"
    assert gains[3] == -np.inf
    none_keeps = OperatorObjective("mine", {"mean-ttft": 1.0}, Slo(), {"p99-ttft": Bound(value=0.01)})
    assert looking._within_bounds(none_keeps, found, np.array([0.0, -1.0, -0.5, 0.2]))[3] == 0.2
