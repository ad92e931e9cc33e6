"""Log of the gateway on stderr: plain lines on a terminal, JSON lines elsewhere, or as it is asked for.

A record's `extra={"fields": {...}}` are its facts: behind the message on a terminal, keys of the object in JSON.

Law: a reader of the log that stalls stops nothing but the log. Lines are written by a thread; those that find
`log_lines_max` lines waiting are dropped and counted.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import SimpleQueue
from threading import Thread
from typing import Literal

_LOGGER = "headway.gateway"
_CLOSING_SECONDS = 2.0  # for the lines that still wait when the process ends


@dataclass(frozen=True, slots=True)
class LogForm:
    """How the log is written.

    Attributes:
        lines: "text" or "json"; None for text on a terminal and JSON elsewhere.
        level: the least level that is written: "info", "warning" or "error".
    """

    lines: Literal["text", "json"] | None = None
    level: Literal["info", "warning", "error"] = "info"


def set_up_logging(lines_max: int, form: LogForm) -> None:
    """Write the log "headway.gateway", and the warnings of libraries."""
    handler = LogThread(sys.stderr.fileno(), lines_max)
    lines = form.lines or ("text" if sys.stderr.isatty() else "json")
    handler.setFormatter(PlainLines() if lines == "text" else JsonLines())
    handler.setLevel(form.level.upper())
    logging.getLogger().addHandler(handler)
    logging.getLogger(_LOGGER).setLevel(form.level.upper())


def iso_time(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, to the millisecond: `2026-11-30T17:15:00.123Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def lines_dropped() -> int:
    """Lines of the log that were dropped, since the start."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, LogThread))


class LogThread(logging.Handler):
    """Formats and writes records in a thread of its own."""

    def __init__(self, descriptor: int, lines_max: int) -> None:
        super().__init__()
        self.dropped = 0
        self._reported = 0  # of the dropped ones
        self._descriptor = descriptor
        self._lines_max = lines_max
        self._waiting: SimpleQueue[logging.LogRecord | None] = SimpleQueue()
        self._thread = Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, or drop it; never waits."""
        if self._waiting.qsize() >= self._lines_max:
            self.dropped += 1
        else:
            self._waiting.put(record)

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join(_CLOSING_SECONDS)
        super().close()

    def _write_all(self) -> None:
        while (record := self._waiting.get()) is not None:
            self._write(record)
            if self._waiting.empty():
                self._report_dropped()
        self._report_dropped()

    def _report_dropped(self) -> None:
        dropped = self.dropped
        if dropped > self._reported:
            text = "log lines were dropped, because the reader of the log is too slow"
            level = {"levelno": logging.WARNING, "levelname": "WARNING"}
            fields = {"lines": dropped - self._reported}
            self._reported = dropped
            self._write(logging.makeLogRecord({"name": _LOGGER, **level, "msg": text, "fields": fields}))

    def _write(self, record: logging.LogRecord) -> None:
        try:
            line = (self.format(record) + "\n").encode("utf-8", "replace")
            while line:
                try:
                    line = line[os.write(self._descriptor, line) :]
                except BlockingIOError:  # another program of the terminal made it non-blocking
                    select.select([], [self._descriptor], [])
        except OSError:  # nothing reads the log any more
            self.dropped += 1
        except Exception:
            self.handleError(record)


class PlainLines(logging.Formatter):
    """Time, level and message, the fields behind them as name=value.

    Law: what a client or an engine wrote begins no line and gives the terminal no command.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - the name that logging calls
        """ISO 8601."""
        return iso_time(record.created)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        """The line without a traceback, which may have lines of its own."""
        fields = getattr(record, "fields", {})
        return _printable(
            "  ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in fields.items())])
        )


def _printable(text: str) -> str:
    """The text with its control characters written out, as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class JsonLines(logging.Formatter):
    """One JSON object a line: `at` (seconds since 1970), `time`, `level`, `message`, maybe `trace`, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        times = {"at": round(record.created, 3), "time": iso_time(record.created)}
        facts = times | {"level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            facts["trace"] = self.formatException(record.exc_info)
        return json.dumps(facts | getattr(record, "fields", {}))
