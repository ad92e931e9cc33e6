"""Progress and notes on stderr; progress only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show one line: what runs, how many of `total` are done, and the time so far. Call the yielded function for each.

    If stderr is no terminal, nothing is shown and rich is not imported. The line disappears at the end.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console  # noqa: PLC0415 - only where something is shown
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    words, count, clock = TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(
        SpinnerColumn(), words, BarColumn(), count, clock, console=Console(stderr=True), transient=True
    ) as display:
        task = display.add_task(what, total=total)
        yield lambda: display.advance(task)


def say(sentence: str) -> None:
    """Print a note on stderr; stdout is for results."""
    print(sentence, file=sys.stderr)
