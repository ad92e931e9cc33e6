"""The table on the terminal: what is best, what is a dash, and how numbers are rounded."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from headway.bench.experiment.comparison import Comparison
from headway.bench.metrics.run_metrics import DEFINITIONS, Slo, Summary
from headway.bench.report.headline import headline
from headway.bench.report.table_columns import (
    cell_columns,
    ratio_text,
    same_in_all,
    seconds_text,
    shown_columns,
    significant,
)
from headway.bench.report.terminal_table import print_comparison
from tests.support.handmade_days import POLICIES, demo_comparison


def printed(comparison: Comparison, width: int, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    print_comparison(
        comparison,
        Console(file=stream, width=width, force_terminal=terminal, color_system="standard" if terminal else None),
    )
    return stream.getvalue()


def with_metrics(comparison: Comparison, row: int, **changes: object) -> Comparison:
    runs = list(comparison.runs)
    runs[row] = dataclasses.replace(runs[row], metrics=dataclasses.replace(runs[row].metrics, **changes))  # type: ignore[arg-type]
    return dataclasses.replace(comparison, runs=tuple(runs))


@pytest.mark.parametrize("width", [30, 44, 60, 80, 100, 120, 160, 300])
@pytest.mark.parametrize("loads", [(None,), (0.7, 1.1)])
def test_no_number_is_cut_at_any_width(width: int, loads: tuple[float | None, ...]) -> None:
    comparison = demo_comparison(loads=loads)
    text = printed(comparison, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for column in shown_columns(comparison):
        for cell in column.cells:
            assert cell.text in text
            assert cell.ratio in text


def test_plain_text_has_no_escape_codes_and_a_terminal_has_the_best_in_green() -> None:
    comparison = demo_comparison()
    assert "\x1b" not in printed(comparison, 160)
    assert "\x1b[1;32m" in printed(comparison, 160, terminal=True)


def test_the_same_comparison_prints_the_same_bytes_whatever_the_wall_clock_said() -> None:
    comparison = demo_comparison()
    slower = dataclasses.replace(
        comparison, runs=tuple(dataclasses.replace(run, wall_seconds=99.0) for run in comparison.runs)
    )
    assert printed(comparison, 120) == printed(slower, 120)


def test_every_column_is_defined_under_the_table_and_the_slo_is_told() -> None:
    text = " ".join(printed(demo_comparison(), 300).split())
    for key in {column.column.key for column in shown_columns(demo_comparison())}:
        assert DEFINITIONS[key] in text
    assert "SLO: ttft=2s,tpot=60ms" in text


def test_equal_as_printed_is_equal_best_and_all_equal_is_no_best() -> None:
    comparison = demo_comparison()
    for row, mean in enumerate([1.0004, 1.0001, 2.0, 3.0]):
        comparison = with_metrics(comparison, row, ttft_seconds=Summary(mean, 1.0, 1.0, 1.0))
    mean, p50 = cell_columns(comparison)[:2]
    assert [cell.is_best for cell in mean.cells] == [True, True, False, False]
    assert not any(cell.is_best for cell in p50.cells)


def test_each_load_has_its_own_best_and_its_own_baseline() -> None:
    comparison = demo_comparison(("fcfs", "smallest-volume-first"), (0.7, 1.1))
    mean = cell_columns(comparison)[0]
    assert [cell.is_best for cell in mean.cells] == [False, True, False, True]
    assert [bool(cell.ratio) for cell in mean.cells] == [False, True, False, True]


def test_who_drops_requests_is_never_best_and_completed_is_shown() -> None:
    comparison = demo_comparison()
    assert cell_columns(comparison)[0].column.key == "ttft_seconds"
    tiny = Summary(0.001, 0.001, 0.001, 0.001)
    dropping = with_metrics(comparison, 3, completed=97, refused=303, ttft_seconds=tiny)
    columns = cell_columns(dropping)
    assert columns[0].column.key == "completed"
    assert not any(column.cells[3].is_best for column in columns)
    assert any("random 97 of 400" in sentence for sentence in headline(dropping))


def test_higher_is_better_where_it_is() -> None:
    comparison = with_metrics(demo_comparison(), 2, goodput=1.0)
    goodput = next(column for column in cell_columns(comparison) if column.column.key == "goodput")
    assert [cell.is_best for cell in goodput.cells] == [False, False, True, False]
    assert goodput.cells[2].text == "100.0"


def test_what_does_not_exist_is_a_dash_and_no_ratio() -> None:
    comparison = demo_comparison()
    for row in range(len(POLICIES)):
        comparison = with_metrics(comparison, row, tpot_seconds=Summary(), jain_index=None)
    tpot = next(column for column in cell_columns(comparison) if column.column.key == "tpot_seconds")
    assert {(cell.text, cell.ratio, cell.is_best) for cell in tpot.cells} == {("–", "", False)}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.012345, "0.0123"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (0.9999, "1.00"),
        (142.4, "142"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "baseline", "text"),
    [(1, 2, "0.50×"), (1, 1000, "<0.01×"), (0, 5, "0.00×"), (30, 2, "15.0×"), (5, 0, ""), (None, 1, ""), (1, None, "")],
)
def test_ratios(value: float | None, baseline: float | None, text: str) -> None:
    assert ratio_text(value, baseline) == text


def test_durations_in_sentences() -> None:
    assert (seconds_text(0.0123), seconds_text(12.3), seconds_text(None)) == ("12.3 ms", "12.3 s", "–")


def test_the_headline_names_winner_baseline_and_price() -> None:
    comparison = demo_comparison()
    means = [(10.0, 20.0), (4.0, 60.0), (2.0, 40.0), (9.0, 20.0)]
    for row, (mean, p99) in enumerate(means):
        comparison = with_metrics(comparison, row, ttft_seconds=Summary(mean, mean, p99, p99))
    first, price, *_ = headline(comparison)
    assert first == (
        "At load 1.1, smallest-volume-first cut the mean time to first token from 10.0 s under fcfs to 2.00 s (0.20×)."
    )
    assert "the 99th percentile of TTFT went from 20.0 s to 40.0 s (2.00×)" in price


def test_the_headline_claims_nothing_where_nothing_was_shown() -> None:
    comparison = demo_comparison()
    for row in range(4):
        comparison = with_metrics(comparison, row, ttft_seconds=Summary(1 + row / 1000, 1, 1, 1))
    assert "the order hardly mattered" in headline(comparison)[0]
    slower = with_metrics(comparison, 1, ttft_seconds=Summary(5.0, 1, 1, 1))
    assert "no policy had a mean time to first token clearly below fcfs's 1.00 s" in headline(slower)[0]
    nobody = comparison
    for row in range(4):
        nobody = with_metrics(nobody, row, ttft_seconds=Summary(), completed=0, refused=400)
    assert headline(nobody)[0] == "No request got a first token."


def test_the_headline_speaks_of_the_highest_load_and_admits_an_oracle() -> None:
    comparison = demo_comparison(("fcfs", "smallest-volume-first"), (1.1, 0.7))
    assert headline(comparison)[0].startswith("At load 1.1")
    oracle = {"prediction": {"name": "oracle", "options": {}}}
    runs = tuple(dataclasses.replace(run, bundle=oracle) for run in comparison.runs)
    assert "oracle, which knows the true ones" in headline(dataclasses.replace(comparison, runs=runs))[-1]


def test_without_an_slo_the_table_says_what_goodput_is() -> None:
    text = " ".join(printed(dataclasses.replace(demo_comparison(), slo=Slo()), 300).split())
    assert "SLO: none given, so goodput is the share completed" in text


def test_labels_are_never_read_as_terminal_markup() -> None:
    comparison = demo_comparison(("random", "shortest-prompt-first"), labels={"random": "[bold]mine[/bold]"})
    assert printed(comparison, 160).count("[bold]mine[/bold]") >= 2


def test_runs_that_cannot_be_told_apart_are_named() -> None:
    comparison = demo_comparison(("fcfs", "random"))
    twins = dataclasses.replace(
        comparison, runs=(*comparison.runs, dataclasses.replace(comparison.runs[1], policy="another"))
    )
    told = [sentence for sentence in headline(twins) if "exactly the same numbers" in sentence]
    assert len(told) == 1
    assert told[0].startswith("random and another gave")
    assert not any("exactly the same numbers" in sentence for sentence in headline(comparison))


def test_what_is_the_same_in_all_runs_is_said_once_and_takes_no_column() -> None:
    comparison = demo_comparison()
    for row in range(len(comparison.runs)):
        comparison = with_metrics(comparison, row, preemptions=3)
    text = printed(comparison, 300)
    assert "preemptions 3" in same_in_all(comparison)
    assert same_in_all(comparison) in text
    assert "preemptions" not in text.replace(same_in_all(comparison), "")
    single = dataclasses.replace(comparison, runs=comparison.runs[:1])
    assert "preemptions" in printed(single, 300), "one run alone is shown whole"


def test_the_headline_weighs_the_price_of_a_short_mean() -> None:
    comparison = demo_comparison()
    before = comparison.runs[0].metrics.ttft_seconds
    figures = {0: (8.0, 30.0), 1: (1.0, 100.0), 2: (1.1, 40.0)}  # mean and p99 seconds; run 1 buys its mean dearly
    runs = list(comparison.runs[:3])
    for row, (mean, p99) in figures.items():
        ttft = dataclasses.replace(before, mean=mean, p99=p99)
        runs[row] = dataclasses.replace(runs[row], metrics=dataclasses.replace(runs[row].metrics, ttft_seconds=ttft))
    comparison = dataclasses.replace(comparison, runs=tuple(runs))
    first, *others = headline(comparison)
    assert first.startswith(f"On this trace, {runs[2].policy} cut") or f"{runs[2].policy} cut" in first
    assert any(f"{runs[1].policy} has a shorter mean" in said and "2.50× its p99" in said for said in others)
