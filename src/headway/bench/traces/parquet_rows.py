"""Reads Parquet (extra `parquet`): a request a row, with the fields of a known log or CSV, or the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from headway.bench.traces.column_map import AZURE, BURSTGPT, MOONCAKE, ColumnMap
from headway.bench.traces.known_logs import log_named, log_with
from headway.bench.traces.opening import TraceFile
from headway.bench.traces.rows import Rows
from headway.bench.traces.unknown_fields import unknown_fields
from headway.bench.user_mistake import UserMistake

_BATCH_ROWS = 1_000
_MAGIC = b"PAR1"


def recognises(start: bytes) -> bool:
    """Whether a file begins as Parquet does."""
    return start.startswith(_MAGIC)


def layout_of(file: TraceFile, names_columns: bool) -> ColumnMap:
    """The known layout with these fields; Mooncake's where the user names columns.

    Raises:
        UserMistake: pyarrow is missing, the file is broken or packed, or its fields are not known.
    """
    fields = _open(file).schema_arrow.names
    layouts = (MOONCAKE, AZURE, BURSTGPT)
    known = next((one for one in layouts if {*map(one.fields.get, ("prompt", "output"))} <= set(fields)), None)
    log = log_with(fields)
    if known is None and log is not None:
        return log.layout()
    if known is None and not names_columns:
        raise UserMistake(unknown_fields(file.label, next(_records(file), dict.fromkeys(fields, ""))))
    return known or MOONCAKE


def read(file: TraceFile, rows: Rows) -> None:
    """Every row into `rows`, numbered from 1.

    Raises:
        UserMistake: a row is wrong, and bad lines are not skipped.
    """
    rows.place = "row"
    log = log_named(rows.columns.layout)
    add = rows.add if log is None else partial(log.add, rows=rows)
    for sentence in () if log is None else log.notes:
        rows.note(sentence)
    for number, record in enumerate(_records(file), 1):
        add(number, record)


def _records(file: TraceFile) -> Iterator[dict[str, Any]]:
    """Each row as JSON would have it: dates as text."""
    import pyarrow

    batches = _open(file).iter_batches(batch_size=_BATCH_ROWS)
    while True:
        try:
            records = next(batches).to_pylist()
        except StopIteration:
            return
        except (OSError, ValueError, pyarrow.ArrowException) as fault:  # a column cut short, a date past 9999
            raise _unreadable(file, fault) from None
        for record in records:
            yield {name: _plain(value) for name, value in record.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        return dict(value)  # a map of Arrow
    written = getattr(value, "isoformat", None)
    return written() if callable(written) else value


def _open(file: TraceFile) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserMistake(f"{file.label}: is Parquet, which needs pyarrow: pip install 'headway[parquet]'") from None
    try:
        return parquet.ParquetFile(file.path)
    except (OSError, pyarrow.ArrowException) as fault:
        raise _unreadable(file, fault) from None


def _unreadable(file: TraceFile, fault: Exception) -> UserMistake:
    why = str(fault).partition("\n")[0]
    return UserMistake(f"{file.label}: cannot be read as Parquet ({why}); unpack or write it again")
