"""The results as text for other programs: a Markdown table for a document, CSV for a script."""

from __future__ import annotations

import csv
import io

from headway.bench.experiment.comparison import Comparison
from headway.bench.report.headline import headline
from headway.bench.report.table_columns import BRIEF, COLUMNS, cell_columns, shown_columns


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
        shown = [f"**{cell.text}** {cell.ratio}" if cell.is_best else f"{cell.text} {cell.ratio}" for cell in cells]
        lines.append(_row([run.policy, "own" if run.load is None else f"{run.load:g}", *shown]))
    return "\n".join(lines) + "\n"


def csv_table(comparison: Comparison) -> str:
    """A row for each run, numbers in full precision in the units of the JSON; what has no value is empty."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    names = [f"{column.key}.{column.part}" if column.part else column.key for column in COLUMNS]
    writer.writerow(["policy", "load", "seed", *names])
    for run in comparison.runs:
        writer.writerow([run.policy, run.load, run.seed, *(column.value(run.metrics) for column in COLUMNS)])
    return written.getvalue()


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.strip() for cell in cells)} |"
