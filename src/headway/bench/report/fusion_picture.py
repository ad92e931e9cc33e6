"""The picture of `headway fusion measure`: memory freed against quality, and what is freed in each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headway.bench.report.charts import Axes, Curve, x_span, y_span
from headway.bench.report.markup import Markup
from headway.bench.report.page_picture import HEIGHT, WIDTH, page_picture, panel
from headway.bench.report.scales import Scale, linear, logarithmic, share_label
from headway.fusion.distortion_curve import CurvePoint


def fusion_picture(sets: Mapping[str, Sequence[CurvePoint]]) -> str:
    """An SVG document: a row for each set of prompts, a line for each form.

    Args:
        sets: what the prompts share, and the points measured on them.
    """
    forms = list(dict.fromkeys(point.form for points in sets.values() for point in points))
    panels = [
        panel_of(share, points, forms) for share, points in sets.items() for panel_of in (_quality_panel, _layers_panel)
    ]
    return page_picture(panels, forms, letter_width=6.6)


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
    return panel(title, told, axes, lines)


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
    return panel(f"Prompts that share: {share}. Layer by layer", told, axes, lines)


def _number_label(number: float) -> str:
    return f"{number:g}"
