"""Log lines for people and for programs."""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import Literal

import pytest

from headway.gateway.observing.logging_setup import JsonLines, LogForm, LogThread, PlainLines, set_up_logging


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("headway.gateway", logging.WARNING, __file__, 1, message, ("r1",), None)
    made.created = 1_700_000_000.1234
    if fields:
        made.fields = fields
    return made


def test_a_terminal_gets_the_fields_behind_the_message() -> None:
    line = PlainLines().format(record("replica %s is down", tries=2, why="refused"))
    assert line == "2023-11-14T22:13:20.123Z WARNING replica r1 is down  tries=2  why=refused"
    assert PlainLines().format(record("replica %s is down")).endswith(" is down")


def test_a_program_gets_one_object_a_line() -> None:
    line = JsonLines().format(record("replica %s is down\nnow", tries=2, why=None))
    assert "\n" not in line
    time = "2023-11-14T22:13:20.123Z"
    facts = {
        "at": 1_700_000_000.123,
        "time": time,
        "level": "warning",
        "message": "replica r1 is down\nnow",
        "tries": 2,
        "why": None,
    }
    assert json.loads(line) == facts


def test_a_reader_that_stalls_delays_no_line_and_learns_how_many_are_missing() -> None:
    reading, writing = os.pipe()
    handler = LogThread(writing, lines_max=100)
    handler.setFormatter(JsonLines())
    for _ in range(2_000):  # a pipe holds 64 KiB; none of these waits for it
        handler.emit(record("replica %s is down", why="x" * 200))
    assert 0 < handler.dropped < 2_000
    text: list[bytes] = []
    reader = threading.Thread(target=lambda: text.extend(iter(lambda: os.read(reading, 65_536), b"")))
    reader.start()
    dropped = handler.dropped
    handler.close()
    os.close(writing)
    reader.join(120)
    lines = [json.loads(line) for line in b"".join(text).splitlines()]
    lost = [line["lines"] for line in lines if line["message"].startswith("log lines were dropped")]
    assert sum(lost) == dropped
    assert len(lines) - len(lost) + dropped == 2_000
    os.close(reading)


def test_a_reader_that_is_gone_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    handler = LogThread(writing, lines_max=100)
    for _ in range(10):
        handler.emit(record("replica %s is down"))
    handler.close()
    assert handler.dropped >= 10
    os.close(writing)


def test_what_others_wrote_begins_no_line_and_commands_no_terminal() -> None:
    """An engine's error message repeats what its client sent; a request id may hold C1 controls as UTF-8."""
    line = PlainLines().format(
        record("replica %s failed\n12:00:00 INFO all is well\x1b[2J", request="a\u009b2Jb\u2028c")
    )
    assert line.isprintable()
    assert line.endswith(r"replica r1 failed\n12:00:00 INFO all is well\x1b[2J  request=a\x9b2Jb\u2028c")


def test_a_traceback_keeps_its_lines() -> None:
    try:
        raise RuntimeError("once")
    except RuntimeError as error:
        made = record("replica %s")
        made.exc_info = (type(error), error, error.__traceback__)
    assert "\nTraceback (most recent call last):\n" in PlainLines().format(made)


@pytest.mark.parametrize(("lines", "formatter"), [("text", PlainLines), ("json", JsonLines), (None, JsonLines)])
def test_the_form_of_the_log_is_chosen(
    lines: Literal["text", "json"] | None, formatter: type[logging.Formatter], capfd: pytest.CaptureFixture[str]
) -> None:
    root, ours = logging.getLogger(), logging.getLogger("headway.gateway")
    before, level = list(root.handlers), ours.level
    with capfd.disabled():
        set_up_logging(100, LogForm(lines, "warning"))
    (handler,) = [one for one in root.handlers if one not in before]
    root.removeHandler(handler)
    handler.close()
    try:
        assert isinstance(handler.formatter, formatter)
        assert not ours.isEnabledFor(logging.INFO)
        assert ours.isEnabledFor(logging.WARNING)
    finally:
        ours.setLevel(level)
