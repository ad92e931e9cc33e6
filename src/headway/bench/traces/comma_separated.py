"""Reads CSV: a header, then one request per line. Azure's and BurstGPT's headers are known, others need `--columns`."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator
from functools import partial

from headway.bench.traces.column_map import AZURE, BURSTGPT, EXAMPLE, REQUIRED, ColumnMap
from headway.bench.traces.known_logs import log_named, log_with
from headway.bench.traces.opening import TraceFile
from headway.bench.traces.rows import Rows
from headway.bench.traces.unknown_fields import unknown_fields
from headway.bench.traces.values import Fault, number_of_cell, shown
from headway.bench.user_mistake import UserMistake

KNOWN_TEXT = "of text logs only vLLM's request log is known, and docs/your-logs.md lists all logs"
_TEXT = {"tenant", "session"}  # never to be taken for numbers: 007 is not 7


def header_of(file: TraceFile) -> tuple[list[str], str]:
    """The names in the first line that is not blank, and the sign between them."""
    first = next((line for line in file.sample.split("\n") if line.strip()), "").rstrip("\r")
    sign = max(",;\t", key=first.count)
    try:
        return [name.strip() for name in next(csv.reader([first], delimiter=sign), [])], sign
    except csv.Error as fault:
        raise UserMistake(f"{file.label}: line 1: is not CSV ({fault}); save the file as CSV again") from None


def layout_of(file: TraceFile, names_columns: bool) -> ColumnMap:
    """The known layout with this header; one without fields where there is none and the user names the columns.

    Raises:
        UserMistake: neither is known which field is which.
    """
    header, _ = header_of(file)
    layout = next((known for known in (AZURE, BURSTGPT) if set(known.fields.values()) <= set(header)), None)
    if layout is None and (log := log_with(header)) is not None:
        return log.layout()
    if layout is None and not names_columns:
        raise UserMistake(_unclear(file, header))
    return layout or ColumnMap({})


def read(file: TraceFile, rows: Rows) -> None:
    """Every line after the header into `rows`.

    Raises:
        UserMistake: the header lacks a field.
    """
    header, sign = header_of(file)
    columns = rows.columns
    log = log_named(columns.layout)
    add = rows.add if log is None else partial(log.add, rows=rows)
    if log is None:
        _check_header(file.label, header, columns)
    wanted = {name: place for place, name in enumerate(header) if log or name in columns.fields.values()}
    texts = {columns.fields[column] for column in _TEXT & columns.fields.keys()}
    cells = [(name, place, _text_of_cell if name in texts else number_of_cell) for name, place in wanted.items()]
    reader = csv.reader(_numbered(file), delimiter=sign)
    rows_of_cells = (
        row for row in reader if row and (len(row) > 1 or row[0].strip())
    )  # blank lines are no lines, before the header too
    try:
        next(rows_of_cells, None)
        for row in rows_of_cells:
            if len(row) != len(header):
                rows.bad(
                    reader.line_num, Fault(f"the line does not have {len(header)} fields", detail=f"it has {len(row)}")
                )
                continue
            add(reader.line_num, {name: read_cell(row[place]) for name, place, read_cell in cells})
    except csv.Error as fault:
        raise UserMistake(
            f"{file.label}: line {reader.line_num}: is not CSV ({fault}); save the file as CSV again"
        ) from None


def _text_of_cell(cell: str) -> str | None:
    return cell or None


def _numbered(file: TraceFile) -> Iterator[str]:
    for _, line in file.lines():
        yield line


def _check_header(label: str, header: list[str], columns: ColumnMap) -> None:
    for column in REQUIRED:
        if column not in columns.fields:
            raise UserMistake(
                f"{label}: its fields are {shown(', '.join(header))}, which is no known format, and --columns names no "
                f"{column}; add {column}=FIELD to {EXAMPLE}"
            )
    for column, field in columns.fields.items():
        if field not in header:
            near = difflib.get_close_matches(field, header, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"the header has {shown(', '.join(header))}"
            raise UserMistake(f"{label}: the header has no field {field!r} for {column}; {hint}")
        if header.count(field) > 1:
            raise UserMistake(f"{label}: the header has {field!r} more than once; rename one of them")


def _unclear(file: TraceFile, header: list[str]) -> str:
    if len(header) < 3:
        start = file.sample.strip().partition("\n")[0][:40]
        return f"{file.label}: is neither JSON Lines nor CSV (it starts with {start!r}); {KNOWN_TEXT}"
    return unknown_fields(file.label, dict.fromkeys(header, ""))
