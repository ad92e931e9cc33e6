"""The HTML report: self-contained, well-formed, small, and with every number of the table."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.comparison import Comparison
from headway.bench.experiment.fleets import Fleet, equal_replicas
from headway.bench.experiment.simulated_runs import Experiment, compare
from headway.bench.metrics.curves import curves
from headway.bench.metrics.run_metrics import summarise
from headway.bench.report.figures import series_of
from headway.bench.report.html_report import report_html, write_report
from headway.bench.report.markup import tag
from headway.bench.report.replica_picture import replicas_over_time
from headway.bench.report.scales import Scale, linear, logarithmic
from headway.bench.report.table_columns import cell_columns, shown_columns
from headway.bench.user_mistake import UserMistake
from headway.simulator.replica import replica
from headway.simulator.trace import Trace
from tests.support.handmade_days import KV_BLOCKS, demo_comparison, make_day, make_trace


def parsed(text: str) -> ET.Element:
    doctype, rest = text.split("\n", 1)
    assert doctype == "<!DOCTYPE html>"
    return ET.fromstring(rest)


def words(root: ET.Element) -> str:
    return " ".join("".join(root.itertext()).split())


@pytest.fixture(scope="module")
def text() -> str:
    return report_html(demo_comparison())


def test_needs_nothing_from_outside(text: str) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\(|src=|<link|<iframe|fetch\(|XMLHttp", text)
    policies = [e.get("content", "") for e in parsed(text).iter("meta") if e.get("http-equiv")]
    assert [policy.split(";")[0] for policy in policies] == ["default-src 'none'"]
    assert {e.get("href") for e in parsed(text).iter() if e.get("href")} == set()


def test_well_formed_with_one_title_and_everything_named(text: str) -> None:
    root = parsed(text)
    assert root.get("lang") == "en"
    for svg in root.iter("svg"):
        assert svg.get("aria-hidden") == "true" or (svg.get("role") == "img" and svg.get("aria-label"))
        if svg.get("role") == "img":
            assert svg.find("title") is not None
            assert svg.find("desc") is not None
    assert all(table.find("caption") is not None for table in root.iter("table"))
    assert all(th.get("scope") in ("col", "row") for th in root.iter("th"))
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))


def test_says_every_number_of_the_table_and_the_facts_behind_them(text: str) -> None:
    comparison = demo_comparison()
    told = words(parsed(text))
    for column in shown_columns(comparison):
        assert all(cell.text in told and cell.ratio in told for cell in column.cells)
    for fact in (
        "made up for a test",
        "not compared with anything",
        comparison.command,
        "7.25 requests/s",
        "demo <chat",
    ):
        assert fact in told


def test_as_many_marks_of_the_best_as_the_table_has(text: str) -> None:
    best = sum(cell.is_best for column in cell_columns(demo_comparison()) for cell in column.cells)
    assert sum(e.get("aria-label") == "best" for e in parsed(text).iter("span")) == best > 0


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img onerror="x">', "a & b", "nul\x00 and \x1b"])
def test_names_are_escaped_wherever_they_appear(evil: str) -> None:
    comparison = dataclasses.replace(
        demo_comparison(("fcfs", "random"), (0.7, 1.1), labels={"random": evil}),
        trace={"name": evil, "requests": 400},
        command=f"headway compare '{evil}'",
    )
    text = report_html(comparison)
    root = parsed(text)
    assert len(list(root.iter("script"))) == 1
    assert not list(root.iter("img"))
    assert re.sub(r"[\x00-\x1f]", "\ufffd", evil) in words(root)


def test_two_of_the_frontier_one_chart_a_length_class_and_three_a_policy_for_each_load() -> None:
    def charts(comparison: Comparison) -> int:
        return sum(svg.get("role") == "img" for svg in parsed(report_html(comparison)).iter("svg"))

    assert charts(demo_comparison()) == 2 + 3 + 3 * 4
    assert charts(demo_comparison(("fcfs", "random"), (0.5, 0.8, 1.1))) == 3 * (2 + 3 + 3 * 2) + 4


def test_lines_differ_by_colour_or_dash_up_to_24_policies() -> None:
    css = (Path(report_html.__code__.co_filename).parent / "style.css").read_text(encoding="utf-8")
    looks = re.findall(r"^\.s(\d+) \{ (--c: [^;]+; --d: [^;]+;) \}", css, re.M)
    assert [int(number) for number, _ in looks] == list(range(26))
    assert len({look for _, look in looks}) == 26
    colours = [look.partition(";")[0] for _, look in looks]
    assert colours.count(colours[25]) == 1, "that of random"


def test_random_has_its_own_colour_wherever_it_stands_and_the_baseline_keeps_its() -> None:
    def numbers(*policies: str) -> dict[str, int]:
        return series_of(demo_comparison(policies))

    assert numbers("fcfs", "random", "shortest-prompt-first") == {"fcfs": 0, "random": 25, "shortest-prompt-first": 1}
    assert numbers("random", "shortest-prompt-first") == {"random": 0, "shortest-prompt-first": 1}


def test_a_line_is_never_far_from_its_curve() -> None:
    comparison = demo_comparison(("fcfs",))
    root = parsed(report_html(comparison))
    cdf = next(svg for svg in root.iter("svg") if svg.get("role") == "img")
    path = next(e for e in cdf.iter("path") if e.get("class") == "line")
    numbers = re.findall(r"[Mlh]|-?[\d.]+", str(path.get("d")))
    x = y = 0.0
    at = 0
    while at < len(numbers):
        move = numbers[at]
        x = x + float(numbers[at + 1]) if move != "M" else float(numbers[at + 1])
        if move != "h":
            y = y + float(numbers[at + 2]) if move == "l" else float(numbers[at + 2])
        at += 2 if move == "h" else 3
    curve = comparison.runs[0].curves.ttft[0]
    spread = [s for c in comparison.runs[0].curves.ttft for s in c.seconds]
    end = logarithmic(spread, 58, 358).place(curve.seconds[-1])
    assert (x, y) == (pytest.approx(end, abs=0.1), pytest.approx(10.0))


def test_a_day_on_which_everything_was_refused_is_told_not_hidden() -> None:
    trace = make_trace([5, 5], [1, 1])
    day = make_day([None, None], [None, None], refused={0: "needs <more>", 1: "needs <more>"}, makespan=0.0)
    template = demo_comparison(("fcfs",), (None,))
    run = dataclasses.replace(
        template.runs[0],
        metrics=summarise(trace, day, template.slo, None, kv_blocks=KV_BLOCKS),
        curves=curves(trace, day, kv_blocks=KV_BLOCKS),
    )
    told = words(parsed(report_html(dataclasses.replace(template, runs=(run,)))))
    assert "No request got a first token." in told
    assert "2 refused, needs <more>" in told


def test_twelve_policies_stay_below_a_megabyte() -> None:
    one = demo_comparison(n=2000)
    runs = tuple(
        dataclasses.replace(run, policy=f"{run.policy}-{copy}" if copy else run.policy)
        for copy in range(3)
        for run in one.runs
    )
    assert len(report_html(dataclasses.replace(one, runs=runs)).encode()) < 1_000_000 / 2


def test_is_deterministic(text: str) -> None:
    comparison = demo_comparison()
    slower = tuple(dataclasses.replace(run, wall_seconds=9.0) for run in comparison.runs)
    assert report_html(dataclasses.replace(comparison, runs=slower)) == text


def test_a_place_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserMistake, match="report: cannot write"):
        write_report(demo_comparison(("fcfs",)), tmp_path / "missing" / "report.html")
    write_report(demo_comparison(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text


def test_no_runs_is_said() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        report_html(dataclasses.replace(demo_comparison(("fcfs",)), runs=()))


def test_markup_escapes_children_and_attributes() -> None:
    assert tag("p", "<b>", tag("i", "&"), title='"') == '<p title="&quot;">&lt;b&gt;<i>&amp;</i></p>'


@pytest.mark.parametrize(
    ("largest", "top"), [(0.0, 1.0), (1.0, 1.0), (42.0, 50.0), (1e-3, 1e-3), (271.0, 300.0), (1e6, 1e6)]
)
def test_linear_axes_end_on_a_round_value_with_few_ticks(largest: float, top: float) -> None:
    scale = linear([largest], 0, 100)
    assert scale.high == pytest.approx(top)
    ticks = scale.ticks()
    assert 3 <= len(ticks) <= 7
    assert ticks[0] == 0


@pytest.mark.parametrize(("low", "high"), [(0.01, 1000), (0.5, 0.6), (1.0, 1.0), (2.3, 41), (1e-3, 1e5)])
def test_log_axes_have_ticks_and_cover_their_values(low: float, high: float) -> None:
    scale: Scale = logarithmic([low, high], 0, 100)
    assert scale.low <= low <= high <= scale.high
    assert 2 <= len(scale.ticks()) <= 9
    assert scale.place(scale.low) == pytest.approx(0)
    assert scale.place(scale.high) == pytest.approx(100)


def test_each_replica_of_a_fleet_has_a_picture() -> None:
    trace = Trace("small", np.arange(40) * 0.05, np.full(40, 200), np.full(40, 30))
    fleet = Fleet(equal_replicas(replica("h100"), 3), ("round-robin", "least-work"))
    lived = compare(Experiment(trace, fleet.largest, [Bundle("fcfs")], fleet=fleet), jobs=1)
    drawn = replicas_over_time(lived, lived.runs)
    for run in lived.runs:
        for part in run.replicas:
            told = f"{part['requests']} requests, busy {100 * part['busy_share']:.0f} % of the time"  # type: ignore[operator]
            assert f"<figcaption>{part['id']}: {told}</figcaption>" in drawn
            assert f"Requests at {part['id']} over time under {run.policy}" in drawn
    assert drawn in report_html(lived)
    assert replicas_over_time(demo_comparison(), demo_comparison().runs) == ""
