"""The benchmark of the search for alike blocks runs, and says what it measured for each size."""

from __future__ import annotations

import pytest

from benchmarks.cost import fusion


def test_a_line_for_each_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["fusion", "--blocks", "8", "--representatives", "4", "70", "--rounds", "1"])
    fusion.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.endswith("ms per 1,000 blocks and layer") for line in lines)
    assert [line.partition(":")[0] for line in lines[1:3]] == [
        "against 4 representatives at 1 places",
        "against 4 representatives at 64 places",
    ]
