"""Reads JSON Lines: one object per line, one request per object."""

from __future__ import annotations

import codecs
import json
from typing import NoReturn

from headway.bench.traces.column_map import BAILIAN, MOONCAKE, ColumnMap
from headway.bench.traces.opening import TraceFile
from headway.bench.traces.rows import Rows
from headway.bench.traces.values import Fault, shown
from headway.bench.user_mistake import UserMistake


def recognises(start: bytes) -> bool:
    """Whether a file begins with an object, an array, or nothing but blanks."""
    return start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[", b"")


def layout_of(file: TraceFile, names_columns: bool) -> ColumnMap:
    """The known layout nearest to the file's first line; Mooncake's where none is.

    Raises:
        UserMistake: the file is one JSON document and not one object a line.
    """
    first = file.sample.lstrip().partition("\n")[0].strip()
    if first.startswith("["):
        raise UserMistake(f"{file.label}: is one JSON array; write one object a line (jq -c '.[]' does it)")
    if first == "{":
        raise UserMistake(f"{file.label}: has an object on several lines; write one object a line (jq -c . does it)")
    return BAILIAN if '"chat_id"' in first else MOONCAKE


def read(file: TraceFile, rows: Rows) -> None:
    """Every line of the file into `rows`; blank lines are no lines."""
    decode = json.JSONDecoder(parse_constant=_refuse).decode
    for number, line in file.lines():
        try:
            record = decode(line)
            if type(record) is not dict:
                raise Fault("the line is not a JSON object", shown(record), 'write {"timestamp": ..., ...}')
        except json.JSONDecodeError as fault:
            if line.strip():
                rows.bad(number, Fault("the line is not JSON", detail=f"{fault.msg} at character {fault.pos + 1}"))
            continue
        except (ValueError, RecursionError):  # an integer of thousands of digits; brackets a thousand deep
            rows.bad(number, Fault("the line holds a number too long or brackets too deep to read"))
            continue
        except Fault as fault:
            rows.bad(number, fault)
            continue
        rows.add(number, record)


def _refuse(constant: str) -> NoReturn:
    raise Fault("a number is not finite", constant)
