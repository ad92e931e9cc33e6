"""A small picture of every replica of a fleet over time: the requests that run there, and those that wait there too."""

from __future__ import annotations

from collections.abc import Sequence

from headway.bench.experiment.comparison import Comparison, Run
from headway.bench.metrics.curves import Timeline
from headway.bench.report.charts import Axes, Curve, chart, x_span, y_span
from headway.bench.report.figures import elapsed_label, run_name, series_of
from headway.bench.report.markup import Markup, join, tag
from headway.bench.report.scales import count_label, linear
from headway.bench.report.table_columns import counted

SIZE = (300, 120)
REPLICAS_MAX = 16
"""More are counted and not drawn."""
_POINTS = 100


def replicas_over_time(comparison: Comparison, runs: Sequence[Run]) -> Markup:
    """A row per policy, a chart per replica, all with the same axes; empty for one replica."""
    drawn = [timeline for run in runs for timeline in run.replica_curves.values() if timeline.seconds]
    if not drawn:
        return Markup("")
    x = linear([], *x_span(SIZE[0]), high=max(timeline.seconds[-1] for timeline in drawn))
    y = linear([max(_inside(timeline)) for timeline in drawn], *y_span(SIZE[1]))
    axes = Axes(x, y, elapsed_label, count_label, "time since the first arrival")
    return join(*(_row(comparison, run, axes) for run in runs))


def _row(comparison: Comparison, run: Run, axes: Axes) -> Markup:
    name, number = run_name(comparison, run), series_of(comparison)[run.policy]
    figures = [
        _figure(str(part["id"]), _told(part), name, number, run.replica_curves[str(part["id"])], axes)
        for part in run.replicas[:REPLICAS_MAX]
    ]
    more = len(run.replicas) - len(figures)
    rest = [tag("p", f"{more} more replicas are not drawn.", class_="quiet")] if more else []
    return tag("div", tag("h4", name), tag("div", *figures, class_="panels"), *rest, class_=f"row of-s{number}")


def _told(part: object) -> str:
    assert isinstance(part, dict)
    return f"{counted(part['requests'], 'request')}, busy {100 * part['busy_share']:.0f} % of the time"


def _figure(replica: str, told: str, name: str, number: int, timeline: Timeline, axes: Axes) -> Markup:
    inside = _inside(timeline)
    lines = [
        _line(f"running at {replica}", number, timeline.seconds, timeline.running, area=True),
        _line(f"inside {replica}", number, timeline.seconds, inside, area=False),
    ]
    title = f"Requests at {replica} over time under {name}"
    drawing = chart(title, f"At most {count_label(max(inside, default=0.0))}; {told}.", axes, lines)
    return tag("figure", tag("figcaption", f"{replica}: {told}"), drawing)


def _inside(timeline: Timeline) -> list[float]:
    """Requests that run or wait there."""
    return [waiting + running for waiting, running in zip(timeline.waiting, timeline.running, strict=True)]


def _line(name: str, number: int, seconds: Sequence[float], values: Sequence[float], *, area: bool) -> Curve:
    per_point = -(-len(values) // _POINTS) or 1
    starts = range(0, len(values), per_point)
    xs = [_mean(seconds[start : start + per_point]) for start in starts]
    return Curve(name, number, xs, [_mean(values[start : start + per_point]) for start in starts], area=area)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
