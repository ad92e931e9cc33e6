"""The benchmark of the search for alike blocks runs, and says what it measured for each size."""

from __future__ import annotations

import pytest

from benchmarks.cost import fusion


def test_a_line_for_each_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--blocks", "8", "--representatives", "4", "70", "--in-vllm", "64", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["fusion", *sizes])
    fusion.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(line.endswith("ms per 1,000 blocks and layer") for line in lines[:6])
    assert [", 64 fused:" in line for line in lines[6:9]] == [False, False, True]
    assert [line.partition(":")[0] for line in lines[1:3]] == [
        "against 4 representatives at 1 places",
        "against 4 representatives at 64 places",
    ]
