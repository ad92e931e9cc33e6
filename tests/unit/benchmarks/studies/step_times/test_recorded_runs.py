"""The errors that docs/results/truth.md states hold, on the published runs where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.studies.step_times import recorded_runs
from headway.simulator.scaled_step_time import Scalars


@pytest.fixture(scope="module")
def root() -> Path:
    folder = os.environ.get("HEADWAY_GROUNDTRUTH")
    if not folder:
        pytest.skip("HEADWAY_GROUNDTRUTH is not set: published measurements are not part of the repository")
    return Path(folder)


@pytest.mark.slow
def test_mean_latency_by_the_profile_alone_is_within_a_fifth(root: Path) -> None:
    runs = recorded_runs.recorded_runs(root)
    assert len(runs) == 3
    for run in runs:
        assert abs(run.replay(Scalars()).figures["e2e mean"].error) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step_scale", "kv_scale", "prompt_step_scale", "step_us"])
def test_one_scalar_carries_to_another_card(root: Path, name: str) -> None:
    small, large, _ = recorded_runs.recorded_runs(root)
    assert abs(large.replay(small.fit(name)).figures["e2e mean"].error) < 0.03
    assert abs(small.replay(large.fit(name)).figures["e2e mean"].error) < 0.03


def test_without_data_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("HEADWAY_GROUNDTRUTH", raising=False)
    assert recorded_runs.main() == 2
    assert "HEADWAY_GROUNDTRUTH" in capsys.readouterr().err
