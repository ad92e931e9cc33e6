"""The HTML report: a comparison as one file that needs no network, no scripts and no colour to be read.

Its bytes depend on the comparison alone (`wall_seconds` is not shown).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from headway.bench.experiment.comparison import Comparison, Run
from headway.bench.report import figures, sections
from headway.bench.report.frontier_picture import frontier_figures
from headway.bench.report.markup import Markup, join, tag
from headway.bench.report.replica_picture import replicas_over_time
from headway.bench.user_mistake import UserMistake

_NO_NETWORK = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the report to `path`, replacing what is there.

    Raises:
        UserMistake: the file cannot be written.
    """
    text = report_html(comparison)
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserMistake(f"report: cannot write {path} ({error.strerror}); name a file that can be written") from error


def report_html(comparison: Comparison) -> str:
    """The document, well-formed as XML behind its doctype.

    Raises:
        ValueError: there are no runs.
    """
    if not comparison.runs:
        raise ValueError("a report needs at least one run")
    return document(f"headway compare: {comparison.trace.get('name')}", *_parts(comparison))


def document(title: str, *parts: Markup) -> str:
    """A page that needs no network, in the report's style."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_NO_NETWORK),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", _file("style.css")),
    )
    body = tag("body", tag("main", *parts), tag("script", _file("switches.js")))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _parts(comparison: Comparison) -> list[Markup]:
    parts = [sections.heading(comparison)]
    sweep = figures.against_load(comparison)
    if sweep:
        parts.append(section("Latency against load", figures.legend(comparison), sweep))
    parts.append(section("Numbers", sections.tables(comparison)))
    loads = sorted(comparison.loads(), key=lambda load: -1.0 if load is None else -load)
    parts += [_charts(comparison, load, first=number == 0) for number, load in enumerate(loads)]
    return [
        *parts,
        section("What the numbers mean", sections.definitions(comparison)),
        section("What was run", sections.facts(comparison)),
        section("Repeat it", sections.repeat(comparison)),
    ]


def _charts(comparison: Comparison, load: float | None, *, first: bool) -> Markup:
    """The charts of one load. With several loads, all but the first are folded until opened or printed."""
    runs = comparison.at_load(load)
    charts = (
        *_frontier(comparison, runs, load),
        tag("h3", "Time to first token by length of prompt"),
        tag(
            "p",
            "Further left is sooner. Higher is more of the offered requests. All charts have the same time axis.",
            class_="quiet",
        ),
        figures.legend(comparison),
        figures.ttft_by_length(comparison, runs),
        tag("h3", "All replicas over time" if comparison.fleet else "The replica over time"),
        tag(
            "p",
            f"One row per policy. The charts of a column share axes. The thin line is {comparison.baseline_label()}.",
            class_="quiet",
        ),
        figures.over_time(comparison, runs),
        *_replicas(comparison, runs),
    )
    if load is None or len(comparison.loads()) == 1:
        return section("Charts", *charts)
    opened = {"open": "open"} if first else {}
    folded = tag("details", tag("summary", tag("h2", f"Charts at load {load:g}")), *charts, **opened)
    return tag("section", folded)


def _frontier(comparison: Comparison, runs: Sequence[Run], load: float | None) -> list[Markup]:
    """Mean against p99 TTFT, and longest wait against goodput; nothing for fewer than two policies."""
    points = figures.policy_points(comparison, runs)
    bound = comparison.bounds.get(load)
    drawn = frontier_figures(points, None if bound is None else bound.ttft_seconds)
    return [tag("h3", "The frontier: what can be had for what"), drawn] if drawn else []


def _replicas(comparison: Comparison, runs: Sequence[Run]) -> list[Markup]:
    """Of a fleet, each replica by itself."""
    drawn = replicas_over_time(comparison, runs)
    told = "Requests at each replica: those that run are filled in, the line counts those that wait there too."
    return [tag("h3", "Each replica over time"), tag("p", told, class_="quiet"), drawn] if drawn else []


def section(title: str, *children: Markup) -> Markup:
    """A part of the page under its title."""
    return tag("section", tag("h2", title), join(*children))


def _file(name: str) -> Markup:
    """A file of this package. It has neither `<` nor `&`, so it is valid XML text."""
    return Markup(files("headway.bench.report").joinpath(name).read_text(encoding="utf-8"))
