"""A recording is always a new file, and a name can be one for every start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headway.gateway.observing.trace_recorder import TraceRecorder


def test_a_recording_never_writes_into_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"
    TraceRecorder(path, 0.0).close()
    with pytest.raises(ValueError, match=r"record: .*night\.jsonl exists already.*night-%Y%m%d-%H%M%S\.jsonl"):
        TraceRecorder(path, 0.0)


def test_the_time_of_the_start_makes_a_name_new(tmp_path: Path) -> None:
    TraceRecorder(tmp_path / "night-%Y%m%d-%H%M%S.jsonl", 0.0).close()
    (written,) = tmp_path.iterdir()
    assert re.fullmatch(r"night-\d{8}-\d{6}\.jsonl", written.name)
