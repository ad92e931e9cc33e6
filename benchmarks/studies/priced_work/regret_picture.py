"""The picture of docs/results/priced-work.md: for each metric, in what share of cells an order is how far behind."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from benchmarks.studies.priced_work.regret_judging import HRRN, METRICS, Cell
from headway.bench.report.charts import Axes, Curve, chart, vertical_mark, x_span, y_span
from headway.bench.report.markup import Markup, escape, tag
from headway.bench.report.scales import Scale, share_label

WIDTH, HEIGHT, GAP, KEY = 440, 270, 24, 44
LETTER = 6.2  # about as wide as one is
FURTHEST = 10.0  # times behind; what is further is drawn at the edge
BESIDE = (HRRN, "shortest-prompt-first", "smallest-volume-first", "ewsjf", "fcfs")


def picture(cells: Sequence[Cell]) -> str:
    """An SVG document: four panels, a line an order, over the cells in which something queues."""
    queue = [cell for cell in cells if not cell.calm]
    ours = cells[0].ours
    orders = [ours, *(order for order in BESIDE if order != ours)]
    panels = []
    for place, (metric, words) in enumerate(METRICS.items()):
        at = (place % 2 * (WIDTH + GAP), KEY + place // 2 * (HEIGHT + GAP + 12))
        panels.append(tag("g", panel(queue, orders, metric, words), transform=f"translate({at[0]} {at[1]})"))
    width, height = 2 * WIDTH + GAP, KEY + 2 * (HEIGHT + GAP + 12)
    return str(
        tag(
            "svg",
            tag("style", Markup(style())),
            tag("rect", width=width, height=height, fill="#ffffff"),
            key(orders),
            *panels,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {height}",
            width=width,
            height=height,
        )
    )


def panel(queue: Sequence[Cell], orders: Sequence[str], metric: str, words: str) -> Markup:
    x = Scale(0.5, FURTHEST, *x_span(WIDTH), "log")
    axes = Axes(x, Scale(0, 1, *y_span(HEIGHT)), ratio_label, share_label, "times the best order of the cell (log)")
    lines = []
    for number, order in enumerate(orders):
        ratios = sorted(cell.behind(order, metric) for cell in queue if order in cell.rows)
        xs = [x.low] + [ratio for ratio in ratios for _ in (0, 1)]
        ys = [0.0] + [(index + step) / len(ratios) for index in range(len(ratios)) for step in (0, 1)]
        lines.append(Curve(order, number, xs, ys))
    title = tag("text", words, x=x.start, y=2, class_="title")
    told = "Share of the cells in which an order is at most so many times behind the best order of the cell."
    drawing = chart(words, told, axes, lines, vertical_mark(axes, 1.05, "5 % behind"))
    return tag("g", title, tag("g", drawing, transform="translate(0 4)"))


def key(orders: Sequence[str]) -> Markup:
    """Which line is whose."""
    items, at = [], 8.0
    for number, order in enumerate(orders):
        line = tag("g", tag("path", class_="line", d=f"M{at:g} 16h30"), class_=f"series s{number}")
        items += [line, tag("text", order, x=f"{at + 36:g}", y=20)]
        at += 54 + LETTER * len(order)
    return tag("g", *items)


def ratio_label(ratio: float) -> str:
    return f"{ratio:g}×"


def style() -> str:
    """The report's, in its light colours; a picture in a page has no other."""
    rules = (files("headway.bench.report") / "style.css").read_text(encoding="utf-8").splitlines()
    kept = [rule for rule in rules if not rule.startswith(("@media", "html", "body", "main"))]
    return "\n".join(
        [escape("svg text { font-family: system-ui, sans-serif; }"), *kept, ".title { font-weight: 600; }"]
    )
