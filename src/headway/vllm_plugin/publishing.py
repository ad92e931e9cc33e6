"""Publisher: writes the metrics file and the decision log, in a thread of its own, so that a slow disk costs no step.

What it cannot write it drops, with one warning.
"""

from __future__ import annotations

import contextlib
import os
import queue
import tempfile
import threading
from pathlib import Path
from typing import TextIO

from headway.vllm_plugin.plugin_log import logger

_BACKLOG = 10_000


def metrics_folder(configured: str | None, instance_id: str) -> Path | None:
    """The folder of the engines' metrics files, for engines and API process alike; None for none.

    Both know vLLM's instance id, which is random, so on one machine nothing has to be configured.
    """
    if configured is None:
        return Path(tempfile.gettempdir()) / f"headway-{os.getuid()}-{instance_id}" if instance_id else None
    return Path(configured) if configured else None


def _appending(path: Path) -> TextIO:
    """A file to append to, that only its owner may read if it is new. A pipe needs a reader already, or this fails."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "a", encoding="utf-8")


class Publisher:
    """Writes a metrics file and a decision log in the background."""

    def __init__(self, metrics_file: Path | None, decision_log: Path | None, own_folder: bool = False) -> None:
        """`own_folder`: remove the metrics file's folder at the end. Raises ValueError if a file cannot be written."""
        self._metrics_file = metrics_file
        self._own_folder = own_folder
        self._latest: str | None = None
        self._lines: queue.Queue[str | None] = queue.Queue(_BACKLOG)
        self._complained = False
        self._log = None
        try:
            if metrics_file is not None:
                metrics_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if decision_log is not None:
                self._log = _appending(decision_log)
        except OSError as error:
            raise ValueError(f"headway: {error.filename} cannot be written: {error.strerror}") from error
        self._thread: threading.Thread | None = None
        if self._metrics_file is not None or self._log is not None:
            self._thread = threading.Thread(target=self._run, name="headway-publisher", daemon=True)
            self._thread.start()

    @property
    def logs_decisions(self) -> bool:
        """Whether there is a decision log."""
        return self._log is not None

    def metrics(self, text: str) -> None:
        """Replace the metrics file, soon."""
        if self._metrics_file is not None:
            self._latest = text
            self._put("")

    def decision(self, line: str) -> None:
        """Append a line to the decision log, soon."""
        if self._log is not None:
            self._put(line)

    def close(self) -> None:
        """Write the rest and remove the metrics file: a scraper must not read a dead engine's metrics."""
        if self._thread is None:
            return
        self._put(None)
        self._thread.join(timeout=2.0)
        self._thread = None
        if self._log is not None:
            self._log.close()
        if self._metrics_file is not None:
            with contextlib.suppress(OSError):
                self._metrics_file.unlink(missing_ok=True)
                if self._own_folder:
                    self._metrics_file.parent.rmdir()  # fails while another engine's file is in it

    def _put(self, line: str | None) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._complain("the backlog is full")

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                if line and self._log is not None:
                    self._log.write(line + "\n")
                if self._lines.empty():
                    self._flush()
            except OSError as error:
                self._complain(str(error))

    def _flush(self) -> None:
        text, self._latest = self._latest, None
        if text is not None and self._metrics_file is not None:
            beside = self._metrics_file.with_suffix(".new")
            beside.write_text(text, encoding="utf-8")
            beside.replace(self._metrics_file)
        if self._log is not None:
            self._log.flush()

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("headway: cannot write all metrics and decisions, some are dropped: %s", reason)
