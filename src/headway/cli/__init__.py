"""The command line `headway`: one file per verb, and one more for what a large verb runs."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """The console script `headway`: run one verb and exit with its status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × still gets its table
    try:
        from headway.cli.app import run

        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # while still loading
        status = 130
    sys.exit(status)
