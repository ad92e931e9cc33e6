"""The picture of `headway fusion measure`: memory freed against quality, and what is freed in each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

from headway.bench.report.charts import Axes, Curve, chart, x_span, y_span
from headway.bench.report.markup import Markup, escape, tag
from headway.bench.report.scales import Scale, linear, logarithmic, share_label
from headway.fusion.distortion_curve import CurvePoint

WIDTH, HEIGHT, GAP, KEY = 440, 270, 24, 44
LETTER = 6.6  # about as wide as one is


def fusion_picture(sets: Mapping[str, Sequence[CurvePoint]]) -> str:
    """An SVG document: a row for each set of prompts, a line for each form.

    Args:
        sets: what the prompts share, and the points measured on them.
    """
    forms = list(dict.fromkeys(point.form for points in sets.values() for point in points))
    panels = []
    for row, (share, points) in enumerate(sets.items()):
        y = KEY + row * (HEIGHT + GAP + 12)
        for column, panel in enumerate((_quality_panel(share, points, forms), _layers_panel(share, points, forms))):
            panels.append(tag("g", panel, transform=f"translate({column * (WIDTH + GAP)} {y})"))
    width, height = 2 * WIDTH + GAP, KEY + len(sets) * (HEIGHT + GAP + 12)
    return str(
        tag(
            "svg",
            tag("style", Markup(_style())),
            tag("rect", width=width, height=height, fill="#ffffff"),
            _key(forms),
            *panels,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {height}",
            width=width,
            height=height,
        )
    )


def _quality_panel(share: str, points: Sequence[CurvePoint], forms: Sequence[str]) -> Markup:
    lines = []
    for number, form in enumerate(forms):
        its = sorted((1 - point.stored_share, point.quality.kl) for point in points if point.form == form)
        its = [(freed, kl) for freed, kl in its if kl > 0]
        lines.append(Curve(form, number, [freed for freed, _ in its], [kl for _, kl in its], marks=True))
    y = logarithmic([kl for line in lines for kl in line.ys], *y_span(HEIGHT))
    axes = Axes(Scale(0, 1, *x_span(WIDTH)), y, share_label, _number_label, "KV bytes saved", "KL of the next token")
    title = f"Prompts that share: {share}. Memory against quality"
    told = "KL divergence of the next token in nats, by the share of KV bytes saved, scales and tables counted."
    return _panel(title, told, axes, lines)


def _layers_panel(share: str, points: Sequence[CurvePoint], forms: Sequence[str]) -> Markup:
    """The forms that share blocks, each at its middle bound."""
    lines = []
    for number, form in enumerate(forms):
        its = sorted((point for point in points if point.form == form), key=lambda point: point.bound)
        middle = its[len(its) // 2] if its else None
        if middle is not None and any(point.fused_share for point in its):
            layers = [float(layer) for layer in range(len(middle.layer_shares))]
            lines.append(Curve(f"{form} at {middle.bound:g}", number, layers, list(middle.layer_shares)))
    x = linear([layer for line in lines for layer in line.xs], *x_span(WIDTH))
    axes = Axes(x, Scale(0, 1, *y_span(HEIGHT)), _number_label, share_label, "layer", "KV memory freed")
    told = "Share of each layer's KV memory that is freed, at the middle one of the bounds tried."
    return _panel(f"Prompts that share: {share}. Layer by layer", told, axes, lines)


def _panel(title: str, told: str, axes: Axes, lines: Sequence[Curve]) -> Markup:
    heading = tag("text", title, x=axes.x.start, y=2, class_="title")
    return tag("g", heading, tag("g", chart(title, told, axes, lines), transform="translate(0 4)"))


def _key(forms: Sequence[str]) -> Markup:
    items, at = [], 8.0
    for number, form in enumerate(forms):
        line = tag("g", tag("path", class_="line", d=f"M{at:g} 16h30"), class_=f"series s{number}")
        items += [line, tag("text", form, x=f"{at + 36:g}", y=20)]
        at += 54 + LETTER * len(form)
    return tag("g", *items)


def _number_label(number: float) -> str:
    return f"{number:g}"


def _style() -> str:
    """The report's, in its light colours; a picture in a page has no other."""
    rules = (files("headway.bench.report") / "style.css").read_text(encoding="utf-8").splitlines()
    kept = [rule for rule in rules if not rule.startswith(("@media", "html", "body", "main"))]
    return "\n".join(
        [escape("svg text { font-family: system-ui, sans-serif; }"), *kept, ".title { font-weight: 600; }"]
    )
