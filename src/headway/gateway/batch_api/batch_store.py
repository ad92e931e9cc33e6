"""The store of the Batch API: files in a folder, and what is known of them and of batches in SQLite beside them.

Laws: a file of the API is there whole or not at all; a kill at any moment leaves a state from which the next start goes
on; nothing that a client sends becomes part of a path. All of it is called in one thread, beside the event loop.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from headway.gateway.batch_api.batch_rows import OPEN, SCHEMA, VERSION, ApiBatch, BatchStatus, LineState, StoredFile

_OPEN_SQL = ", ".join(f"'{status}'" for status in OPEN)
_DATABASE = "batches.sqlite3"
_FILES_AT_ONCE = 500  # of those that have expired, deleted at one call


def new_file_id() -> str:
    """An id that no other file has, and that leads nowhere as a path."""
    return f"file-{secrets.token_hex(12)}"


def check_batch_folder(folder: str | None) -> None:
    """Raise ValueError, one sentence, if nothing can be kept in the folder; None names none."""
    if folder is None:
        return
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"batches.folder: there is no folder {folder!r}; make it first")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ValueError(f"batches.folder: this process may not write into {folder!r}; change its owner or mode")


class BatchStore:
    """Everything that is kept. Open it before anything else is called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uploads = folder / "uploads"
        self._files = folder / "files"
        self._lock: int | None = None
        self._database: sqlite3.Connection | None = None
        self.sent_again = 0  # lines that were under way when the process before this one ended

    def open(self) -> None:
        """Take the folder, for this process alone, and mend what a kill has left half done.

        Raises:
            ValueError: one sentence; another gateway has the folder, or what is in it cannot be used.
        """
        check_batch_folder(str(self.folder))
        try:
            for room in (self._files, self.uploads):
                room.mkdir(mode=0o700, exist_ok=True)
            self._take_lock()
            path = self.folder / _DATABASE
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._database = self._connect(path)
            self._mend()
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise ValueError(f"batches.folder: {str(self.folder)!r} cannot be used: {error}") from None
        except ValueError:
            self.close()
            raise

    def _take_lock(self) -> None:
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"batches.folder: another gateway uses {str(self.folder)!r}; give each a folder of its own"
            ) from None

    def _connect(self, path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")  # what was told to a client outlives a power cut
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            database.executescript(SCHEMA)
        elif version != VERSION:
            database.close()
            raise ValueError(
                f"batches.folder: {str(self.folder)!r} was written by another version of Headway; give an empty folder"
            )
        return database

    def _mend(self) -> None:
        """Forget what was not finished: uploads, files without a row, lines of a file that was being validated."""
        for path in self.uploads.iterdir():
            path.unlink()
        known = {row[0] for row in self.rows("SELECT id FROM file")}
        for batch in self.open_batches():
            known |= {batch.output_id, batch.error_id}
        for path in self._files.iterdir():
            if path.name not in known:
                path.unlink()
        with self.transaction():
            self.run("DELETE FROM line WHERE batch NOT IN (SELECT seq FROM batch WHERE total IS NOT NULL)")
            changed = self.run("UPDATE line SET state = ? WHERE state = ?", LineState.WAITING, LineState.SENT)
            self.sent_again = changed.rowcount

    def close(self) -> None:
        """Give the folder back."""
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):  # whatever it is, the next start mends it
                database.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    # SQL

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of a block's changes are kept, or none."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # a full disk may have rolled it back already
                self.run("ROLLBACK")
            raise

    def run(self, sql: str, *values: object) -> sqlite3.Cursor:
        """Carry out one statement."""
        if self._database is None:
            raise sqlite3.ProgrammingError("the store of the Batch API is closed")
        return self._database.execute(sql, values)

    def run_for_each(self, sql: str, rows: Iterable[tuple[object, ...]]) -> None:
        """Carry out one statement for each row of values."""
        if self._database is None:
            raise sqlite3.ProgrammingError("the store of the Batch API is closed")
        self._database.executemany(sql, rows)

    def rows(self, sql: str, *values: object) -> list[Any]:
        """All rows that a statement gives."""
        return self.run(sql, *values).fetchall()

    # Files

    def path_of(self, file_id: str) -> Path:
        """Where the content of a file stands. The id is one of ours, found in the database."""
        return self._files / file_id

    def add_file(
        self, content: Path, owner: str, purpose: str, name: str, created_at: int, expires_at: int
    ) -> StoredFile:
        """An upload is whole: it becomes a file. `content` is on the disk already, and is moved."""
        file_id, size = new_file_id(), content.stat().st_size
        content.rename(self.path_of(file_id))
        self.sync_folder()
        self._insert_file(file_id, owner, purpose, name, size, created_at, expires_at)
        found = self.file(file_id, owner)
        assert found is not None, "it was just made"
        return found

    def _insert_file(
        self, file_id: str, owner: str, purpose: str, name: str, size: int, created_at: int, expires_at: int
    ) -> None:
        self.run(
            "INSERT INTO file (id, owner, purpose, name, bytes, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            *(file_id, owner, purpose, name, size, created_at, expires_at),
        )

    def sync_folder(self) -> None:
        """The names of new files outlive a power cut from now on."""
        handle = os.open(self._files, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def cut_to(self, file_id: str, size: int) -> None:
        """Take from a result file what was written and not recorded; one in which nothing is recorded goes."""
        path = self.path_of(file_id)
        if not size:
            path.unlink(missing_ok=True)
        elif path.stat().st_size != size:
            os.truncate(path, size)

    def append(self, file_id: str, size: int, text: bytes) -> None:
        """Add to a result file of which `size` bytes are recorded, over what was written and not recorded.

        It is on the disk when this returns.

        Raises:
            OSError: the disk is full, or fails; nothing is recorded.
        """
        is_new = not size
        handle = os.open(self.path_of(file_id), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            try:
                left = memoryview(text)
                while left:
                    written = os.pwrite(handle, left, size)
                    left, size = left[written:], size + written
                os.fsync(handle)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(handle, size - (len(text) - len(left)))  # what it took is free again
                raise
        finally:
            os.close(handle)
        if is_new:
            self.sync_folder()

    def file(self, file_id: str, owner: str) -> StoredFile | None:
        """A file of this owner; None if there is none of the id."""
        found = self.rows("SELECT * FROM file WHERE id = ? AND owner = ?", file_id, owner)
        return StoredFile(*found[0]) if found else None

    def files(
        self, owner: str, purpose: str | None, after: str | None, limit: int, *, newest_first: bool
    ) -> list[StoredFile] | None:
        """A page of an owner's files; None if there is no file `after`."""
        seq = self._seq_after("file", owner, after)
        if seq is None:
            return None
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        found = self.rows(
            "SELECT * FROM file WHERE owner = ? AND (? = 0 OR seq " + sign + " ?) AND (? IS NULL OR purpose = ?) "
            f"ORDER BY seq {order} LIMIT ?",
            *(owner, seq, seq, purpose, purpose, limit),
        )
        return [StoredFile(*row) for row in found]

    def _seq_after(self, table: str, owner: str, after: str | None) -> int | None:
        if after is None:
            return 0
        found = self.rows(f"SELECT seq FROM {table} WHERE id = ? AND owner = ?", after, owner)
        return int(found[0][0]) if found else None

    def count_files(self, owner: str) -> int:
        """How many files an owner has."""
        return int(self.rows("SELECT count(*) FROM file WHERE owner = ?", owner)[0][0])

    def delete_file(self, file_id: str) -> str | None:
        """Delete a file; or the id of the open batch that still reads it, then nothing is deleted."""
        users = self.rows(f"SELECT id FROM batch WHERE input_id = ? AND status IN ({_OPEN_SQL}) LIMIT 1", file_id)
        if users:
            return str(users[0][0])
        self.run("DELETE FROM file WHERE id = ?", file_id)
        self.path_of(file_id).unlink(missing_ok=True)
        return None

    def forget_old(self, now: int, keep_seconds: int) -> int:
        """Delete files that have expired and that no open batch reads, and batches that ended so long ago.

        At most some hundred at one call; returns how many were deleted.
        """
        found = self.rows(
            f"SELECT id FROM file WHERE expires_at <= ? AND id NOT IN (SELECT input_id FROM batch WHERE status IN "
            f"({_OPEN_SQL})) LIMIT ?",
            *(now, _FILES_AT_ONCE),
        )
        for (file_id,) in found:
            self.delete_file(file_id)
        old = self.run(
            "DELETE FROM batch WHERE seq IN (SELECT seq FROM batch WHERE coalesce(completed_at, failed_at, expired_at, "
            "cancelled_at) <= ? LIMIT ?)",
            *(now - keep_seconds, _FILES_AT_ONCE),
        )
        return len(found) + old.rowcount

    def space(self) -> dict[str, int]:
        """Owner -> bytes of its files, and of the results so far of its open batches."""
        found = self.rows(
            "SELECT owner, sum(bytes) FROM (SELECT owner, bytes FROM file UNION ALL SELECT owner, output_bytes + "
            f"error_bytes FROM batch WHERE status IN ({_OPEN_SQL})) GROUP BY owner"
        )
        return {str(owner): int(size) for owner, size in found}

    def free_bytes(self) -> int:
        """Of the disk."""
        return shutil.disk_usage(self.folder).free

    # Batches

    def add_batch(self, fields: dict[str, object]) -> ApiBatch:
        """Make a batch of these columns; the ids of its result files are ours."""
        fields = {
            **fields,
            "id": f"batch_{secrets.token_hex(16)}",
            "status": str(BatchStatus.VALIDATING),
            "output_id": new_file_id(),
            "error_id": new_file_id(),
        }
        names, marks = ", ".join(fields), ", ".join("?" * len(fields))
        seq = self.run(f"INSERT INTO batch ({names}) VALUES ({marks})", *fields.values()).lastrowid
        return self.batch_of(int(seq or 0))

    def batch_of(self, seq: int) -> ApiBatch:
        """The batch of this number. Raises IndexError if there is none."""
        return ApiBatch(*self.rows("SELECT * FROM batch WHERE seq = ?", seq)[0])

    def batch(self, batch_id: str, owner: str) -> ApiBatch | None:
        """A batch of this owner; None if there is none of the id."""
        found = self.rows("SELECT * FROM batch WHERE id = ? AND owner = ?", batch_id, owner)
        return ApiBatch(*found[0]) if found else None

    def batches(self, owner: str, after: str | None, limit: int) -> list[ApiBatch] | None:
        """A page of an owner's batches, the newest first; None if there is no batch `after`."""
        seq = self._seq_after("batch", owner, after)
        if seq is None:
            return None
        found = self.rows(
            "SELECT * FROM batch WHERE owner = ? AND (? = 0 OR seq < ?) ORDER BY seq DESC LIMIT ?",
            *(owner, seq, seq, limit),
        )
        return [ApiBatch(*row) for row in found]

    def open_batches(self, owner: str | None = None) -> list[ApiBatch]:
        """Those that have not ended, the oldest first; of one owner, or of all."""
        found = self.rows(
            f"SELECT * FROM batch WHERE status IN ({_OPEN_SQL}) AND (? IS NULL OR owner = ?) ORDER BY seq", owner, owner
        )
        return [ApiBatch(*row) for row in found]

    def change(self, seq: int, **columns: object) -> None:
        """Set columns of a batch."""
        sets = ", ".join(f"{name} = ?" for name in columns)
        self.run(f"UPDATE batch SET {sets} WHERE seq = ?", *columns.values(), seq)

    def cancel(self, seq: int, now: int) -> ApiBatch:
        """Cancel a batch, unless it has ended or was cancelled before."""
        begun = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
        self.run(
            "UPDATE batch SET status = ?, cancelling_at = ? WHERE seq = ? AND status IN (?, ?)",
            *(BatchStatus.CANCELLING, now, seq, *begun),
        )
        return self.batch_of(seq)

    def validated(self, seq: int, lines: int, model: str, now: int) -> ApiBatch:
        """The input file of a batch is valid: it is in progress, unless it was cancelled meanwhile."""
        self.run(
            "UPDATE batch SET total = ?, model = ?, in_progress_at = ?, status = CASE status WHEN ? THEN ? ELSE status "
            "END WHERE seq = ?",
            *(lines, model, now, BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, seq),
        )
        return self.batch_of(seq)

    def statuses(self) -> dict[str, int]:
        """Status -> batches."""
        return {
            str(status): int(number) for status, number in self.rows("SELECT status, count(*) FROM batch GROUP BY 1")
        }

    def end(self, seq: int, status: BatchStatus, now: int, keep_seconds: int) -> ApiBatch:
        """A batch has ended: its result files become files of the API, where there is something in them."""
        batch = self.batch_of(seq)
        expires_at = now + (batch.results_seconds or keep_seconds)
        columns: dict[str, object] = {"status": str(status), f"{status}_at": now}
        if status is BatchStatus.COMPLETED:
            columns["finalizing_at"] = now
        with self.transaction():
            for column, size, kind in (
                ("output_id", batch.output_bytes, "output"),
                ("error_id", batch.error_bytes, "error"),
            ):
                file_id = getattr(batch, column)
                self.cut_to(file_id, size)
                if size:
                    name = f"{batch.id}_{kind}.jsonl"
                    self._insert_file(file_id, batch.owner, "batch_output", name, size, now, expires_at)
                else:
                    columns[column] = ""
            self.change(seq, **columns)
            self.run("DELETE FROM line WHERE batch = ?", seq)
        return self.batch_of(seq)
