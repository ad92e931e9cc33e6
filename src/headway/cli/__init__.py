"""The command line `headway`: one file per verb, and one more for what a large verb runs."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


def main() -> None:
    """The console script `headway`: run one verb and exit with its status."""
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × still gets its table
    try:
        from headway.cli.app import run

        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # while still loading
        status = 130
    sys.exit(status)


def _open_what_is_closed() -> None:
    """Give standard streams that the caller closed to /dev/null, or a connection would get what is printed there."""
    for descriptor in range(3):
        with suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as we run
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as we run
