"""The picture of docs/results/frontier.md: in what share of the pairs a choice is how far behind the best."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import numpy as np

from benchmarks.studies.frontier.days import Day
from benchmarks.studies.frontier.judging import OBJECTIVES, OURS, Choice
from benchmarks.studies.priced_work.regret_cells import SLO
from headway.bench.metrics.run_metrics import meets
from headway.bench.report.charts import Axes, Curve, vertical_mark, x_span, y_span
from headway.bench.report.frontier_picture import MEAN_AND_TAIL, PolicyPoint, drawing
from headway.bench.report.markup import Markup, tag
from headway.bench.report.page_picture import HEIGHT, WIDTH, page_picture, panel
from headway.bench.report.scales import Scale, share_label

FURTHEST = 10.0
LINES = ("recommended", "naive", "default", "fcfs")


def picture(choices: Sequence[Choice]) -> str:
    """An SVG document: a panel for each half and objective, a line for each way to choose."""
    panels = []
    for objective in OBJECTIVES:
        for half in ("training", "test"):
            mine = [one for one in choices if one.objective == objective and one.cell.half == half]
            if mine:
                panels.append(_panel(f"{objective}, {half} half: {len(mine)} pairs", mine))
    return page_picture(panels, LINES, letter_width=6.6)


def points_picture(days: Sequence[tuple[str, Day]]) -> str:
    """An SVG document: mean against p99 TTFT of every order in some windows, each with the names of its numbers."""
    placed, height = [], 0
    for column, (title, day) in enumerate(days):
        points = sorted(day_points(day), key=lambda one: (one.mean_ttft_seconds, one.p99_ttft_seconds, one.name))
        names = [
            tag("text", f"{number}  {point.name}", x=12, y=380 + 15 * number, class_="ours" if point.is_chosen else "")
            for number, point in enumerate(points, 1)
        ]
        heading = tag("text", title, x=58, y=16, class_="title")
        bare = [point._replace(is_chosen=False) for point in points]
        chart = tag("g", drawing(bare, MEAN_AND_TAIL, day.bound), transform="translate(0 26)")
        placed.append(tag("g", heading, chart, *names, transform=f"translate({column * 410} 0)"))
        height = max(height, 400 + 15 * len(points))
    rules = (files("headway.bench.report") / "style.css").read_text(encoding="utf-8").splitlines()
    kept = [rule for rule in rules if not rule.startswith(("@media", "html", "body", "main"))]
    ours = "svg text { font-family: system-ui, sans-serif; } .title, .ours { font-weight: 600; }"
    style = "\n".join([ours, *kept])
    width = 410 * len(days)
    return str(
        tag(
            "svg",
            tag("style", Markup(style.replace("<", "&lt;").replace("&", "&amp;"))),
            tag("rect", width=width, height=height, fill="#ffffff"),
            *placed,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {height}",
            width=width,
            height=height,
        )
    )


def day_points(day: Day) -> list[PolicyPoint]:
    """The orders of a window; `is_chosen` marks ours."""
    points = []
    for number, (label, told) in enumerate(day.arms.items()):
        if label.endswith(", running-mean"):
            continue
        waits = told.ttft_seconds
        good = meets(SLO, waits, told.tpot_seconds, told.e2e_seconds).mean()
        mean, p99 = float(waits.mean()), float(np.percentile(waits, 99))
        is_ours = label.partition("(")[0] in OURS
        points.append(PolicyPoint(label, number, mean, p99, float(waits.max()), float(good), is_chosen=is_ours))
    return points


def _panel(title: str, mine: Sequence[Choice]) -> Markup:
    x = Scale(1.0, FURTHEST, *x_span(WIDTH), "log")
    axes = Axes(
        x, Scale(0, 1, *y_span(HEIGHT)), lambda ratio: f"{ratio:g}×", share_label, "times the best of the window (log)"
    )
    lines = []
    for number, who in enumerate(LINES):
        ratios = sorted(one.behind[who] for one in mine)
        xs = [x.low] + [ratio for ratio in ratios for _ in (0, 1)] + [x.high]
        ys = [0.0] + [(index + step) / len(ratios) for index in range(len(ratios)) for step in (0, 1)] + [1.0]
        lines.append(Curve(who, number, xs, ys))
    told = "Share of the pairs in which a choice is at most so many times behind the best order of the second window."
    return panel(title, told, axes, lines, vertical_mark(axes, 1.05, "5 % behind"))
