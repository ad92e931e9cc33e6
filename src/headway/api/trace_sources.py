"""Traces from files, tables and rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

from headway.bench.traces import loading
from headway.bench.traces.loading import LoadedTrace
from headway.bench.traces.reshaping import head
from headway.bench.user_mistake import UserMistake, whole


class TableOfRows(Protocol):
    """A table such as a pandas DataFrame."""

    columns: Any

    def to_dict(self, orient: str) -> Any:
        """With "records", its rows as mappings."""


def load_trace(
    source: str | os.PathLike[str] | TableOfRows | Iterable[Mapping[str, object]],
    *,
    columns: str | None = None,
    skip_bad_lines: bool = False,
    requests: int | None = None,
    seed: int = 0,
    name: str = "rows",
) -> LoadedTrace:
    """Read a trace.

    Args:
        source: a file (as `headway compare FILE`), the name of a built-in workload, a DataFrame, or mappings of field
            to value. Rows in memory have the fields of a line of JSON Lines: `timestamp` in milliseconds,
            `input_length`, `output_length` and more (docs/compare.md); or those that `columns` names.
        columns: which field holds what, for unknown ones: `arrival_s=at,prompt=tokens_in,output=tokens_out`.
        skip_bad_lines: leave bad rows out, and say so in `.notes`, instead of refusing them all.
        requests: only so many; of a workload, generate so many.
        seed: of a workload.
        name: what to call rows that are in memory.

    Returns:
        the trace, `.trace`, and what one should know of it, `.notes`.

    Raises:
        UserMistake: one sentence that names the file, the line, the field and the fix.
    """
    if requests is not None:
        whole("requests", requests, 1)
    if isinstance(source, str | os.PathLike):
        given = {} if requests is None else {"requests": requests}
        text = str(source) if isinstance(source, str) else str(Path(source))
        loaded = loading.load_trace(text, skip_bad_lines=skip_bad_lines, columns=columns, seed=seed, **given)
    else:
        loaded = loading.trace_of_rows(_rows(source), name, columns=columns, skip_bad_lines=skip_bad_lines)
    return loaded if requests is None else replace(loaded, trace=head(loaded.trace, requests))


def _rows(source: object) -> Iterable[Mapping[str, object]]:
    if hasattr(source, "columns") and hasattr(source, "to_dict"):
        return cast("Iterable[Mapping[str, object]]", cast(TableOfRows, source).to_dict("records"))
    if isinstance(source, Iterable):
        return source
    raise UserMistake(f"a trace is a file, a DataFrame or rows, not {source!r}")
