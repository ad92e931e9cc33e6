"""Fixtures of the command line: one that runs it in this process, and a small trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from headway.cli.app import run
from tests.support.command_line import Said


@pytest.fixture
def headway(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run one command line as the console script does, in this process, on a plain terminal 160 wide."""
    monkeypatch.delenv("HEADWAY_TRACES", raising=False)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return Said(status, told.out, told.err)

    return call


@pytest.fixture
def small_trace(tmp_path: Path) -> Path:
    """200 requests over 40 s: every tenth prompt is long."""
    lines = [
        {
            "timestamp": 200 * row,
            "input_length": 6000 if row % 10 == 0 else 50 + 7 * row % 400,
            "output_length": 5 + 13 * row % 150,
            "user_id": f"u{row % 3}",
        }
        for row in range(200)
    ]
    path = tmp_path / "small.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
