"""The picture of docs/results/priced-work.md: for each metric, in what share of cells an order is how far behind."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.studies.priced_work.regret_judging import HRRN, METRICS, Cell
from headway.bench.report.charts import Axes, Curve, vertical_mark, x_span, y_span
from headway.bench.report.markup import Markup
from headway.bench.report.page_picture import HEIGHT, WIDTH, page_picture, panel
from headway.bench.report.scales import Scale, share_label

FURTHEST = 10.0  # times behind; what is further is drawn at the edge
BESIDE = (HRRN, "shortest-prompt-first", "smallest-volume-first", "ewsjf", "fcfs")


def picture(cells: Sequence[Cell]) -> str:
    """An SVG document: four panels, a line an order, over the cells in which something queues."""
    queue = [cell for cell in cells if not cell.calm]
    ours = cells[0].ours
    orders = [ours, *(order for order in BESIDE if order != ours)]
    panels = [_metric_panel(queue, orders, metric, words) for metric, words in METRICS.items()]
    return page_picture(panels, orders, letter_width=6.2)


def _metric_panel(queue: Sequence[Cell], orders: Sequence[str], metric: str, words: str) -> Markup:
    x = Scale(0.5, FURTHEST, *x_span(WIDTH), "log")
    axes = Axes(x, Scale(0, 1, *y_span(HEIGHT)), ratio_label, share_label, "times the best order of the cell (log)")
    lines = []
    for number, order in enumerate(orders):
        ratios = sorted(cell.behind(order, metric) for cell in queue if order in cell.rows)
        xs = [x.low] + [ratio for ratio in ratios for _ in (0, 1)]
        ys = [0.0] + [(index + step) / len(ratios) for index in range(len(ratios)) for step in (0, 1)]
        lines.append(Curve(order, number, xs, ys))
    told = "Share of the cells in which an order is at most so many times behind the best order of the cell."
    return panel(words, told, axes, lines, vertical_mark(axes, 1.05, "5 % behind"))


def ratio_label(ratio: float) -> str:
    return f"{ratio:g}×"
