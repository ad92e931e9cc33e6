"""Tables on stdout: as wide as the terminal, whole where there is none, quiet when the reader has left."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_COLUMNS = 240  # where stdout is no terminal: a row stays one line, whatever reads it; COLUMNS says otherwise


def print_rich(draw: Callable[[Console], None]) -> None:
    """Write to stdout what `draw` prints on the console it is handed.

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
    asked = os.environ.get("COLUMNS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else PLAIN_COLUMNS
