"""Charts as inline SVG: axes, lines, and a name and a description for screen readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headway.bench.report.markup import Markup, join, tag
from headway.bench.report.scales import Label, Scale

LEFT, RIGHT, TOP, BOTTOM = 58, 14, 10, 40
_UNSEEN = 0.4  # pixels by which a drawn line may miss a point it leaves out


@dataclass(frozen=True, slots=True)
class Curve:
    """One policy's line. `series` picks colour and dashes; `marks` puts a dot on every point, `area` fills below."""

    name: str
    series: int
    xs: Sequence[float]
    ys: Sequence[float]
    marks: bool = False
    area: bool = False


@dataclass(frozen=True, slots=True)
class Axes:
    """The frame of a chart: scales, how their ticks are written, and what they measure."""

    x: Scale
    y: Scale
    x_label: Label
    y_label: Label
    x_title: str
    y_title: str = ""


def x_span(width: float) -> tuple[float, float]:
    """First and last place of an x axis in a chart that wide."""
    return LEFT, width - RIGHT


def y_span(height: float) -> tuple[float, float]:
    """Place of the lowest and of the highest value of a y axis in a chart that high."""
    return height - BOTTOM, TOP


def chart(title: str, description: str, axes: Axes, lines: Sequence[Curve], *extra: Markup) -> Markup:
    """A chart whose size follows from the spans of its axes; `extra` is drawn below the lines."""
    width, height = axes.x.end + RIGHT, axes.y.start + BOTTOM
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        _grid(axes),
        *extra,
        *(_draw(axes, line) for line in lines),
        role="img",
        aria_label=f"{title}. {description}",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
    )


def vertical_mark(axes: Axes, value: float, label: str) -> Markup:
    """A labelled upright line, such as a bound; nothing where it lies outside the axis."""
    if not axes.x.low <= value <= axes.x.high:
        return Markup("")
    at = axes.x.place(value)
    near_end = at > (axes.x.start + axes.x.end) / 2
    return join(
        tag("path", class_="bound", d=f"M{at:.1f} {axes.y.start:g}V{axes.y.end:g}"),
        tag(
            "text",
            label,
            class_="bound-label",
            x=f"{at + (-4 if near_end else 4):.1f}",
            y=f"{axes.y.start - 6:g}",
            text_anchor="end" if near_end else "start",
        ),
    )


def _grid(axes: Axes) -> Markup:
    left, right, bottom, top = axes.x.start, axes.x.end, axes.y.start, axes.y.end
    pieces = []
    for tick in axes.y.ticks():
        at = axes.y.place(tick)
        pieces.append(tag("path", class_="grid", d=f"M{left:g} {at:.1f}H{right:g}"))
        pieces.append(_text(axes.y_label(tick), left - 6, at + 4, "end"))
    for tick in axes.x.ticks():
        at = axes.x.place(tick)
        pieces.append(tag("path", class_="grid", d=f"M{at:.1f} {bottom:g}V{top:g}"))
        pieces.append(_text(axes.x_label(tick), at, bottom + 15, "middle"))
    pieces.append(tag("path", class_="axis", d=f"M{left:g} {top:g}V{bottom:g}H{right:g}"))
    pieces.append(_text(axes.x_title, (left + right) / 2, bottom + 32, "middle"))
    if axes.y_title:
        middle = (top + bottom) / 2
        pieces.append(
            tag(
                "text",
                axes.y_title,
                x=12,
                y=f"{middle:g}",
                text_anchor="middle",
                transform=f"rotate(-90 12 {middle:g})",
            )
        )
    return tag("g", *pieces, class_="frame", aria_hidden="true")


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _draw(axes: Axes, line: Curve) -> Markup:
    places = _thinned([(axes.x.place(x), axes.y.place(y)) for x, y in zip(line.xs, line.ys, strict=True)])
    if not places:
        return Markup("")
    if line.area:
        places = [(places[0][0], axes.y.start), *places, (places[-1][0], axes.y.start)]
    pieces = [tag("path", class_="line area" if line.area else "line", d=_path(places))]
    if line.marks:
        pieces += [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="3") for x, y in places]
    return tag("g", tag("title", line.name), *pieces, class_=f"series s{line.series}")


def _thinned(places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without the points that make no visible difference (Ramer 1972; Douglas and Peucker 1973)."""
    kept = {0, len(places) - 1}
    spans = [(0, len(places) - 1)]
    while spans:
        start, end = spans.pop()
        missed, worst = max(
            ((_distance(places[at], places[start], places[end]), at) for at in range(start + 1, end)), default=(0.0, 0)
        )
        if missed > _UNSEEN:
            kept.add(worst)
            spans += [(start, worst), (worst, end)]
    return [place for at, place in enumerate(places) if at in kept]


def _distance(point: tuple[float, float], start: tuple[float, float], end: tuple[float, float]) -> float:
    """From a point to the line piece between two others."""
    (x, y), (x0, y0), (x1, y1) = point, start, end
    length = (x1 - x0) ** 2 + (y1 - y0) ** 2
    along = min(max(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0.0), 1.0) if length else 0.0
    return math.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))


def _path(places: Sequence[tuple[float, float]]) -> str:
    """Relative moves of a tenth of a pixel; rounding does not add up, as each is taken from where the pen is."""
    x, y = round(places[0][0] * 10), round(places[0][1] * 10)
    moves = [f"M{x / 10:g} {y / 10:g}"]
    for place in places[1:]:
        to_x, to_y = round(place[0] * 10), round(place[1] * 10)
        if to_y == y:
            moves.append(f"h{(to_x - x) / 10:g}")
        else:
            moves.append(f"l{(to_x - x) / 10:g} {(to_y - y) / 10:g}")
        x, y = to_x, to_y
    return "".join(moves)
