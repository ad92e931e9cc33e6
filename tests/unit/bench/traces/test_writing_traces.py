"""What is written is what is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from headway.bench.traces.loading import load_trace
from headway.bench.traces.writing import write_jsonl
from headway.bench.user_mistake import UserMistake
from headway.bench.workloads import WORKLOADS
from headway.simulator.trace import Trace
from headway.testing.examples import examples
from tests.support.trace_samples import assert_alike, lines_file, request, traces


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trace=traces())
def test_a_written_trace_is_read_back_the_same(tmp_path: Path, trace: Trace) -> None:
    path = tmp_path / "t.jsonl"
    write_jsonl(trace, path)
    assert_alike(load_trace(str(path)).trace, trace)


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_a_workload_survives_every_packing(tmp_path: Path, name: str, suffix: str) -> None:
    trace = WORKLOADS[name].generate(300, 1)
    path = tmp_path / f"{name}{suffix}"
    write_jsonl(trace, path)
    loaded = load_trace(str(path))
    assert loaded.trace.name == name
    assert loaded.notes == []
    assert_alike(loaded.trace, trace)


def test_equal_traces_are_equal_files(tmp_path: Path) -> None:
    trace = WORKLOADS["chat"].generate(50, 0)
    for suffix in (".jsonl", ".jsonl.gz", ".jsonl.zst"):
        write_jsonl(trace, tmp_path / f"one{suffix}")
        write_jsonl(trace, tmp_path / f"two{suffix}")
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_the_packing_is_by_name(tmp_path: Path) -> None:
    trace = load_trace(lines_file(tmp_path, request())).trace
    for suffix, magic in ((".gz", b"\x1f\x8b"), (".zst", b"\x28\xb5\x2f\xfd"), (".jsonl", b"{")):
        write_jsonl(trace, tmp_path / f"a{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes().startswith(magic)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    trace = load_trace(lines_file(tmp_path, request())).trace
    with pytest.raises(UserMistake, match="cannot be written"):
        write_jsonl(trace, tmp_path / "no" / "t.jsonl")
