"""Metrics files and decision logs: written in a thread, never in the way of a step."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
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


def test_the_folder_is_the_owners_and_stays_while_another_engine_writes_there(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    one, other = (Publisher(folder / f"engine-{n}.prom", None, own_folder=True) for n in (0, 1))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not one.logs_decisions
    one.metrics("one\n")
    other.metrics("other\n")
    one.close()
    assert not (folder / "engine-0.prom").exists()
    other.close()
    assert not folder.exists()


def test_a_folder_that_the_operator_named_stays(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "named" / "engine-0.prom", None)
    publisher.metrics("x\n")
    publisher.close()
    assert list((tmp_path / "named").iterdir()) == []


def test_the_default_folder_is_one_of_this_user_and_instance() -> None:
    folder = metrics_folder(None, "abc12")
    assert folder is not None
    assert folder.name == f"headway-{os.getuid()}-abc12"
    assert folder.parent == Path(tempfile.gettempdir())


def test_what_cannot_be_written_is_dropped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is kept from reading until the backlog of 10,000 lines is full."""
    go_on = threading.Event()
    plain = Publisher._run

    def late(self: Publisher) -> None:
        go_on.wait()
        plain(self)

    monkeypatch.setattr(Publisher, "_run", late)
    publisher = Publisher(None, tmp_path / "log.jsonl")
    with caplog.at_level(logging.WARNING, "vllm.headway"):
        for number in range(10_000):
            publisher.decision(str(number))
        assert caplog.messages == []
        for number in range(10_000, 10_003):
            publisher.decision(str(number))
    assert caplog.messages == ["headway: cannot write all metrics and decisions, some are dropped: the backlog is full"]
    go_on.set()
    until(publisher._lines.empty)
    publisher.close()
    assert (tmp_path / "log.jsonl").read_text().splitlines() == [str(number) for number in range(10_000)]


def test_a_disk_that_fails_costs_one_warning_and_no_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "m").mkdir()
    publisher = Publisher(tmp_path / "m" / "engine-0.prom", None)
    (tmp_path / "m").rmdir()
    with caplog.at_level(logging.WARNING, "vllm.headway"):
        publisher.metrics("x\n")
        until(lambda: bool(caplog.messages))
        publisher.metrics("y\n")
        until(lambda: publisher._latest is None)
        publisher.close()
    assert len(caplog.messages) == 1
    assert "some are dropped: " in caplog.messages[0]


def test_the_metrics_that_a_scraper_finds_are_the_latest(tmp_path: Path) -> None:
    file = tmp_path / "engine-0.prom"
    publisher = Publisher(file, None)
    for text in ("one\n", "two\n"):
        publisher.metrics(text)
        until(lambda text=text: file.exists() and file.read_text() == text)
    assert [path.name for path in tmp_path.iterdir()] == ["engine-0.prom"]
    publisher.close()


def until(reached: Callable[[], bool], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.002)
