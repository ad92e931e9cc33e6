"""Maps the fields of a file to the columns of a trace, with units: the known layouts, and the user's `--columns`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from headway.bench.user_mistake import UserMistake

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_DEADLINES = ("deadline", "tpot_deadline", "end_deadline", "program_deadline")
_TIMES = ("arrival", "think", *_DEADLINES, "ttft", "e2e")
_PLAIN = (
    *("prompt", "output", "max_output", "tenant", "session", "turn", "priority", "class", "adapter", "prefix"),
    *("program", "stage", "stages"),
)
COLUMNS = (*_TIMES, *_PLAIN)
REQUIRED = ("arrival", "prompt", "output")
EXAMPLE = "--columns arrival=...,prompt=...,output=..."


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """How a file's fields are to be read.

    Attributes:
        fields: our column -> the file's field.
        seconds_per_unit: of the time columns; `arrival` may also hold dates with time, which need no unit.
        prefix_block_tokens: tokens in a block of `prefix`; None to infer it from the lengths.
        layout: name of the file's layout.
        unit_unsure: `arrival` with a fraction may be seconds or milliseconds, so the user must name the unit.
        zero_output_hint: what to do about outputs of length 0, if the source is known to have some.
    """

    fields: Mapping[str, str]
    seconds_per_unit: Mapping[str, float] = field(default_factory=dict)
    prefix_block_tokens: int | None = None
    layout: str = "generic"
    unit_unsure: bool = False
    zero_output_hint: str = ""


MOONCAKE = ColumnMap(
    {
        "arrival": "timestamp",
        "prompt": "input_length",
        "output": "output_length",
        "max_output": "max_tokens",
        "tenant": "user_id",
        "session": "session_id",
        "turn": "turn",
        "think": "think_time_ms",
        "deadline": "deadline_ms",
        "tpot_deadline": "tpot_deadline_ms",
        "end_deadline": "end_deadline_ms",
        "program": "program_id",
        "stage": "stage",
        "stages": "stages",
        "program_deadline": "program_deadline_ms",
        "priority": "priority",
        "class": "class",
        "adapter": "adapter",
        "prefix": "hash_ids",
        "ttft": "ttft_ms",
        "e2e": "e2e_ms",
    },
    dict.fromkeys(_TIMES, 1e-3),
    layout="Mooncake-style JSON Lines",
    unit_unsure=True,
)
# Bailian's lines carry chat_id, parent_chat_id and turn too, but no pauses, so they are replayed at their own times.
BAILIAN = ColumnMap(
    {"arrival": "timestamp", "prompt": "input_length", "output": "output_length", "prefix": "hash_ids"},
    {"arrival": 1.0},
    prefix_block_tokens=16,
    layout="Qwen-Bailian JSON Lines",
)
AZURE = ColumnMap(
    {"arrival": "TIMESTAMP", "prompt": "ContextTokens", "output": "GeneratedTokens"},
    {"arrival": 1.0},
    layout="Azure LLM inference CSV",
)
BURSTGPT = ColumnMap(
    {"arrival": "Timestamp", "prompt": "Request tokens", "output": "Response tokens"},
    {"arrival": 1.0},
    layout="BurstGPT CSV",
    zero_output_hint="BurstGPT marks failed calls so: take its file without_fails",
)


def parse_columns(text: str) -> dict[str, str]:
    """The pairs of `--columns`, still as typed: `arrival_ms=t,prompt=in` gives {"arrival_ms": "t", "prompt": "in"}.

    Raises:
        UserMistake: a pair without `=`, an unknown column (with the nearest), one named twice.
    """
    pairs: dict[str, str] = {}
    for part in text.split(","):
        key, sign, value = (piece.strip() for piece in part.partition("="))
        if not sign or not key or not value:
            raise UserMistake(f"--columns: {part.strip()!r} is not COLUMN=FIELD; write {EXAMPLE}")
        column = _column_of(key)
        if any(_column_of(other) == column for other in pairs):
            raise UserMistake(f"--columns: {column} is named twice; name each column once")
        pairs[key] = value
    return pairs


def with_columns(known: ColumnMap, pairs: Mapping[str, str]) -> ColumnMap:
    """`known`, with the user's pairs put over it."""
    fields, units = dict(known.fields), dict(known.seconds_per_unit)
    block = known.prefix_block_tokens
    unsure = known.unit_unsure
    for key, value in pairs.items():
        column = _column_of(key)
        if column == "prefix_block":
            block = _block_tokens(value)
            continue
        fields[column] = value
        if column in _TIMES:
            units[column] = _UNITS[key[len(column) + 1 :] or "s"]
            unsure = unsure and column != "arrival"
    named = {column: fields[column] for column in map(_column_of, pairs) if column in fields}
    for column, name in named.items():
        twin = next((other for other, field_name in named.items() if field_name == name and other != column), None)
        if twin is not None:
            raise UserMistake(f"--columns: {name!r} is given for {column} and {twin}; a field can be only one column")
        # the user's meaning of a field replaces that of a known layout
        fields = {other: held for other, held in fields.items() if held != name or other == column}
    return ColumnMap(fields, units, block, known.layout, unsure, known.zero_output_hint)


def _column_of(key: str) -> str:
    column, _, unit = key.rpartition("_")
    if column in _TIMES and unit in _UNITS:
        return column
    if key in COLUMNS or key == "prefix_block":
        return key
    every = [*COLUMNS, "arrival_ms", "think_ms", "deadline_ms", "prefix_block"]
    near = difflib.get_close_matches(key, every, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserMistake(
        f"--columns: there is no column {key!r}; {hint}the columns are {', '.join(COLUMNS)} and prefix_block, "
        "times with _ms, _us or _ns where they are not in seconds"
    )


def _block_tokens(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 1 << 20:
        raise UserMistake(f"--columns: prefix_block={value} is not a number of tokens; write prefix_block=16, say")
    return int(value)
