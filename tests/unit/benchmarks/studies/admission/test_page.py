"""The page's verdicts: a target is met or missed by what was measured, and recovery is counted from the change."""

from __future__ import annotations

from benchmarks.studies.admission import page


def test_recovery_needs_three_windows_in_a_row() -> None:
    assert page.recovered_after([0.9, 0.9, 0.9, 0.1], 100) == 0
    assert page.recovered_after([0.5, 0.9, 0.6, 0.86, 0.9, 0.85], 100) == 300
    assert page.recovered_after([0.5, 0.6, 0.7, 0.8], 100) is None


def test_shares_are_written_as_percent() -> None:
    assert page._percent(0.0051) == "0.51 %"
    assert page._percent(0.125) == "12 %"
    assert page._percent(-0.02) == "-2.00 %"
