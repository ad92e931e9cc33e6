"""`headway trace convert` writes what was read, and nothing where it may not."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

from headway.bench.traces.loading import load_trace
from tests.support.command_line import Said
from tests.support.trace_samples import assert_alike

Headway = Callable[..., Said]

SPEND = {
    "startTime": "2026-11-30T10:00:00Z", "completionStartTime": "2026-11-30T10:00:00.250Z",
    "endTime": "2026-11-30T10:00:01Z", "prompt_tokens": 4, "completion_tokens": 3, "team_id": "a",
}  # fmt: skip


def test_a_log_becomes_a_trace_with_its_times(headway: Headway, tmp_path: Path) -> None:
    log, out = tmp_path / "spend.json", tmp_path / "day.jsonl.gz"
    log.write_text(json.dumps([SPEND, SPEND | {"status": "failure"}]))
    said = headway("trace", "convert", log, out)
    assert said.status == 0, said.err
    assert "1 entry is left out because `status` is 'failure'" in said.err
    (line,) = gzip.decompress(out.read_bytes()).splitlines()
    assert json.loads(line) == {
        "timestamp": 0, "input_length": 4, "output_length": 3, "user_id": "a", "ttft_ms": 250.0, "e2e_ms": 1000.0
    }  # fmt: skip
    assert_alike(load_trace(str(log)).trace, load_trace(str(out)).trace)


def test_a_bad_log_leaves_no_file_and_none_is_written_over_its_own(headway: Headway, tmp_path: Path) -> None:
    log, out = tmp_path / "bad.json", tmp_path / "day.jsonl"
    log.write_text('{"a": 1}')
    assert headway("trace", "convert", log, out).status == 2
    assert not out.exists()
    assert "would be lost" in headway("trace", "convert", log, log).err
    assert "JSON Lines are written; name it day.jsonl" in headway("trace", "convert", log, tmp_path / "day.csv").err
