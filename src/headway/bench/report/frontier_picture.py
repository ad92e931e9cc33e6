"""The frontier: each policy a point, mean against p99 TTFT and longest wait against goodput, dominated ones faint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from headway.bench.metrics.samples import Interval
from headway.bench.report.charts import Axes, chart, x_span, y_span
from headway.bench.report.markup import Markup, join, tag
from headway.bench.report.scales import Label, Scale, duration_label, logarithmic, share_label
from headway.bench.report.table_columns import seconds_text

SIZE = (372, 330)
_RADIUS = 5
_LETTER, _LINE = 7.0, 11.0  # pixels that a digit takes beside a point
_BESIDE = (
    (1, 0), (0, -1), (-1, 0), (0, 1), (0.8, -0.8), (0.8, 0.8), (-0.8, -0.8), (-0.8, 0.8),
)  # fmt: skip
_AWAY = (9.0, 15.0)  # pixels from a point to the middle of its number
_NEAR_BOUND = 5.0  # a lower bound further than so many times below all points would leave them no room
_STRIP = 14.0  # pixels of the wall where the bound lies off the axis
_SERIES = 26  # that the style sheet has colours for


class PolicyPoint(NamedTuple):
    """What one policy made of the day.

    Attributes:
        name: of the policy.
        series: number of its colour, as in the other charts.
        mean_ttft_seconds: mean time to first token.
        p99_ttft_seconds: 99th percentile of it.
        longest_ttft_seconds: the longest of all.
        goodput: share of the offered requests that met the SLO.
        note: what else to say of it, such as `recommended`.
        is_chosen: whether it has a ring.
        is_complete: whether it served about as many requests as the others; if not, it dominates none.
        is_allowed: whether it keeps the bounds that were asked for; if not, it dominates none.
        bars: error bars of its measures, by their names here; empty without any.
    """

    name: str
    series: int
    mean_ttft_seconds: float
    p99_ttft_seconds: float
    longest_ttft_seconds: float
    goodput: float
    note: str = ""
    is_chosen: bool = False
    is_complete: bool = True
    is_allowed: bool = True
    bars: Mapping[str, Interval] = MappingProxyType({})

    @property
    def may_dominate(self) -> bool:
        """Whether it could be had in the place of another one."""
        return self.is_complete and self.is_allowed


class _Plane(NamedTuple):
    """Two measures to draw against each other; less of `x` is better, and less or more of `y`."""

    title: str
    x: Callable[[PolicyPoint], float]
    y: Callable[[PolicyPoint], float]
    x_title: str
    y_title: str
    y_label: Label
    x_name: str
    y_name: str
    is_high_better: bool

    def dominator(self, point: PolicyPoint, points: Sequence[PolicyPoint]) -> PolicyPoint | None:
        """Of those that are as good in both and better in one, the one with the least `x`."""
        sign = -1 if self.is_high_better else 1
        mine = self.x(point), sign * self.y(point)
        better = [
            other
            for other in points
            if other.may_dominate
            and self.x(other) <= mine[0]
            and sign * self.y(other) <= mine[1]
            and (self.x(other), sign * self.y(other)) != mine
        ]
        return min(better, key=self.x, default=None)

    def leads(self, point: PolicyPoint, points: Sequence[PolicyPoint]) -> bool:
        """Whether it is on the frontier: it could be had, and none of the others dominates it."""
        return point.may_dominate and self.dominator(point, points) is None


MEAN_AND_TAIL = _Plane(
    "Mean against p99 of time to first token",
    lambda point: point.mean_ttft_seconds,
    lambda point: point.p99_ttft_seconds,
    "mean TTFT (log)",
    "p99 TTFT (log)",
    duration_label,
    "mean_ttft_seconds",
    "p99_ttft_seconds",
    is_high_better=False,
)
GOODPUT_AND_LONGEST = _Plane(
    "Longest wait against goodput",
    lambda point: point.longest_ttft_seconds,
    lambda point: point.goodput,
    "longest TTFT (log)",
    "goodput",
    share_label,
    "longest_ttft_seconds",
    "goodput",
    is_high_better=True,
)


def frontier(points: Sequence[PolicyPoint]) -> list[PolicyPoint]:
    """Those that no other one dominates in mean and p99 TTFT, by their mean."""
    kept = [point for point in points if MEAN_AND_TAIL.leads(point, points)]
    return sorted(kept, key=lambda point: (point.mean_ttft_seconds, point.p99_ttft_seconds, point.name))


def frontier_figures(points: Sequence[PolicyPoint], bound_seconds: float | None) -> Markup:
    """Both pictures, and the table that their numbers refer to; empty for fewer than two policies.

    Args:
        points: of the policies.
        bound_seconds: what no policy's mean TTFT is below; None where none is known.
    """
    if len(points) < 2:
        return Markup("")
    ordered = sorted(points, key=lambda point: (point.mean_ttft_seconds, point.p99_ttft_seconds, point.name))
    drawn = [drawing(ordered, MEAN_AND_TAIL, bound_seconds), drawing(ordered, GOODPUT_AND_LONGEST, None)]
    titles = (MEAN_AND_TAIL.title, GOODPUT_AND_LONGEST.title)
    figures = [tag("figure", tag("figcaption", title), picture) for title, picture in zip(titles, drawn, strict=True)]
    told = (
        "Each number is a policy, in the order of its mean. Further left and lower is better; on the right, further "
        "left and higher. A filled point is on the frontier: no other policy is as good in both and better in one. "
        "The others are faint."
    )
    if any(point.bars for point in points):
        told += " A cross shows the 90 % intervals of a point."
    wall = " No policy can reach the grey area: its mean would be below the lower bound." if bound_seconds else ""
    return join(
        tag("p", told + wall, class_="quiet"),
        tag("div", *figures, class_="panels points"),
        _table(ordered),
    )


def drawing(ordered: Sequence[PolicyPoint], plane: _Plane, bound_seconds: float | None) -> Markup:
    """One picture; a point's number is its place in `ordered`, from 1."""
    xs, ys = _reach(ordered, plane.x, plane.x_name), _reach(ordered, plane.y, plane.y_name)
    near = bound_seconds is not None and bound_seconds * _NEAR_BOUND >= min(xs)
    x = logarithmic([*xs, bound_seconds] if near and bound_seconds else xs, *x_span(SIZE[0]), factor_min=2.0)
    y = _shares(ys) if plane.is_high_better else logarithmic(ys, *y_span(SIZE[1]), factor_min=2.0)
    x = _widened(x) if near or not bound_seconds else _beside_strip(_widened(x))
    axes = Axes(x, _widened(y), duration_label, plane.y_label, plane.x_title, plane.y_title)
    best = [point for point in ordered if plane.leads(point, ordered)]
    places = [(axes.x.place(plane.x(point)), axes.y.place(plane.y(point))) for point in ordered]
    numbers = _numbers(places, [point in best for point in ordered], axes)
    points = [
        _point(point, number, places[number - 1], numbers[number - 1], is_faint=point not in best)
        for number, point in enumerate(ordered, 1)
    ]
    faint_first = sorted(range(len(points)), key=lambda at: ordered[at] in best)
    said = "; ".join(
        f"{point.name}: {seconds_text(plane.x(point))}, {plane.y_label(plane.y(point))}"
        for point in sorted(best, key=plane.x)
    )
    by = f"No policy's mean is below {seconds_text(bound_seconds)}. " if bound_seconds else ""
    return chart(
        plane.title,
        f"{by}On the frontier, {plane.x_title.removesuffix(' (log)')} and "
        f"{plane.y_title.removesuffix(' (log)')}: {said}.",
        axes,
        [],
        _wall(axes, bound_seconds),
        _stairs(axes, plane, best),
        *(_bars(point, axes, plane, is_faint=point not in best) for point in ordered),
        *(points[at] for at in faint_first),
    )


