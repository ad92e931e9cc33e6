"""Checks the values of a trace file: lengths, times, labels, block ids. A wrong value raises `Fault`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TypeAlias

from headway.bench.traces.column_map import ColumnMap

TOKENS_MAX = 100_000_000
SECONDS_MAX = 1e11  # 3,000 years: past it the unit is wrong
_ID_MAX = 2**62  # ids are multiplied by the sub-blocks of a block on arrays of 64 bits

Reader: TypeAlias = Callable[[object], object]


class Fault(Exception):
    """One thing wrong in one line.

    Args:
        rule: what is wrong, the same for every such line, to count by: "`turn` is not a whole number".
        shown: the value, as it is shown; empty if there is none to show.
        fix: what to do about it.
        detail: shown instead of the value.
    """

    def __init__(self, rule: str, shown: str = "", fix: str = "", *, detail: str = "") -> None:
        super().__init__(rule)
        self.rule = rule
        self.fix = fix
        self.detail = detail or (f"it is {shown}" if shown else "")

    def __str__(self) -> str:
        return self.sentence("correct the line, or leave such lines out with --skip-bad-lines")

    def sentence(self, otherwise: str) -> str:
        """What is wrong and what to do about it: `otherwise` where the fault has no fix of its own."""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.rule}{detail}; {self.fix or otherwise}"


def shown(value: object) -> str:
    """A value for a sentence, cut to 40 characters."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def number_of_cell(cell: str) -> int | float | str | None:
    """A CSV cell as a number if it is one, else unchanged; None if it is empty."""
    if not cell:
        return None
    try:
        return int(cell)
    except ValueError:  # an integer of thousands of digits too, which is infinite then
        try:
            return float(cell)
        except ValueError:
            return cell


def unquoted(read: Reader) -> Reader:
    """Reads text that is a number as that number: some programs put numbers in quotes."""

    def read_unquoted(value: object) -> object:
        if type(value) is str:
            number = number_of_cell(value.strip())
            if type(number) is int or type(number) is float:
                return read(number)
        return read(value)

    return read_unquoted


def whole(field: str, least: int, most: int = TOKENS_MAX, hint: str = "") -> Reader:
    """Reads a whole number from `least` to `most`; 12.0 counts as 12. `hint` is the fix for 0 where that is a fault."""
    rule = f"`{field}` must be a whole number from {least:,} to {most:,}"

    def read(value: object) -> int:
        if type(value) is float and value.is_integer():  # not nan, not inf
            value = int(value)
        if type(value) is not int or not least <= value <= most:
            raise Fault(rule, shown(value), hint if value == 0 else "")
        return value

    return read


def span(field: str, units_per_second: float) -> Reader:
    """Reads a time of at least 0 and gives seconds."""

    def read(value: object) -> float:
        if type(value) is not int and type(value) is not float:
            raise Fault(f"`{field}` must be a number", shown(value))
        if type(value) is float and not math.isfinite(value):  # of a whole number of 400 digits it cannot tell
            raise Fault(f"`{field}` must be finite", shown(value))
        if value < 0:
            raise Fault(f"`{field}` must not be negative", shown(value))
        if value > SECONDS_MAX * units_per_second:
            raise Fault(
                f"`{field}` is past 3,000 years",
                shown(value),
                "name its unit by --columns (arrival_ms=, think_us=, ...)",
            )
        return value / units_per_second

    return read


class Moments:
    """Reads arrivals: numbers as `span` does, or dates with time (ISO 8601), which count from the first one read.

    A file has one of them: a date counts from another moment than a number does.
    """

    def __init__(self, field: str, units_per_second: float, unit_unsure: bool) -> None:
        self._field = field
        self._span = span(field, units_per_second)
        self._unit_unsure = unit_unsure
        self._first: datetime | None = None
        self._are_dates: bool | None = None

    def __call__(self, value: object) -> object:
        """Seconds."""
        is_date = type(value) is str
        seconds = self._since_first(str(value)) if is_date else self._since_zero(value)
        if self._are_dates not in (None, is_date):
            raise Fault(f"`{self._field}` is a date in some lines and a number in others", shown(value))
        self._are_dates = is_date
        return seconds

    def _since_zero(self, value: object) -> object:
        if self._unit_unsure and type(value) is float and math.isfinite(value) and not value.is_integer():
            name = self._field
            raise Fault(
                f"`{name}` has a fraction, so it may be seconds or milliseconds",
                shown(value),
                f"name the unit with --columns arrival_s={name} or --columns arrival_ms={name}",
            )
        return self._span(value)

    def _since_first(self, text: str) -> float:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            raise Fault(f"`{self._field}` must be a number or a date with time", shown(text)) from None
        if self._first is None:
            self._first = moment
        try:
            return (moment - self._first).total_seconds()
        except TypeError:
            raise Fault(f"`{self._field}` has a time zone in some lines only", shown(text)) from None


def label(field: str) -> Reader:
    """Reads a name: text or a whole number."""

    def read(value: object) -> str:
        if type(value) is int:
            return str(value)
        if type(value) is not str:
            raise Fault(f"`{field}` must be text or a whole number", shown(value))
        if not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
            raise Fault(f"`{field}` holds half a character, which no file can", shown(value))
        return value

    return read


def request_class(field: str) -> Reader:
    """Reads a class, online or offline, and gives 0 or 1."""

    def read(value: object) -> int:
        if value not in ("online", "offline"):
            raise Fault(f"`{field}` must be online or offline", shown(value))
        return int(value == "offline")

    return read


def block_ids(field: str) -> Reader:
    """Reads the list of a prompt's block ids, whole numbers from 0."""
    rule = f"`{field}` must be a list of whole numbers from 0"

    def read(value: object) -> object:
        if type(value) is not list:
            raise Fault(rule, shown(value))
        if value and (set(map(type, value)) != {int} or min(value) < 0 or max(value) > _ID_MAX):
            raise Fault(rule, shown(value))
        return value

    return read


def inside(record: Mapping[str, object], name: str) -> object:
    """The value of a field, or of a nested one: `usage.prompt_tokens`; None where there is none."""
    if name in record:
        return record[name]
    value: object = record
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def reader_of(column: str, field: str, columns: ColumnMap) -> Reader:
    """Reads the values of a column from a field of the file."""
    per_second = 1 / columns.seconds_per_unit.get(column, 1.0)
    match column:
        case "arrival":
            return unquoted(Moments(field, per_second, columns.unit_unsure))
        case "think" | "deadline" | "tpot_deadline" | "end_deadline" | "program_deadline" | "ttft" | "e2e":
            return unquoted(span(field, per_second))
        case "prompt":
            return unquoted(whole(field, 1))
        case "output":
            return unquoted(whole(field, 1, hint=columns.zero_output_hint))
        case "max_output":
            return unquoted(whole(field, 1))
        case "stage" | "stages":
            return unquoted(whole(field, 1, 2**31))
        case "turn":
            return unquoted(whole(field, 0, 2**31))
        case "priority":
            return unquoted(whole(field, -(2**31), 2**31))
        case "prefix":
            return block_ids(field)
        case "class":
            return request_class(field)
        case "tenant" | "session" | "adapter" | "program":
            return label(field)
        case _:
            raise AssertionError(column)
