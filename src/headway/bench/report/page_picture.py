"""A picture for a page: two columns of charts under one key, as an SVG document in the report's colours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files

from headway.bench.report.charts import Axes, Curve, chart
from headway.bench.report.markup import Markup, escape, tag

WIDTH, HEIGHT = 440, 270
_GAP, _KEY = 24, 44
_COLUMNS = 2


def page_picture(panels: Sequence[Markup], names: Sequence[str], *, letter_width: float) -> str:
    """An SVG document.

    Args:
        panels: of WIDTH × HEIGHT, row by row.
        names: of the lines, in the order of their colours.
        letter_width: about as wide as a letter of the key is, in pixels.
    """
    placed = []
    for place, drawing in enumerate(panels):
        row, column = divmod(place, _COLUMNS)
        x, y = column * (WIDTH + _GAP), _KEY + row * (HEIGHT + _GAP + 12)
        placed.append(tag("g", drawing, transform=f"translate({x} {y})"))
    rows = -(-len(panels) // _COLUMNS)
    width, height = _COLUMNS * WIDTH + _GAP, _KEY + rows * (HEIGHT + _GAP + 12)
    return str(
        tag(
            "svg",
            tag("style", Markup(_style())),
            tag("rect", width=width, height=height, fill="#ffffff"),
            _key(names, letter_width),
            *placed,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {height}",
            width=width,
            height=height,
        )
    )


def panel(title: str, told: str, axes: Axes, lines: Sequence[Curve], *marks: Markup) -> Markup:
    """A chart under its title. `told` says in a sentence what it shows, for who cannot see it."""
    heading = tag("text", title, x=axes.x.start, y=2, class_="title")
    return tag("g", heading, tag("g", chart(title, told, axes, lines, *marks), transform="translate(0 4)"))


def _key(names: Sequence[str], letter_width: float) -> Markup:
    """Which line is whose."""
    items, at = [], 8.0
    for number, name in enumerate(names):
        line = tag("g", tag("path", class_="line", d=f"M{at:g} 16h30"), class_=f"series s{number}")
        items += [line, tag("text", name, x=f"{at + 36:g}", y=20)]
        at += 54 + letter_width * len(name)
    return tag("g", *items)


def _style() -> str:
    """The report's, in its light colours; a picture in a page has no other."""
    rules = (files("headway.bench.report") / "style.css").read_text(encoding="utf-8")
    for_all = re.sub(r"^@media [^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", rules, flags=re.MULTILINE)
    of_svg = re.sub(r"^(?:html|body|main)\b[^{]*\{[^}]*\}", "", for_all, flags=re.MULTILINE)
    kept = [line for line in of_svg.splitlines() if line]
    return "\n".join(
        [escape("svg text { font-family: system-ui, sans-serif; }"), *kept, ".title { font-weight: 600; }"]
    )
