"""A drawing of learned lanes for the terminal, over the histogram of the request sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headway.bench.report.table_columns import counted
from headway.policies.lanes.cost_fit import PowerLaw
from headway.policies.lanes.partition import Span

WIDTH, HEIGHT = 96, 10
_LEVELS = " ▁▂▃▄▅▆▇█"


def lanes_picture(sizes: Sequence[int], lanes: Sequence[Span], unit: str) -> list[str]:
    """The lines: a histogram over log sizes, the lanes under it on the same axis, and a table of the lanes.

    Lanes closer than a column are drawn on separate lines. Without sizes it is one sentence.
    """
    if not sizes:
        return ["nothing has been learned yet: no request has arrived"]
    axis = _Axis(min(sizes), max([*sizes, *(lane.high for lane in lanes)]))
    counts = [0] * WIDTH
    for size in sizes:
        counts[axis.column(size)] += 1
    return [
        f"{counted(len(sizes), 'request')} by {unit}, log scale",
        *_bars(counts),
        *_drawn(lanes, axis),
        *axis.labels(),
        "",
        *_table(lanes, len(sizes)),
    ]


def cost_line(law: PowerLaw) -> str:
    """The fitted cost in words and at three sizes."""
    at = ", ".join(f"{tokens:,} tokens {law.seconds(tokens) * 1000:.3g} ms" for tokens in (100, 1_000, 10_000))
    return f"prefill cost: exponent {law.exponent:.2f}; {at}"


class _Axis:
    """Columns of equal width in log(size + 1)."""

    def __init__(self, low: int, high: int) -> None:
        self._low = math.log(low + 1)
        self._span = max(1e-9, math.log(high + 1) - self._low)

    def column(self, size: int) -> int:
        return min(WIDTH - 1, max(0, int((math.log(size + 1) - self._low) / self._span * WIDTH)))

    def labels(self) -> list[str]:
        """A line of marks at round sizes, and their names under it."""
        highest = math.exp(self._low + self._span)
        rounds = [m * 10**e for e in range(8) for m in (1, 2, 5) if math.exp(self._low) - 1 <= m * 10**e <= highest]
        marks, names = ["─"] * WIDTH, ""
        for size in rounds:
            column = self.column(size)
            name = f"{size:,}"
            if len(names) <= column and column + len(name) <= WIDTH:
                names = names.ljust(column) + name + " "
                marks[column] = "┬"
        return ["".join(marks), names.rstrip()]


def _bars(counts: Sequence[int]) -> list[str]:
    peak = max(counts)
    eighths = [math.ceil(count / peak * HEIGHT * 8) for count in counts]
    return [
        "".join(_LEVELS[min(8, max(0, level - 8 * row))] for level in eighths).rstrip()
        for row in reversed(range(HEIGHT))
    ]


def _drawn(lanes: Sequence[Span], axis: _Axis) -> list[str]:
    lines: list[list[str]] = []
    for lane in lanes:
        begin, end = axis.column(lane.low), axis.column(lane.high)
        line = next((line for line in lines if all(mark == " " for mark in line[max(0, begin - 1) : end + 1])), None)
        if line is None:
            line = [" "] * WIDTH
            lines.append(line)
        line[begin : end + 1] = ["│"] if begin == end else ["├", *"─" * (end - begin - 1), "┤"]
    return ["".join(line).rstrip() for line in lines]


def _table(lanes: Sequence[Span], requests: int) -> list[str]:
    if not lanes:
        return ["no lanes yet: they are first learned after 250 requests; until then bubble lanes are used"]
    lines = [f"{'lane':>4}  {'from':>9}  {'to':>9}  {'mean':>11}  {'requests':>8}  {'share':>6}"]
    for number, lane in enumerate(lanes):
        share = lane.requests / max(1, sum(other.requests for other in lanes))
        lines.append(
            f"{number:>4}  {lane.low:>9,}  {lane.high:>9,}  {lane.mean:>11,.1f}  {lane.requests:>8,}  {share:>6.1%}"
        )
    return [*lines, f"{counted(len(lanes), 'lane')}; the window holds {counted(requests, 'request')}"]
