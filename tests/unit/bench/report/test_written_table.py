"""The results for documents and scripts."""

from __future__ import annotations

import csv
import io

from rich.console import Console

from headway.bench.report.table_columns import BRIEF, shown_columns
from headway.bench.report.terminal_table import print_brief
from headway.bench.report.written_table import csv_table, markdown_table
from tests.support.handmade_days import demo_comparison


def test_markdown_has_a_row_for_each_run_and_each_value() -> None:
    comparison = demo_comparison(loads=(0.7, 1.1))
    table = [line for line in markdown_table(comparison).splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(comparison.runs)
    assert len({line.count("|") for line in table}) == 1
    for column in shown_columns(comparison):
        for line, cell in zip(table[2:], column.cells, strict=True):
            assert f"**{cell.text}**" in line if cell.is_best else cell.text in line
    brief = [line for line in markdown_table(comparison, brief=True).splitlines() if line.startswith("|")]
    assert brief[0].count("|") == len(BRIEF) + 3


def test_csv_has_full_numbers_in_the_units_of_the_json() -> None:
    comparison = demo_comparison()
    rows = list(csv.DictReader(io.StringIO(csv_table(comparison))))
    assert [row["policy"] for row in rows] == [run.policy for run in comparison.runs]
    assert float(rows[0]["ttft_seconds.mean"]) == comparison.runs[0].metrics.ttft_seconds.mean
    assert float(rows[0]["load"]) == comparison.runs[0].load


def test_the_brief_table_has_five_columns_and_no_definitions() -> None:
    stream = io.StringIO()
    print_brief(demo_comparison(), Console(file=stream, width=200))
    text = stream.getvalue()
    assert len(BRIEF) == 5
    assert all(title in text for title in ("TTFT", "goodput", "end to end"))
    assert "best of its column" not in text
