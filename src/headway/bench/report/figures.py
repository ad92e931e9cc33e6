"""Figures of a comparison: TTFT by prompt length, the replica over time, latency against load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from headway.bench.experiment.comparison import Comparison, Run
from headway.bench.metrics.curves import Cdf, Curves
from headway.bench.metrics.run_metrics import RunMetrics
from headway.bench.report.charts import Axes, Curve, chart, vertical_mark, x_span, y_span
from headway.bench.report.frontier_picture import PolicyPoint
from headway.bench.report.markup import Markup, join, tag
from headway.bench.report.scales import (
    Label,
    Scale,
    count_label,
    duration_label,
    linear,
    logarithmic,
    share_label,
)
from headway.bench.report.table_columns import incomparable, seconds_text

CDF_SIZE = (372, 270)
TIMELINE_SIZE = (372, 150)
LOAD_SIZE = (552, 270)
_GREY = 25  # in the style sheet
_BARS = {
    "mean_ttft_seconds": "ttft_seconds.mean",
    "p99_ttft_seconds": "ttft_seconds.p99",
    "longest_ttft_seconds": "longest_ttft_seconds",
    "goodput": "goodput",
}  # measures of a point, and the names of their numbers
_TIMELINE_POINTS = 200  # a timeline is 300 pixels wide


def series_of(comparison: Comparison) -> dict[str, int]:
    """A number per policy, the same in every picture: 0 is the baseline. A random order has a grey of its own."""
    baseline = comparison.baseline_label()
    others = [label for label in dict.fromkeys(run.policy for run in comparison.runs) if label != baseline]
    control = next((label for label in others if label.partition(",")[0] == "random"), None)
    named = (label for label in (baseline, *others) if label != control)
    numbers = {label: number + (number >= _GREY) for number, label in enumerate(named)}
    return {label: numbers.get(label, _GREY) for label in (baseline, *others)}


def run_name(comparison: Comparison, run: Run) -> str:
    """The policy, with the seed where there are several."""
    several = len({other.seed for other in comparison.runs}) > 1
    return f"{run.policy}, seed {run.seed}" if several else run.policy


def policy_points(comparison: Comparison, runs: Sequence[Run]) -> list[PolicyPoint]:
    """The runs at one load as points of the frontier; one in which no request got a first token is left out."""
    points = []
    for run in runs:
        metrics, number = run.metrics, series_of(comparison)[run.policy]
        mean, p99, longest = metrics.ttft_seconds.mean, metrics.ttft_seconds.p99, metrics.longest_ttft_seconds
        if mean is None or p99 is None or longest is None:
            continue
        is_complete = not incomparable(comparison, run)
        name = run_name(comparison, run)
        point = PolicyPoint(name, number, mean, p99, longest, metrics.goodput, is_complete=is_complete)
        bars = {measure: comparison.interval(run, of) for measure, of in _BARS.items()}
        points.append(point._replace(bars={name: bar for name, bar in bars.items() if bar is not None}))
    return points


def legend(comparison: Comparison) -> Markup:
    """The legend. With scripts, each entry switches its line on and off."""
    items = [
        tag(
            "label",
            tag("input", type="checkbox", checked="checked", data_series=number),
            tag(
                "svg",
                tag("g", tag("path", class_="line", d="M1 7H41"), class_=f"series s{number}"),
                width=42,
                height=14,
                viewBox="0 0 42 14",
                aria_hidden="true",
            ),
            tag("span", label),
            data_series=number,
        )
        for label, number in series_of(comparison).items()
    ]
    return tag("div", *items, class_="legend", role="group", aria_label="Policies shown in the charts")


def ttft_by_length(comparison: Comparison, runs: Sequence[Run]) -> Markup:
    """One chart per length class, on the same logarithmic time axis."""
    values = [second for run in runs for cdf in run.curves.ttft for second in cdf.seconds]
    if not values:
        return tag("p", "No request got a first token.")
    x = logarithmic(values, *x_span(CDF_SIZE[0]))
    axes = Axes(x, Scale(0, 1, *y_span(CDF_SIZE[1])), duration_label, share_label, "time to first token (log)")
    bound = comparison.slo.ttft_seconds
    mark = Markup("") if bound is None else vertical_mark(axes, bound, "SLO")
    figures = []
    for index, first in enumerate(runs[0].curves.ttft):
        cdfs = [(run, run.curves.ttft[index]) for run in runs]
        lines = [_cdf_line(comparison, run, cdf) for run, cdf in cdfs]
        description = f"Share of requests with a first token within a time. {_medians(cdfs)}"
        heading = f"{first.name}: {first.requests:,} {first.prompts}"
        figures.append(_figure(heading, chart(f"TTFT, {heading}", description, axes, lines, mark)))
    return tag("div", *figures, class_="panels")


def over_time(comparison: Comparison, runs: Sequence[Run]) -> Markup:
    """One row of three charts per policy; the charts of a column share their axes and show the baseline too."""
    if not any(run.curves.seconds for run in runs):
        return tag("p", "These runs have no timelines.")
    baseline = next((run for run in runs if run.policy == comparison.baseline_label()), None)
    longest = max(second for run in runs for second in run.curves.seconds)
    x = linear([], *x_span(TIMELINE_SIZE[0]), high=longest)
    columns = [
        _Track("Waiting requests", "waiting", count_label, lambda c: c.waiting),
        _Track("Running requests", "running", count_label, lambda c: c.running),
        _Track("KV blocks in use", "KV use", share_label, lambda c: c.kv_share),
    ]
    frames = []
    for track in columns:
        values = [value for run in runs for value in track.values(run.curves)]
        span = y_span(TIMELINE_SIZE[1])
        y = Scale(0, 1, *span) if track.label is share_label else linear(values, *span)
        frames.append(Axes(x, y, elapsed_label, track.label, "time since the first arrival"))
    rows = [_over_time_row(comparison, run, baseline, columns, frames) for run in runs]
    return join(*rows)


def against_load(comparison: Comparison) -> Markup:
    """Four numbers over the loads, one line per policy; empty with fewer than two loads."""
    loads = sorted(load for load in comparison.loads() if load is not None)
    if len(loads) < 2:
        return Markup("")
    margin = (loads[-1] - loads[0]) * 0.05
    x = Scale(max(loads[0] - margin, 0.0), loads[-1] + margin, *x_span(LOAD_SIZE[0]))
    figures = []
    for title, label, read in _LOAD_CHARTS:
        lines = [line for line in _load_lines(comparison, read) if line.xs]
        values = [value for line in lines for value in line.ys]
        span = y_span(LOAD_SIZE[1])
        y = Scale(0, 1, *span) if label is share_label else logarithmic(values, *span)
        axes = Axes(x, y, lambda load: f"{load:.3g}", label, "load (share of saturation)")
        ends = "; ".join(f"{line.name} {label(line.ys[-1])}" for line in lines)
        figures.append(_figure(title, chart(title, f"At the highest load: {ends}.", axes, lines)))
    return tag("div", *figures, class_="panels pairs")


@dataclass(frozen=True, slots=True)
class _Track:
    title: str
    name: str
    label: Label
    values: Callable[[Curves], Sequence[float]]


_LOAD_CHARTS: tuple[tuple[str, Label, Callable[[RunMetrics], float | None]], ...] = (
    ("Mean time to first token (log)", duration_label, lambda m: m.ttft_seconds.mean),
    ("99th percentile of time to first token (log)", duration_label, lambda m: m.ttft_seconds.p99),
    (
        "Mean normalised latency, per output token (log)",
        duration_label,
        lambda m: m.normalised_latency_seconds_per_token.mean,
    ),
    ("Goodput, share of offered requests", share_label, lambda m: m.goodput),
)


def _figure(heading: str, drawing: Markup) -> Markup:
    return tag("figure", tag("figcaption", heading), drawing)


def _cdf_line(comparison: Comparison, run: Run, cdf: Cdf) -> Curve:
    """Starts on the axis, so that the fastest request shows."""
    start = cdf.seconds[:1]
    return Curve(
        run_name(comparison, run),
        series_of(comparison)[run.policy],
        (*start, *cdf.seconds),
        (0.0,) * len(start) + cdf.shares,
    )


def _medians(cdfs: Iterable[tuple[Run, Cdf]]) -> str:
    medians = []
    for run, cdf in cdfs:
        half = next((s for s, share in zip(cdf.seconds, cdf.shares, strict=True) if share >= 0.5), None)
        medians.append(f"{run.policy} {'never' if half is None else seconds_text(half)}")
    return f"Half had one within: {'; '.join(medians)}."


def _over_time_row(
    comparison: Comparison, run: Run, baseline: Run | None, tracks: Sequence[_Track], frames: Sequence[Axes]
) -> Markup:
    name, number = run_name(comparison, run), series_of(comparison)[run.policy]
    figures = []
    for track, axes in zip(tracks, frames, strict=True):
        values = track.values(run.curves)
        lines = [_timeline(name, number, run.curves, values, area=True)]
        if baseline is not None and baseline is not run:
            lines.insert(0, _timeline(baseline.policy, 0, baseline.curves, track.values(baseline.curves), area=False))
        middle, top = track.label(_mean(values or (0.0,))), track.label(max(values, default=0.0))
        title = f"{track.title} over time under {name}"
        drawing = chart(title, f"On average {middle}, at most {top}.", axes, lines)
        figures.append(_figure(f"{track.title}: on average {middle}, at most {top}", drawing))
    return tag("div", tag("h4", name), tag("div", *figures, class_="panels"), class_=f"row of-s{number}")


def _timeline(name: str, number: int, curves: Curves, values: Sequence[float], *, area: bool) -> Curve:
    """Neighbouring spans joined until they can be drawn."""
    per_point = -(-len(values) // _TIMELINE_POINTS) or 1
    starts = range(0, len(values), per_point)
    xs = [_mean(curves.seconds[start : start + per_point]) for start in starts]
    return Curve(name, number, xs, [_mean(values[start : start + per_point]) for start in starts], area=area)


def _load_lines(comparison: Comparison, read: Callable[[RunMetrics], float | None]) -> list[Curve]:
    lines = []
    names: Mapping[tuple[str, int], None] = dict.fromkeys((run.policy, run.seed) for run in comparison.runs)
    for policy, seed in names:
        mine = sorted(
            (run.load, value, run_name(comparison, run))
            for run in comparison.runs
            if (run.policy, run.seed) == (policy, seed)
            and run.load is not None
            and (value := read(run.metrics)) is not None
        )
        name = mine[0][2] if mine else policy
        xs, ys = [load for load, _, _ in mine], [value for _, value, _ in mine]
        lines.append(Curve(name, series_of(comparison)[policy], xs, ys, marks=True))
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def elapsed_label(seconds: float) -> str:
    """A tick of a time axis."""
    return "0" if seconds == 0 else f"{seconds:,.4g} s"
