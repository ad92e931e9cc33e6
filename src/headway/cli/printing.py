"""Prints tables on stdout: as wide as the terminal, in full width without one, silent when the reader has left."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_COLUMNS = 240  # where stdout is no terminal: a row stays one line. COLUMNS overrides it


def print_rich(draw: Callable[[Console], None]) -> None:
    """Write to stdout what `draw` prints on the console that it gets.

    Raises:
        BrokenPipeError: the reader has left. (rich alone would end the process here, with status 1.)
    """
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=_plain_width())
    with console.capture() as captured:
        draw(console)
    lines = (line.rstrip() for line in captured.get().splitlines())
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _plain_width() -> int:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) > 0 else PLAIN_COLUMNS
