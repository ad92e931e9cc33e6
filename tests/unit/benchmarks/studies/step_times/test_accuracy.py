"""The errors that docs/results/step-time.md states hold, on the published data where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.studies.step_times import accuracy


@pytest.fixture(scope="module")
def root() -> Path:
    folder = os.environ.get("HEADWAY_GROUNDTRUTH")
    if not folder:
        pytest.skip("HEADWAY_GROUNDTRUTH is not set: published measurements are not part of the repository")
    return Path(folder)


@pytest.mark.slow
def test_whole_steps_are_within_seven_per_cent(root: Path) -> None:
    lines = list(accuracy.layer_profiles(root))
    assert {line.regime for line in lines} == {"decode", "prompt", "mixed"}
    assert sum(line.rows for line in lines) > 30_000
    assert max(line.error for line in lines) < 0.07


@pytest.mark.slow
def test_servers_are_within_twelve_per_cent(root: Path) -> None:
    lines = [line for line in accuracy.served_tpot(root) if "70b" in line.model or "bf16" in line.model]
    assert len(lines) == 6
    assert max(line.error for line in lines) < 0.12


@pytest.mark.slow
def test_products_of_another_source_are_within_a_fifth(root: Path) -> None:
    assert max(line.error for line in accuracy.matrix_products(root)) < 0.21


def test_without_data_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("HEADWAY_GROUNDTRUTH", raising=False)
    assert accuracy.main([]) == 2
    assert "HEADWAY_GROUNDTRUTH" in capsys.readouterr().err
