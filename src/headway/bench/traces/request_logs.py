"""A kind of request log that another program writes: how it is recognised by its fields, and read as it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

from headway.bench.traces.column_map import ColumnMap
from headway.bench.traces.rows import Rows
from headway.bench.traces.values import Fault, inside, number_of_cell, shown

Record: TypeAlias = Mapping[str, object]
Entry: TypeAlias = Record | str
"""A request as flat fields, or why an entry of the log is no request to replay."""

_FIELD = re.compile(r'"([^"\\\n]{1,80})"\s*:')


@dataclass(frozen=True, slots=True)
class RequestLog:
    """One kind of log.

    Attributes:
        name: as sentences name it.
        marks: sets of fields; a log with all fields of one set is of this kind.
        columns: which field of an entry is which column.
        entries: the entries of one JSON object of the log. Raises Fault where the object is not as it should be.
        notes: what such a log lacks or rounds, a sentence each.
        is_whole_run: one object holds all requests of a run, which are numbered from 0 then.
    """

    name: str
    marks: tuple[frozenset[str], ...]
    columns: ColumnMap
    entries: Callable[[Record], Iterable[Entry]]
    notes: tuple[str, ...] = ()
    is_whole_run: bool = False

    def layout(self) -> ColumnMap:
        """The columns, under the log's name."""
        return replace(self.columns, layout=self.name)

    def add(self, line: int, record: Record, rows: Rows) -> None:
        """Every request of one object into `rows`; what is none is counted with its reason.

        Raises:
            UserMistake: a request is wrong, and bad lines are not skipped.
        """
        if self.is_whole_run:
            rows.place, line = "request", 0
        try:
            for entry in self.entries(record):
                if isinstance(entry, str):
                    rows.leave_out(entry)
                else:
                    rows.add(line, entry)
                line += self.is_whole_run
        except Fault as fault:
            rows.bad(line, fault)


def fields_in(text: str) -> list[str]:
    """The names of fields, nested ones too, in the beginning of a JSON text, in order."""
    return list(dict.fromkeys(_FIELD.findall(text)))


def either(record: Record, *names: str) -> object:
    """The first of these fields that is there and neither null nor empty; None where none is."""
    values = (inside(record, name) for name in names)
    return next((value for value in values if value is not None and value != ""), None)


def seconds_between(start: object, end: object) -> object:
    """Seconds from one date with time to another, or from one number of seconds to another.

    None where one is missing, `end` itself where it is no date. Raises Fault where only one is a number.
    """
    if start is None or end is None:
        return None
    start, end = (number_of_cell(time.strip()) if isinstance(time, str) else time for time in (start, end))
    are_numbers = [isinstance(time, int | float) for time in (start, end)]
    if all(are_numbers):
        try:
            return end - start  # type: ignore[operator]
        except OverflowError:
            return end  # a whole number of hundreds of digits is refused where it is read
    if any(are_numbers):
        raise Fault("of two times of a request one is a date and the other a number", shown(end))
    try:
        return (datetime.fromisoformat(str(end)) - datetime.fromisoformat(str(start))).total_seconds()
    except (ValueError, TypeError):
        return end
