"""Reads JSON: one request per object, one object a line, or an array, or objects on several lines each."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from headway.bench.traces.column_map import BAILIAN, MOONCAKE, ColumnMap
from headway.bench.traces.known_logs import log_named, log_with
from headway.bench.traces.opening import LINE_BYTES_MAX, TraceFile
from headway.bench.traces.request_logs import fields_in
from headway.bench.traces.rows import Rows
from headway.bench.traces.unknown_fields import unknown_fields
from headway.bench.traces.values import Fault, shown
from headway.bench.user_mistake import UserMistake

_GAP = re.compile(r"[\s,]*")
_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[{}\[\]]')  # or a text, whose brackets do not count


def recognises(start: bytes) -> bool:
    """Whether a file begins with an object, an array, or nothing but blanks."""
    return start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[", b"")


def layout_of(file: TraceFile, names_columns: bool) -> ColumnMap:
    """The layout with the fields of the file's beginning: a known log's, Bailian's, Mooncake's, or the user's own.

    Raises:
        UserMistake: the layout is not known and the user names no columns.
    """
    fields = fields_in(file.sample)
    if "chat_id" in fields:
        return BAILIAN
    if fields and not {MOONCAKE.fields["prompt"], MOONCAKE.fields["output"]} & set(fields):
        log = log_with(fields)
        if log is not None:
            return log.layout()
        if not names_columns and (first := _first_record(file.sample)):
            raise UserMistake(unknown_fields(file.label, first))
    return MOONCAKE


def read(file: TraceFile, rows: Rows) -> None:
    """Every object of the file into `rows`; blank lines are no lines.

    Raises:
        UserMistake: an object is wrong, and bad lines are not skipped; `--columns` names no field that is needed.
    """
    log = log_named(rows.columns.layout)
    noted = None
    for number, record in _records(file):
        if isinstance(record, Fault):
            rows.bad(number, record)
            continue
        if log is not None and log.is_whole_run:
            log = log_with(record) or log  # long lists may have hidden its last fields from the sample
        if log is not noted and log is not None:
            for sentence in log.notes:
                rows.note(sentence)
            noted = log
        if log is None:
            rows.add(number, record)
        else:
            log.add(number, record, rows)


def _records(file: TraceFile) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """Each object and the line on which it begins, or what is wrong with the line."""
    first = file.sample.lstrip().partition("\n")[0].strip()
    if first.startswith("[") or first == "{":
        yield from _spread_records(file)
        return
    for number, line in file.lines():
        if line.strip():
            yield number, _record(line)


def _record(text: str) -> dict[str, Any] | Fault:
    # A benchmark's result tells an endless rate as Infinity; elsewhere that is no number.
    refuse = None if '"input_lens"' in text else _refuse
    try:
        record = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as fault:
        return Fault("the line is not JSON", detail=f"{fault.msg} at character {fault.pos + 1}")
    except (ValueError, RecursionError):  # an integer of thousands of digits; brackets a thousand deep
        return Fault("the line holds a number too long or brackets too deep to read")
    except Fault as fault:
        return fault
    if type(record) is not dict:
        return Fault("the line is not a JSON object", shown(record), 'write {"timestamp": ..., ...}')
    return record


def _spread_records(file: TraceFile) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """The objects of an array, or objects on several lines each, without holding more than one of them and a line."""
    text, at, is_open = "", 1, False  # `at`: the line on which the text begins
    depth, outside = 0, int(file.sample.lstrip()[:1] == "[")
    for _, line in file.lines():
        text += line
        if len(text) > LINE_BYTES_MAX:
            raise UserMistake(f"{file.label}: line {at}: an object is longer than {LINE_BYTES_MAX >> 20} MiB")
        depth, least = _depths(line, depth)
        if least > outside:
            continue  # no object ends here: to try at each line would take the square of the object's lines
        place = 0
        while True:
            begun = place
            place = _GAP.match(text, place).end()  # type: ignore[union-attr]
            at += text.count("\n", begun, place)
            if text[place : place + 1] in ("[", "]"):
                is_open = text[place] == "["
                place += 1
                continue
            end = _end_of_object(text, place)
            if end is None:
                break
            yield at, _record(text[place:end])
            at += text.count("\n", place, end)
            place = end
        text = text[place:]
    if text.strip(", \r\n\t"):
        yield at, Fault("the line is not JSON", shown(text.strip()), "copy or write the file again")
    elif is_open:
        yield at, Fault("the array is not closed", fix="copy or write the file again")


def _depths(line: str, depth: int) -> tuple[int, float]:
    """How many brackets are open after the line, and the fewest after one that closes in it."""
    least = math.inf
    for sign in _BRACKET.findall(line):
        if sign in ("{", "["):
            depth += 1
        elif sign in ("}", "]"):
            depth -= 1
            least = min(least, depth)
    return depth, least


def _end_of_object(text: str, place: int) -> int | None:
    """Where the object that begins at `place` ends; None where it is not whole yet."""
    try:
        return json.JSONDecoder().raw_decode(text, place)[1]
    except (ValueError, RecursionError):
        return None


def _first_record(sample: str) -> dict[str, Any]:
    """The file's first object; an empty one where it cannot be read from the beginning alone."""
    start = sample.find("{")
    try:
        record = json.JSONDecoder().raw_decode(sample, max(start, 0))[0]
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _refuse(constant: str) -> NoReturn:
    raise Fault("a number is not finite", constant)