def _reach(points: Sequence[PolicyPoint], read: Callable[[PolicyPoint], float], name: str) -> list[float]:
    """The values of one measure, and the ends of their bars."""
    ends = [end for point in points if name in point.bars for end in point.bars[name] if end > 0]
    return [read(point) for point in points] + ends


def _bars(point: PolicyPoint, axes: Axes, plane: _Plane, *, is_faint: bool) -> Markup:
    """Its error bars, one along each axis."""
    lines = []
    x, y = axes.x.place(plane.x(point)), axes.y.place(plane.y(point))
    if plane.x_name in point.bars:
        low, high = (axes.x.place(max(end, axes.x.low)) for end in point.bars[plane.x_name])
        lines.append(f"M{low:.1f} {y:.1f}H{high:.1f}")
    if plane.y_name in point.bars:
        low, high = (axes.y.place(max(end, axes.y.low)) for end in point.bars[plane.y_name])
        lines.append(f"M{x:.1f} {low:.1f}V{high:.1f}")
    if not lines:
        return Markup("")
    kind = f"error-bar s{point.series % _SERIES}{' faint' if is_faint else ''}"
    return tag("g", tag("path", d="".join(lines)), class_=kind)


def _shares(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    margin = max(0.01, 0.1 * (high - low))
    return Scale(max(0.0, low - margin), min(1.0, high + margin), *y_span(SIZE[1]))


def _widened(scale: Scale) -> Scale:
    """So that no point lies on the frame."""
    if scale.kind == "linear":
        return scale
    margin = (scale.high / scale.low) ** 0.06
    return Scale(scale.low / margin, scale.high * margin, scale.start, scale.end, "log")


def _beside_strip(scale: Scale) -> Scale:
    """With room at the low end, so that no point lies on the strip that stands for a far bound."""
    share = (_STRIP + _RADIUS + 4) / (scale.end - scale.start)
    low = math.exp((math.log(scale.low) - share * math.log(scale.high)) / (1 - share))
    return Scale(low, scale.high, scale.start, scale.end, "log")


def _wall(axes: Axes, bound_seconds: float | None) -> Markup:
    """The area that no policy reaches."""
    if not bound_seconds:
        return Markup("")
    left, top, bottom = axes.x.start, axes.y.end, axes.y.start
    is_inside = bound_seconds >= axes.x.low
    at = axes.x.place(bound_seconds) if is_inside else left + _STRIP
    said = f"lower bound {seconds_text(bound_seconds)}"
    label = tag(
        "text",
        said if is_inside else f"{said}, left of the axis",
        class_="bound-label",
        transform=f"translate({at - 5:.1f} {bottom - 6:g}) rotate(-90)",
    )
    return join(
        tag("rect", class_="wall", x=f"{left:g}", y=f"{top:g}", width=f"{at - left:.1f}", height=f"{bottom - top:g}"),
        tag("path", class_="bound", d=f"M{at:.1f} {bottom:g}V{top:g}") if is_inside else Markup(""),
        label,
    )


def _stairs(axes: Axes, plane: _Plane, best: Sequence[PolicyPoint]) -> Markup:
    """The edge of what some policy reaches."""
    places = sorted((axes.x.place(plane.x(point)), axes.y.place(plane.y(point))) for point in best)
    if not places:
        return Markup("")
    start = axes.y.start if plane.is_high_better else axes.y.end
    moves = [f"M{places[0][0]:.1f} {start:g}V{places[0][1]:.1f}"]
    moves += [f"H{x:.1f}V{y:.1f}" for x, y in places[1:]]
    return tag("path", class_="stairs", d=f"{''.join(moves)}H{axes.x.end:g}")


def _point(
    point: PolicyPoint, number: int, place: tuple[float, float], beside: tuple[float, float] | None, *, is_faint: bool
) -> Markup:
    x, y = place
    pieces = [tag("title", f"{number}. {point.name}: {_told(point)}")]
    if point.is_chosen:
        pieces.append(tag("circle", class_="ring", cx=f"{x:.1f}", cy=f"{y:.1f}", r=_RADIUS + 4))
    pieces.append(tag("circle", class_="dot", cx=f"{x:.1f}", cy=f"{y:.1f}", r=_RADIUS))
    if beside is not None:
        pieces.append(tag("text", str(number), x=f"{beside[0]:.1f}", y=f"{beside[1] + 4:.1f}", text_anchor="middle"))
    return tag("g", *pieces, class_=f"point s{point.series % _SERIES}{' faint' if is_faint else ''}")


def _told(point: PolicyPoint) -> str:
    note = f", {point.note}" if point.note else ""
    return (
        f"mean TTFT {seconds_text(point.mean_ttft_seconds)}, p99 {seconds_text(point.p99_ttft_seconds)}, "
        f"longest {seconds_text(point.longest_ttft_seconds)}, goodput {point.goodput:.1%}{note}"
    )


def _numbers(
    places: Sequence[tuple[float, float]], on_frontier: Sequence[bool], axes: Axes
) -> list[tuple[float, float] | None]:
    """Where the number of each point stands: clear of points and of other numbers, those of the frontier first.

    A faint point whose number finds no room has none; the table has them all.
    """
    found: list[tuple[float, float] | None] = [None] * len(places)
    taken: list[tuple[float, float, float]] = []  # middle and width of a number
    for at in sorted(range(len(places)), key=lambda one: not on_frontier[one]):
        width = _LETTER * len(str(at + 1))
        best, least = None, math.inf
        for away in _AWAY:
            for dx, dy in _BESIDE:
                middle = places[at][0] + dx * (away + width / 2 - 3), places[at][1] + dy * away
                cost = _cost(middle, width, [*places[:at], *places[at + 1 :]], taken, axes)
                if cost < least:
                    best, least = middle, cost
        if best is not None and (least < 1 or on_frontier[at]):
            found[at] = best
            taken.append((*best, width))
    return found


def _cost(
    middle: tuple[float, float],
    width: float,
    points: Sequence[tuple[float, float]],
    taken: Sequence[tuple[float, float, float]],
    axes: Axes,
) -> float:
    """How much a number there would cover; 0 for nothing."""
    x, y = middle
    outside = not (axes.x.start + width / 2 <= x <= axes.x.end - width / 2 and axes.y.end <= y <= axes.y.start - 6)
    dots = sum(abs(x - px) < width / 2 + _RADIUS and abs(y - py) < _LINE / 2 + _RADIUS for px, py in points)
    numbers = sum(abs(x - px) < (width + other) / 2 + 1 and abs(y - py) < _LINE for px, py, other in taken)
    return 5.0 * outside + dots + 3.0 * numbers


def _table(ordered: Sequence[PolicyPoint]) -> Markup:
    measures = ("mean TTFT", "p99 TTFT", "longest TTFT", "goodput")
    head = tag(
        "tr",
        tag("th", "number", scope="col", class_="number"),
        tag("th", "policy", scope="col"),
        *(tag("th", title, scope="col", class_="number") for title in measures),
        tag("th", "mean and p99", scope="col"),
    )
    rows = []
    for number, point in enumerate(ordered, 1):
        better = MEAN_AND_TAIL.dominator(point, ordered)
        leads = MEAN_AND_TAIL.leads(point, ordered)
        notes = ["on the frontier"] if leads else []
        notes += [] if better is None else [f"dominated by {ordered.index(better) + 1}"]
        notes += [] if point.is_complete else ["served fewer requests"]
        notes += [point.note] if point.note else []
        values = (
            seconds_text(point.mean_ttft_seconds),
            seconds_text(point.p99_ttft_seconds),
            seconds_text(point.longest_ttft_seconds),
            f"{point.goodput:.1%}",
        )
        cells = [
            tag("td", str(number), class_="number"),
            tag("th", point.name, scope="row"),
            *(tag("td", value, class_="number") for value in values),
            tag("td", ", ".join(notes), class_="note-cell"),
        ]
        rows.append(tag("tr", *cells, class_="front" if leads else "faint"))
    caption = tag("caption", "The policies of the picture")
    return tag("div", tag("table", caption, tag("thead", head), tag("tbody", *rows)), class_="scroll key")
