"""The results as text for other programs: a Markdown table for a document, CSV for a script."""

from __future__ import annotations

import csv
import io

from headway.bench.experiment.comparison import Comparison
from headway.bench.report.headline import headline
from headway.bench.report.table_columns import BRIEF, COLUMNS, Cell, cell_columns, shown_columns


def markdown_table(comparison: Comparison, *, brief: bool = False) -> str:
    """The columns that tell something, or the brief ones, with ratios; the headline above."""
    columns = [c for c in cell_columns(comparison) if c.column in BRIEF] if brief else shown_columns(comparison)
    titles = [
        " ".join(part for part in (c.column.title, c.column.part, f"({c.unit})" if c.unit else "") if part)
        for c in columns
    ]
    lines = [
        *headline(comparison)[:2],
        "",
        _row(["policy", "load", *titles]),
        _row(["---", *["---:"] * (len(titles) + 1)]),
    ]
    for number, run in enumerate(comparison.runs):
        cells = (column.cells[number] for column in columns)
        shown = [_marked(cell) for cell in cells]
        lines.append(_row([run.policy, "own" if run.load is None else f"{run.load:g}", *shown]))
    return "\n".join(lines) + "\n"


def csv_table(comparison: Comparison) -> str:
    """A row for each run, numbers in full precision in the units of the JSON; what has no value is empty.

    Where there are error bars, `….low` and `….high` of each number stand behind the numbers.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    names = [column.name for column in COLUMNS]
    bars = [f"{name}.{end}" for name in names for end in ("low", "high")] if comparison.repeats is not None else []
    writer.writerow(["policy", "load", "seed", *names, *bars])
    for run in comparison.runs:
        values = [column.value(run.metrics) for column in COLUMNS]
        intervals = [comparison.interval(run, name) or (None, None) for name in names] if bars else []
        writer.writerow([run.policy, run.load, run.seed, *values, *(end for both in intervals for end in both)])
    return written.getvalue()


def _marked(cell: Cell) -> str:
    value = f"{cell.text} {cell.bar}".rstrip()
    value = f"**{value}**" if cell.is_best else f"{value} ≈" if cell.is_alike else value
    return f"{value} {cell.ratio}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.strip() for cell in cells)} |"
