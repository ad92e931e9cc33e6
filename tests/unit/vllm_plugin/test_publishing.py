"""Metrics files and decision logs: written in a thread, never in the way of a step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headway.vllm_plugin.publishing import Publisher, metrics_folder


def test_files_are_written_and_the_dead_one_is_removed(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "deep" / "engine-0.prom", tmp_path / "log.jsonl", own_folder=True)
    assert publisher.logs_decisions
    publisher.metrics("one\n")
    publisher.decision("{}")
    publisher.metrics("two\n")
    publisher.close()
    publisher.close()
    assert (tmp_path / "log.jsonl").read_text() == "{}\n"
    assert not (tmp_path / "deep").exists()


def test_nothing_wanted_starts_no_thread(tmp_path: Path) -> None:
    publisher = Publisher(None, None)
    assert publisher._thread is None
    publisher.metrics("x")
    publisher.decision("y")
    publisher.close()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"headway: .* cannot be written: "):
        Publisher(tmp_path / "file" / "engine-0.prom", None)
    with pytest.raises(ValueError, match=r"headway: .* cannot be written: "):
        Publisher(None, tmp_path / "missing" / "log")


def test_both_processes_find_the_same_folder() -> None:
    assert metrics_folder(None, "abc12") == metrics_folder(None, "abc12")
    assert metrics_folder(None, "") is None
    assert metrics_folder("", "abc12") is None
    assert metrics_folder("/some/where", "abc12") == Path("/some/where")


def test_a_decision_log_is_for_its_owner_and_a_pipe_needs_a_reader(tmp_path: Path) -> None:
    log, pipe = tmp_path / "log.jsonl", tmp_path / "pipe"
    Publisher(None, log).close()
    assert log.stat().st_mode & 0o777 == 0o600
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"headway: .*pipe cannot be written: "):
        Publisher(None, pipe)  # and does not wait for one
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    publisher = Publisher(None, pipe)
    publisher.decision("{}")
    publisher.close()
    assert os.read(reader, 100) == b"{}\n"
    os.close(reader)
