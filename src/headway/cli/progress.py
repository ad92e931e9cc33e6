"""How far we are: on a terminal's stderr, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A line that says what runs, how many of `total` are done and for how long; call what is yielded for each.

    Nothing is shown, and rich not imported, when stderr is no terminal. The line vanishes at the end.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    words, count, clock = TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(
        SpinnerColumn(), words, BarColumn(), count, clock, console=Console(stderr=True), transient=True
    ) as display:
        task = display.add_task(what, total=total)
        yield lambda: display.advance(task)


def say(sentence: str) -> None:
    """Talk to the person at the terminal; results go to stdout, talk does not."""
    print(sentence, file=sys.stderr)
