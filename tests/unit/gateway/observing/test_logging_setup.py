"""Log lines for people and for programs."""

from __future__ import annotations

import json
import logging

from headway.gateway.observing.logging_setup import JsonLines, PlainLines


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("headway.gateway", logging.WARNING, __file__, 1, message, ("r1",), None)
    made.created = 1_700_000_000.1234
    if fields:
        made.fields = fields
    return made


def test_a_terminal_gets_the_fields_behind_the_message() -> None:
    line = PlainLines().format(record("replica %s is down", tries=2, why="refused"))
    assert line.endswith("WARNING replica r1 is down  tries=2  why=refused")
    assert PlainLines().format(record("replica %s is down")).endswith(" is down")


def test_a_program_gets_one_object_a_line() -> None:
    line = JsonLines().format(record("replica %s is down\nnow", tries=2, why=None))
    assert "\n" not in line
    facts = {"at": 1_700_000_000.123, "level": "warning", "message": "replica r1 is down\nnow", "tries": 2, "why": None}
    assert json.loads(line) == facts
