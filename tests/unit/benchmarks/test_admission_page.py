"""The page's verdicts: a target is met or missed by what was measured, and recovery is counted from the change."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PAGE = Path(__file__).parents[3] / "benchmarks" / "admission_page.py"


@pytest.fixture(scope="module")
def written() -> ModuleType:
    spec = importlib.util.spec_from_file_location("admission_page", PAGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_recovery_needs_three_windows_in_a_row(written: ModuleType) -> None:
    assert written.recovered_after([0.9, 0.9, 0.9, 0.1], 100) == 0
    assert written.recovered_after([0.5, 0.9, 0.6, 0.86, 0.9, 0.85], 100) == 300
    assert written.recovered_after([0.5, 0.6, 0.7, 0.8], 100) is None


def test_shares_are_written_as_percent(written: ModuleType) -> None:
    assert written._percent(0.0051) == "0.51 %"
    assert written._percent(0.125) == "12 %"
    assert written._percent(-0.02) == "-2.00 %"
