"""Log of the gateway on stderr: plain lines on a terminal, JSON lines elsewhere.

A record's `extra={"fields": {...}}` are its facts: behind the message on a terminal, keys of the object in JSON.
"""

from __future__ import annotations

import json
import logging
import sys


def set_up_logging() -> None:
    """Write the log "headway.gateway", from INFO upwards."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainLines() if sys.stderr.isatty() else JsonLines())
    log = logging.getLogger("headway.gateway")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


class PlainLines(logging.Formatter):
    """Time, level and message, the fields behind them as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback if there is one."""
        fields = getattr(record, "fields", {})
        return "  ".join([super().format(record), *(f"{name}={value}" for name, value in fields.items())])


class JsonLines(logging.Formatter):
    """One JSON object a line: `at` (seconds since 1970), `level`, `message`, perhaps `trace`, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        facts = {"at": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            facts["trace"] = self.formatException(record.exc_info)
        return json.dumps(facts | getattr(record, "fields", {}))
