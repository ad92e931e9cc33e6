"""Loads a trace by what the user typed: a file, a name in HEADWAY_TRACES, or a built-in workload."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headway.bench.traces.column_map import MOONCAKE, parse_columns, with_columns
from headway.bench.traces.finding import bare_name, find_file
from headway.bench.traces.formats import format_of
from headway.bench.traces.opening import TraceFile
from headway.bench.traces.rows import Rows
from headway.bench.user_mistake import UserMistake
from headway.bench.workloads import WORKLOADS
from headway.simulator.trace import Tokens, Trace

WORKLOAD_REQUESTS = 5_000


@dataclass(frozen=True, slots=True)
class LoadedTrace:
    """A trace, and how it came in.

    Attributes:
        trace: the requests.
        notes: what the user should know, a sentence each: lines skipped, sessions not replayed as such.
        origin: what it is called and where it comes from.
        lines: the line in the file of each request, to name it by; None for a workload.
    """

    trace: Trace
    notes: list[str]
    origin: str
    lines: Tokens | None = None


def load_trace(
    text: str,
    *,
    skip_bad_lines: bool = False,
    columns: str | None = None,
    requests: int = WORKLOAD_REQUESTS,
    seed: int = 0,
) -> LoadedTrace:
    """Read a trace, or generate a workload.

    Args:
        text: a path; a name in the folder HEADWAY_TRACES, with or without its suffix; or a workload's name, which wins
            over a file of the same name (write ./NAME for the file).
        skip_bad_lines: leave bad lines out and say so in the notes, instead of refusing the file.
        columns: which field is what, for a file of no known format: `arrival_ms=t,prompt=in,output=out`.
        requests: how many a workload generates; files are read whole.
        seed: of a workload.

    Raises:
        UserMistake: one sentence with file, line, field, what is wrong and the fix.
    """
    workload = WORKLOADS.get(text)
    if workload is not None:
        if columns:
            raise UserMistake(f"--columns is for files, and {text} is a workload; write ./{text} if you mean a file")
        return LoadedTrace(workload.generate(requests, seed), [], f"{text}: {workload.summary}")
    path = find_file(text, tuple(WORKLOADS))
    with TraceFile(path) as file:
        trace, lines, notes = _read(file, parse_columns(columns) if columns else {}, skip_bad_lines)
    return LoadedTrace(trace, notes, str(path), lines)


def trace_of_rows(
    rows: Iterable[Mapping[str, object]], name: str, *, columns: str | None = None, skip_bad_lines: bool = False
) -> LoadedTrace:
    """Read requests that are in memory, with the fields that a line of JSON Lines has; `load_trace` otherwise.

    A line's number is that of the row, from 1. A field that is NaN counts as absent: so a table marks what it lacks.

    Raises:
        UserMistake: as `load_trace`.
    """
    collected = Rows(name, with_columns(MOONCAKE, parse_columns(columns) if columns else {}), skip_bad_lines)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise UserMistake(f"{name}: row {number} is {row!r}, not a mapping of field to value")
        collected.add(
            number, {str(field): plain for field, value in row.items() if (plain := _plain(value)) is not None}
        )
    trace, lines, notes = collected.trace(name)
    return LoadedTrace(trace, notes, name, lines)


def _plain(value: object) -> object:
    """A value as JSON has it: numbers and arrays of numpy as Python's, dates as text, NaN as None."""
    listed = getattr(value, "tolist", None)
    if callable(listed):
        value = listed()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if (value != value) is not False:  # noqa: PLR0124
        return None  # NaN and a table's NaT differ from themselves, and of its NA no one knows
    written = getattr(value, "isoformat", None)
    return written() if callable(written) else value


def _read(file: TraceFile, pairs: dict[str, str], skip: bool) -> tuple[Trace, Tokens, list[str]]:
    known = format_of(file)
    rows = Rows(file.label, with_columns(known.layout_of(file, bool(pairs)), pairs), skip)
    known.read(file, rows)
    return rows.trace(bare_name(file.path))
