"""The benchmark of routing runs, and has a row for each length and each policy."""

from __future__ import annotations

import pytest

from benchmarks.cost import routing
from headway.policies.catalog import ROUTING


def test_a_row_for_each_length_and_each_policy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(routing, "SIZES", (1_024, 1 << 21))
    routing.main(["--replicas", "2", "3", "--rounds", "3"])
    lengths, policies = capsys.readouterr().out.split("\n\n")
    assert [line.split(" | ")[:2] for line in lengths.splitlines()[2:]] == [["| 1,024", "1"], ["| 2,097,152", "58"]]
    assert [line.split(" | ")[0] for line in policies.splitlines()[2:]] == [f"| {name}" for name in ROUTING]
