"""The formats of trace files. To add one, text or binary: a file that reads it, and a row in `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headway.bench.traces import comma_separated, json_lines, parquet_rows, vllm_logs
from headway.bench.traces.column_map import ColumnMap
from headway.bench.traces.opening import TraceFile
from headway.bench.traces.rows import Rows

PACKINGS = (".gz", ".zst")
"""Endings of packed files; any format may be packed."""


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """One format of trace files.

    Attributes:
        suffixes: where a trace is named without its suffix, these are tried, in this order.
        endings: what is no part of a trace's name.
        recognises: whether a file begins as this format does, by its first bytes, unpacked.
        layout_of: which of its fields is which column. The flag says that the user names columns, so that an unknown
            layout is no mistake. Raises UserMistake.
        read: adds every request of the file to the rows. Raises UserMistake.
    """

    suffixes: tuple[str, ...]
    endings: tuple[str, ...]
    recognises: Callable[[bytes], bool]
    layout_of: Callable[[TraceFile, bool], ColumnMap]
    read: Callable[[TraceFile, Rows], None]


FORMATS = (
    TraceFormat(
        suffixes=(".parquet",),
        endings=(".parquet",),
        recognises=parquet_rows.recognises,
        layout_of=parquet_rows.layout_of,
        read=parquet_rows.read,
    ),
    TraceFormat(
        suffixes=(".jsonl.gz", ".jsonl", ".jsonl.zst"),
        endings=(".jsonl", ".json", ".ndjson"),
        recognises=json_lines.recognises,
        layout_of=json_lines.layout_of,
        read=json_lines.read,
    ),
    TraceFormat(
        suffixes=(".log", ".log.gz", ".log.zst"),
        endings=(".log",),
        recognises=vllm_logs.recognises,
        layout_of=vllm_logs.layout_of,
        read=vllm_logs.read,
    ),
    TraceFormat(
        suffixes=(".csv", ".csv.gz", ".csv.zst"),
        endings=(".csv",),
        recognises=lambda start: True,  # the last row takes every other file, and says what is wrong with it
        layout_of=comma_separated.layout_of,
        read=comma_separated.read,
    ),
)


def format_of(file: TraceFile) -> TraceFormat:
    """The first format that recognises the file."""
    return next(known for known in FORMATS if known.recognises(file.start))
