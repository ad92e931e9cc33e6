"""The errors that docs/results/truth.md states hold, on the published runs where they are at hand."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from headway.simulator.scaled_step_time import Scalars

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("replay_recorded_runs", FOLDER / "replay_recorded_runs.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["replay_recorded_runs"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.fixture(scope="module")
def root() -> Path:
    folder = os.environ.get("HEADWAY_GROUNDTRUTH")
    if not folder:
        pytest.skip("HEADWAY_GROUNDTRUTH is not set: published measurements are not part of the repository")
    return Path(folder)


@pytest.mark.slow
def test_mean_latency_by_the_profile_alone_is_within_a_fifth(script: ModuleType, root: Path) -> None:
    runs = script.recorded_runs(root)
    assert len(runs) == 3
    for run in runs:
        assert abs(run.replay(Scalars()).figures["e2e mean"].error) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step_scale", "kv_scale", "prompt_step_scale", "step_us"])
def test_one_scalar_carries_to_another_card(script: ModuleType, root: Path, name: str) -> None:
    small, large, _ = script.recorded_runs(root)
    assert abs(large.replay(small.fit(name)).figures["e2e mean"].error) < 0.03
    assert abs(small.replay(large.fit(name)).figures["e2e mean"].error) < 0.03


def test_without_data_it_says_what_to_set(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HEADWAY_GROUNDTRUTH", raising=False)
    assert script.main() == 2
    assert "HEADWAY_GROUNDTRUTH" in capsys.readouterr().err
