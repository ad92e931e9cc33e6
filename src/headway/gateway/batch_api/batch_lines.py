"""Lines of batches in the store: read from their file, taken to be sent, recorded as answered or failed.

Laws: each line of a valid input file ends in one of the two result files, once, whatever is killed in between: what was
written of a result counts only with the transaction that marks its line. No file is ever read or written as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import groupby

from headway.gateway.batch_api.batch_rows import ApiBatch, LineResult, LineState, TakenLine
from headway.gateway.batch_api.batch_store import BatchStore
from headway.gateway.batch_api.input_lines import (
    InputLine,
    LineFault,
    body_and_custom_id,
    duplicate_fault,
    judge_line,
)
from headway.gateway.settings import BatchSettings

_STEP_LINES, _STEP_BYTES = 1_000, 4 << 20
FAULTS_MAX = 100
"""Faults of one file that are told; after so many the rest is not read."""
_DONE = f"({LineState.ANSWERED}, {LineState.FAILED})"


class InputReader:
    """Reads and judges the input file of one batch, in steps."""

    def __init__(self, store: BatchStore, batch: ApiBatch, settings: BatchSettings) -> None:
        self._store = store
        self.batch = batch
        self._settings = settings
        self._at = 0
        self._number = 0  # of the line last read, as an editor counts them
        self._seen: set[bytes] = set()
        self._models: set[str] = set()
        self._faults: list[LineFault] = []
        self._unstored: list[tuple[int, int, int, int, bytes]] = []  # rows: batch, number, start, bytes, custom_id

    def step(self) -> bool:
        """Read some lines on; whether all were read.

        Raises:
            OSError: the file cannot be read, or its lines not stored; the next step goes on with all that were read.
            sqlite3.Error: likewise.
        """
        is_last = self._read()
        with self._store.transaction():
            self._store.run_for_each(
                "INSERT INTO line (batch, number, start, bytes, custom_id) VALUES (?, ?, ?, ?, ?)",
                [] if self._faults else self._unstored,
            )
        self._unstored.clear()
        return is_last

    def lose(self) -> None:
        """The file is gone from the disk."""
        self._faults.append(LineFault("input_file_lost", "The input file is gone from the disk."))

    @property
    def faults(self) -> Sequence[LineFault]:
        """Of the file, once the last step was taken."""
        return self._faults

    @property
    def lines(self) -> int:
        """Good lines so far."""
        return len(self._seen)

    @property
    def model(self) -> str:
        """That of all lines; "" where they differ."""
        return next(iter(self._models)) if len(self._models) == 1 else ""

    def _read(self) -> bool:
        most, begun_at = self._settings.line_bytes_max, self._at
        with self._store.path_of(self.batch.input_id).open("rb") as file:
            file.seek(self._at)
            while len(self._unstored) < _STEP_LINES and self._at - begun_at < _STEP_BYTES:
                raw = file.readline(most + 1)
                if not raw:
                    if not self._seen and not self._faults:
                        self._faults.append(LineFault("empty_file", "The input file holds no request."))
                    return True
                self._number += 1
                fault = self._take(raw)
                self._at += len(raw)
                if fault is not None:
                    self._faults.append(fault._replace(line=self._number))
                    if len(self._faults) >= FAULTS_MAX or fault.code in ("line_too_long", "too_many_lines"):
                        return True
        return False

    def _take(self, raw: bytes) -> LineFault | None:
        if len(raw) > self._settings.line_bytes_max:
            message = f"This line is longer than {self._settings.line_bytes_max} bytes."
            return LineFault("line_too_long", message)
        if raw.isspace():
            return None
        judged = judge_line(raw, self.batch.endpoint)
        if not isinstance(judged, InputLine):
            return judged
        digest = blake2b(judged.name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in self._seen:
            return duplicate_fault(judged.name)
        if len(self._seen) >= self._settings.file_lines_max:
            return LineFault("too_many_lines", f"The file has more than {self._settings.file_lines_max} requests.")
        self._seen.add(digest)
        if len(self._models) < 2:
            self._models.add(judged.model)
        self._unstored.append((self.batch.seq, self._number, self._at, len(raw), judged.custom_id))
        return None


class BatchLines:
    """The lines of validated batches."""

    def __init__(self, store: BatchStore) -> None:
        self._store = store

    def waiting(self, batch: int) -> int:
        """How many of a batch's lines wait."""
        sql = "SELECT count(*) FROM line WHERE batch = ? AND state = ?"
        return int(self._store.rows(sql, batch, LineState.WAITING)[0][0])

    def take(self, batch: ApiBatch, most: int, bytes_most: int) -> list[TakenLine]:
        """Waiting lines, which count as sent from now on: `most`, and of so many bytes; but one at least.

        Raises:
            FileNotFoundError: the input file is gone.
        """
        found = self._store.rows(
            f"SELECT number, start, bytes, tries FROM line WHERE batch = ? AND state = {LineState.WAITING} "
            "ORDER BY number LIMIT ?",
            *(batch.seq, most),
        )
        rows: list[tuple[int, int, int, int]] = []
        held = 0
        for row in found:
            held += row[2]
            if rows and held > bytes_most:
                break
            rows.append(row)
        return self._sent(batch, rows)

    def take_again(self, batch: ApiBatch, number: int) -> TakenLine | None:
        """A line that was sent before and is to be sent once more; None if it ended meanwhile."""
        found = self._store.rows(
            f"SELECT number, start, bytes, tries FROM line WHERE batch = ? AND number = ? AND state NOT IN {_DONE}",
            *(batch.seq, number),
        )
        taken = self._sent(batch, found)
        return taken[0] if taken else None

    def _sent(self, batch: ApiBatch, rows: Sequence[tuple[int, int, int, int]]) -> list[TakenLine]:
        taken = []
        if rows:
            with self._store.path_of(batch.input_id).open("rb") as file:
                for number, start, size, tries in rows:
                    file.seek(start)
                    body, custom_id = body_and_custom_id(file.read(size))
                    taken.append(TakenLine(number, custom_id, tries + 1, body))
            with self._store.transaction():
                self._store.run_for_each(
                    f"UPDATE line SET state = {LineState.SENT}, tries = tries + 1 WHERE batch = ? AND number = ?",
                    [(batch.seq, line.number) for line in taken],
                )
        return taken

    def give_back(self, lines: Sequence[tuple[int, int, int]]) -> None:
        """Lines (tries that count, batch, number) wait again."""
        with self._store.transaction():
            self._store.run_for_each(
                f"UPDATE line SET state = {LineState.WAITING}, tries = ? WHERE batch = ? AND number = ? "
                f"AND state = {LineState.SENT}",
                lines,
            )

    def record(self, results: Sequence[LineResult]) -> None:
        """Write how lines ended; one that has ended before is left out.

        Raises:
            OSError: the disk is full, or fails. sqlite3.Error: likewise. What is not recorded may be given again.
        """
        ordered = sorted(results, key=lambda result: result.batch)
        for seq, group in groupby(ordered, key=lambda result: result.batch):
            self._record(self._store.batch_of(seq), list(group))

    def _record(self, batch: ApiBatch, group: Sequence[LineResult]) -> None:
        with self._store.transaction():
            fresh = [result for result in group if self._is_open(batch.seq, result.number)]
            answers = [one for one in fresh if one.is_answer]
            failures = [one for one in fresh if not one.is_answer]
            output, errors = (b"".join(one.text for one in part) for part in (answers, failures))
            if output:
                self._store.append(batch.output_id, batch.output_bytes, output)
            if errors:
                self._store.append(batch.error_id, batch.error_bytes, errors)
            self._store.run_for_each(
                "UPDATE line SET state = ? WHERE batch = ? AND number = ?",
                [(LineState.ANSWERED if one.is_answer else LineState.FAILED, batch.seq, one.number) for one in fresh],
            )
            self._store.change(
                batch.seq,
                completed=batch.completed + len(answers),
                failed=batch.failed + len(failures),
                output_bytes=batch.output_bytes + len(output),
                error_bytes=batch.error_bytes + len(errors),
                input_tokens=batch.input_tokens + sum(one.input_tokens for one in fresh),
                cached_tokens=batch.cached_tokens + sum(one.cached_tokens for one in fresh),
                output_tokens=batch.output_tokens + sum(one.output_tokens for one in fresh),
            )

    def _is_open(self, batch: int, number: int) -> bool:
        found = self._store.rows("SELECT state FROM line WHERE batch = ? AND number = ?", batch, number)
        return bool(found) and found[0][0] not in (LineState.ANSWERED, LineState.FAILED)

    def close_rest(self, batch: int, text_of: Callable[[bytes], bytes], most: int) -> int:
        """End some lines that have not ended, `most` at once; `text_of` a custom_id goes to the error file.

        Returns how many.
        """
        found = self._store.rows(
            f"SELECT number, custom_id FROM line WHERE batch = ? AND state NOT IN {_DONE} LIMIT ?", batch, most
        )
        self.record(
            [LineResult(batch, number, is_answer=False, text=text_of(custom_id)) for number, custom_id in found]
        )
        return len(found)
