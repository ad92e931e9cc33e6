"""How far a load test is, on stderr: a bar on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from headway.bench.load_test.sending import Tally
from headway.bench.progress import say

_LINE_SECONDS, _BAR_SECONDS = 10.0, 0.5


class Telling(NamedTuple):
    """What to call with each tally, and how often."""

    tell: Callable[[Tally], None]
    seconds: float


@contextmanager
def telling(requests: int) -> Iterator[Telling]:
    """Tell how far a run of so many requests is; the bar of a terminal disappears at the end."""
    if not sys.stderr.isatty():
        lines = ProgressLines(requests)
        yield Telling(lambda tally: say(lines.line(tally)), _LINE_SECONDS)
        return
    from rich.console import Console  # noqa: PLC0415 - only where something is shown
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    words, count, clock = TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(words, BarColumn(), count, clock, console=Console(stderr=True), transient=True) as display:
        task = display.add_task("sending", total=requests)

        def show(tally: Tally) -> None:
            lost = "".join(f", {number:,} {verb}" for verb, number in _lost(tally) if number)
            display.update(task, completed=tally.ended, description=f"sending{lost}")

        yield Telling(show, _BAR_SECONDS)


class ProgressLines:
    """Makes the lines: totals, and the rates since the line before."""

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self._before = Tally(0.0, 0, 0, 0, 0)

    def line(self, tally: Tally) -> str:
        """The line of a tally, which is later than those before."""
        seconds = tally.seconds - self._before.seconds
        offered = (tally.sent - self._before.sent) / seconds
        achieved = (tally.completed - self._before.completed) / seconds
        self._before = tally
        lost = "".join(f", {number:,} {verb}" for verb, number in _lost(tally))
        return (
            f"{tally.seconds:.0f} s: {tally.sent:,} of {self._requests:,} requests sent, {tally.completed:,} "
            f"completed{lost}; last {seconds:.0f} s: {offered:.1f} requests/s offered, {achieved:.1f} achieved"
        )


def _lost(tally: Tally) -> tuple[tuple[str, int], ...]:
    return ("refused", tally.refused), ("failed", tally.failed)
