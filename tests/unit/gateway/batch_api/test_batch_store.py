"""The store of batches: whatever is killed in between, each line ends once, and nothing is left over."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.batch_api import batch_store
from headway.gateway.batch_api.batch_lines import FAULTS_MAX, BatchLines, InputReader
from headway.gateway.batch_api.batch_rows import ApiBatch, BatchStatus, LineResult
from headway.gateway.batch_api.batch_store import BatchStore
from headway.gateway.settings import BatchSettings
from tests.support.batch_files import CHAT_PATH, batch_line, lines_file

NOW = 1_000_000


class Killed(BaseException):
    """The process ends here; nothing after it is done."""


def opened(folder: Path) -> BatchStore:
    store = BatchStore(folder)
    store.open()
    return store


def stored(store: BatchStore, content: bytes, owner: str = "") -> str:
    path = store.uploads / "x"
    path.write_bytes(content)
    return store.add_file(path, owner, "batch", "in.jsonl", NOW, NOW + 100).id


def new_batch(store: BatchStore, input_id: str) -> ApiBatch:
    columns: dict[str, Any] = {"owner": "", "endpoint": CHAT_PATH, "input_id": input_id, "window": "24h"}
    return store.add_batch({**columns, "metadata": "", "created_at": NOW, "expires_at": NOW + 100})


def read(store: BatchStore, batch: ApiBatch, **settings: Any) -> InputReader:
    reader = InputReader(store, batch, BatchSettings(**settings))
    while not reader.step():
        pass
    return reader


def validated(store: BatchStore, lines: int) -> ApiBatch:
    batch = new_batch(store, stored(store, lines_file(batch_line(f"r{n}") for n in range(lines))[1]))
    reader = read(store, batch)
    assert not reader.faults
    return store.validated(batch.seq, reader.lines, reader.model, NOW)


def custom_ids(store: BatchStore, file_id: str) -> list[str]:
    if not file_id:
        return []
    return [json.loads(one)["custom_id"] for one in store.path_of(file_id).read_bytes().splitlines()]


def result(batch: ApiBatch, number: int, custom_id: bytes) -> LineResult:
    is_answer = number % 3 != 0
    return LineResult(batch.seq, number, is_answer, b'{"custom_id":%b}\n' % custom_id, 1, 2, 3)


def test_a_file_is_read_in_steps_and_its_lines_are_found_again(tmp_path: Path) -> None:
    store = opened(tmp_path)
    content = b"\n".join(json.dumps(batch_line(f"r{n}", "é" * n)).encode() for n in range(2_500))
    batch = new_batch(store, stored(store, b"\r\n  \n" + content))  # blank lines, and no line break at the end
    reader = InputReader(store, batch, BatchSettings())
    steps = 1
    while not reader.step():
        steps += 1
    assert steps > 2
    assert (reader.lines, reader.model, list(reader.faults)) == (2_500, "m", [])
    batch = store.validated(batch.seq, reader.lines, reader.model, NOW)
    assert (batch.status, batch.total) == ("in_progress", 2_500)
    lines = BatchLines(store)
    taken = lines.take(batch, 3, 1_000_000)
    assert [(line.number, line.custom_id, line.try_number) for line in taken] == [
        (3, b'"r0"', 1),
        (4, b'"r1"', 1),
        (5, b'"r2"', 1),
    ]
    assert json.loads(taken[2].body)["messages"][0]["content"] == "éé"
    assert len(lines.take(batch, 100, 1)) == 1  # one at least
    assert lines.waiting(batch.seq) == 2_496
    store.close()


def test_faults_have_the_numbers_of_their_lines(tmp_path: Path) -> None:
    store = opened(tmp_path)
    good = json.dumps(batch_line("a")).encode()
    batch = new_batch(store, stored(store, b"\n".join([good, b"", b"{", good.replace(b'"a"', b'"\\u0061"')])))
    faults = read(store, batch).faults
    assert [(fault.line, fault.code) for fault in faults] == [(3, "invalid_json_line"), (4, "duplicate_custom_id")]
    many = new_batch(store, stored(store, b"x\n" * 1_000))
    assert len(read(store, many).faults) == FAULTS_MAX
    empty = new_batch(store, stored(store, b"\n \n"))
    assert [fault.code for fault in read(store, empty).faults] == ["empty_file"]
    long = new_batch(store, stored(store, lines_file(batch_line(f"{n}") for n in range(4))[1]))
    assert [(fault.line, fault.code) for fault in read(store, long, file_lines_max=3).faults] == [(4, "too_many_lines")]
    assert [fault.code for fault in read(store, long, line_bytes_max=10).faults] == ["line_too_long"]
    store.close()


def test_files_and_batches_that_are_old_go(tmp_path: Path) -> None:
    store = opened(tmp_path)
    batch = validated(store, 2)
    unused = stored(store, b"x")
    assert store.forget_old(NOW + 100, 1_000) == 1  # the other one is still read
    assert not store.path_of(unused).exists()
    assert store.path_of(batch.input_id).exists()
    store.end(batch.seq, BatchStatus.CANCELLED, NOW + 50, 1_000)
    assert store.forget_old(NOW + 100, 1_000) == 1
    assert store.batch(batch.id, "") is not None
    assert store.forget_old(NOW + 1_050, 1_000) == 1
    assert store.batch(batch.id, "") is None
    assert store.space() == {}
    store.close()


def test_a_line_that_has_ended_is_not_recorded_again(tmp_path: Path) -> None:
    store = opened(tmp_path)
    batch, lines = validated(store, 3), BatchLines(store)
    taken = lines.take(batch, 3, 10**6)
    results = [result(batch, line.number, line.custom_id) for line in taken]
    lines.record(results[:2])
    lines.record(results)
    batch = store.end(batch.seq, BatchStatus.COMPLETED, NOW, 100)
    assert (batch.completed, batch.failed) == (2, 1)
    assert (batch.input_tokens, batch.cached_tokens, batch.output_tokens) == (3, 6, 9)
    assert custom_ids(store, batch.output_id) == ["r0", "r1"]
    assert custom_ids(store, batch.error_id) == ["r2"]
    store.close()


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        opened(tmp_path / "nothing")
    (tmp_path / "batches.sqlite3").write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match="cannot be used: file is not a database"):
        opened(tmp_path)
    (tmp_path / "batches.sqlite3").unlink()
    with sqlite3.connect(tmp_path / "batches.sqlite3") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ValueError, match="written by another version"):
        opened(tmp_path)


class Kills:
    """Ends the process at the n-th of the moments at which it touches the disk."""

    def __init__(self, at: int) -> None:
        self.left = at

    def moment(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


def killing(monkeypatch: pytest.MonkeyPatch, kills: Kills) -> None:
    """A kill before or after each statement, write, cut, rename and removal; in a write also in its middle."""
    run, pwrite = BatchStore.run, os.pwrite

    def ran(store: BatchStore, sql: str, *values: object) -> Any:
        if sql == "ROLLBACK":  # a killed process rolls nothing back: SQLite does, when it is opened again
            return run(store, sql)
        kills.moment()
        done = run(store, sql, *values)
        if sql == "COMMIT":
            kills.moment()
        return done

    def written(handle: int, content: Any, at: int) -> int:
        kills.moment()
        part = pwrite(handle, bytes(content)[: max(1, len(content) // 2)], at)
        kills.moment()
        return part

    monkeypatch.setattr(BatchStore, "run", ran)
    monkeypatch.setattr(batch_store.os, "pwrite", written)


@given(st.lists(st.integers(1, 60), max_size=4), st.integers(1, 12), st.sampled_from(["end", "cancel"]))
def test_each_line_ends_once_whatever_is_killed(moments: list[int], total: int, way: str) -> None:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder, kills = Path(name), Kills(0)
        store = opened(folder)
        batch = validated(store, total)
        killing(patch, kills)
        for at in [*moments, 0]:
            kills.left = at
            try:
                worked_off(store, batch.seq, way)
            except Killed:
                store.close()
                kills.left = 0
                store = opened(folder)
        batch = store.batch_of(batch.seq)
        assert not batch.is_open
        ended = Counter([*custom_ids(store, batch.output_id), *custom_ids(store, batch.error_id)])
        assert ended == Counter(f"r{n}" for n in range(total))
        assert batch.completed + batch.failed == total
        assert {path.name for path in (folder / "files").iterdir()} == {
            batch.input_id,
            batch.output_id,
            batch.error_id,
        } - {""}
        sizes = {file.id: file.bytes for file in store.files("", None, None, 10, newest_first=True) or []}
        assert sizes == {file_id: store.path_of(file_id).stat().st_size for file_id in sizes}
        store.close()


def worked_off(store: BatchStore, seq: int, way: str) -> None:
    """Carry a batch to its end, as far as it goes."""
    lines = BatchLines(store)
    while (batch := store.batch_of(seq)).is_open:
        if way == "cancel" and batch.completed:
            store.cancel(seq, NOW)
            while lines.close_rest(seq, lambda custom_id: b'{"custom_id":%b}\n' % custom_id, 2) == 2:
                pass
            store.end(seq, BatchStatus.CANCELLED, NOW, 100)
            return
        taken = lines.take(batch, 3, 10**6)
        if not taken:
            store.end(seq, BatchStatus.COMPLETED, NOW, 100)
            return
        lines.record([result(batch, line.number, line.custom_id) for line in taken[:2]])
        lines.give_back([(line.try_number - 1, seq, line.number) for line in taken[2:]])


def test_what_was_written_and_not_recorded_is_not_in_a_result_file(tmp_path: Path) -> None:
    store = opened(tmp_path)
    batch, other = validated(store, 2), validated(store, 1)
    lines = BatchLines(store)
    first, _ = lines.take(batch, 2, 10**6)
    lines.record([result(batch, first.number, first.custom_id)])
    batch = store.batch_of(batch.seq)
    store.append(batch.output_id, batch.output_bytes, b"an answer that a kill came after\n")
    store.append(other.output_id, 0, b"another\n")
    store.close()
    store.open()
    assert store.sent_again == 1
    for one in (batch, other):
        assert lines.close_rest(one.seq, lambda custom_id: b'{"custom_id":%b}\n' % custom_id, 10) == 1
        store.end(one.seq, BatchStatus.EXPIRED, NOW, 100)
    assert custom_ids(store, batch.output_id) == ["r0"]
    assert not store.path_of(other.output_id).exists()
    store.close()


def test_lines_that_could_not_be_stored_are_stored_by_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    batch = new_batch(store, stored(store, lines_file(batch_line(f"r{n}") for n in range(2_500))[1]))
    reader = InputReader(store, batch, BatchSettings())
    run_for_each, calls = store.run_for_each, 0

    def fails_every_other_time(sql: str, rows: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise sqlite3.OperationalError("database or disk is full")
        run_for_each(sql, rows)

    monkeypatch.setattr(store, "run_for_each", fails_every_other_time)
    is_read = False
    while not is_read:
        try:
            is_read = reader.step()
        except sqlite3.OperationalError:
            continue
    assert reader.lines == 2_500
    assert BatchLines(store).waiting(batch.seq) == 2_500
    store.close()
