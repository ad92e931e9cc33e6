"""The text of the HTML report: headline, tables, definitions, facts, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from headway.bench.experiment.comparison import Comparison, Json, Run
from headway.bench.metrics.agreement import Agreement
from headway.bench.metrics.run_metrics import DEFINITIONS
from headway.bench.report.comparison_facts import (
    describe_fleet,
    describe_own_load,
    describe_predictions,
    describe_recorded,
    describe_repeats,
    describe_saturation,
)
from headway.bench.report.figures import run_name
from headway.bench.report.headline import headline
from headway.bench.report.markup import Markup, join, tag
from headway.bench.report.table_columns import NOTHING, Cell, CellColumn, shown_columns, significant

_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Time to first token", ("completed", "ttft_seconds", "ttft_short_half_seconds", "ttft_longest_5pct_seconds")),
    (
        "The whole answer",
        ("tpot_seconds", "e2e_seconds", "times_lower_bound", "normalised_latency_seconds_per_token", "slowdown"),
    ),
    (
        "The replica and its tenants",
        (
            "goodput",
            "throughput_tokens_per_second",
            "preemptions",
            "recomputed_tokens",
            "kv_peak_share",
            "jain_index",
            "prefix_hit_share",
            "load_imbalance",
        ),
    ),
)


def heading(comparison: Comparison) -> Markup:
    """Title, headline sentences, and the source of the step times."""
    first, *others = headline(comparison)
    trace, replica = comparison.trace, comparison.replica
    profile = replica.get("profile")
    stated = profile if isinstance(profile, Mapping) else {}
    model = f"{replica.get('model')} on {replica.get('hardware')}"
    return tag(
        "header",
        tag("p", f"headway {comparison.version} · {trace.get('name')} · {model}", class_="eyebrow"),
        tag("h1", first),
        *(tag("p", sentence, class_="lead") for sentence in others),
        tag(
            "p",
            tag("strong", "These are simulated times. "),
            f"Step times: {stated.get('source', 'source not stated')}. "
            f"Stated error: {stated.get('error', 'none stated')}.",
            class_="note",
        ),
    )


def tables(comparison: Comparison) -> Markup:
    """The numbers in three tables, so that they fit on paper."""
    columns = shown_columns(comparison)
    several = len(comparison.loads()) > 1
    baseline = comparison.baseline_label()
    legend = (
        f"★ and bold: best of its column{' at its load' if several else ''}; values equal as printed share it. "
        f"The small number is the ratio to {baseline}{' at the same load' if several else ''}."
    )
    if comparison.repeats is not None:
        legend += " ±: the larger half of a 90 % interval. ≈: cannot be told apart from the best of its column."
    groups = [
        _table(comparison, title, [column for column in columns if column.column.key in keys])
        for title, keys in _GROUPS
    ]
    return join(*groups, tag("p", legend, class_="quiet"))


def results_table(comparison: Comparison) -> Markup:
    """All columns in one table, for a page that has a style of its own."""
    return _table(comparison, "Results", shown_columns(comparison))


def definitions(comparison: Comparison) -> Markup:
    """What every column means."""
    slo = str(comparison.slo) or "none given, so goodput is the share completed"
    shown = dict.fromkeys((column.column.title, column.column.key) for column in shown_columns(comparison))
    items = [
        tag(
            "div",
            tag("dt", title),
            tag("dd", DEFINITIONS[key][0].upper() + DEFINITIONS[key][1:] + "."),
            *([tag("dd", f"SLO: {slo}")] if key == "goodput" else []),
        )
        for title, key in shown
    ]
    return tag("dl", *items)


def facts(comparison: Comparison) -> Markup:
    """Trace, replica, load, policies, and what to know about the runs."""
    pieces = [
        tag("h3", "Trace"),
        _fact_list(comparison.trace),
        tag("h3", "Replica"),
        _fact_list(comparison.replica),
    ]
    if comparison.fleet:
        pieces += [tag("h3", "Fleet"), tag("p", f"{describe_fleet(comparison)}.")]
    if comparison.repeats is not None:
        pieces += [tag("h3", "Error bars"), tag("p", f"{describe_repeats(comparison.repeats)}.")]
    if comparison.own_load is not None:
        said = describe_own_load(comparison.own_load, of_fleet=bool(comparison.fleet))
        pieces += [tag("h3", "The trace's own load"), tag("p", f"{said}.")]
    if comparison.saturation is not None:
        pieces += [tag("h3", "Load"), tag("p", f"A load of 1 is {describe_saturation(comparison)}.")]
    pieces += [tag("h3", "Policies"), _bundles(comparison)]
    predictions = [tag("li", sentence) for sentence in describe_predictions(comparison)]
    if predictions:
        pieces += [tag("h3", "Calibration of the predictions"), tag("ul", *predictions)]
    recorded = [tag("li", sentence) for sentence in describe_recorded(comparison)]
    if recorded:
        tables = [_recorded_figures(run.recorded) for run in comparison.runs if run.recorded is not None]
        pieces += [tag("h3", "Simulated against measured"), tag("ul", *recorded), *tables]
    for what, of_run in (("refused", _refused_reasons), ("failed", _failed_reasons)):
        told = [
            tag("li", f"{run_name(comparison, run)}{_at_load(run)}: {count:,} {what}, {reason}")
            for run in comparison.runs
            for reason, count in of_run(run).items()
        ]
        if told:
            pieces += [tag("h3", what.capitalize()), tag("ul", *told)]
    return join(*pieces)


def _refused_reasons(run: Run) -> Mapping[str, int]:
    return run.metrics.refused_reasons


def _failed_reasons(run: Run) -> Mapping[str, int]:
    return run.metrics.failed_reasons


def repeat(comparison: Comparison) -> Markup:
    """The command line."""
    return tag("pre", tag("code", comparison.command), tabindex=0, aria_label="Command that repeats this comparison")


def _table(comparison: Comparison, title: str, columns: Sequence[CellColumn]) -> Markup:
    with_load = any(run.load is not None for run in comparison.runs)
    corner = [tag("th", "policy", scope="col")] + (
        [tag("th", "load", scope="col", class_="number")] if with_load else []
    )
    head = tag("thead", tag("tr", *corner, *(_column_head(column) for column in columns)))
    bodies = []
    for load in comparison.loads():
        rows = [
            _row(comparison, run, index, columns, with_load)
            for index, run in enumerate(comparison.runs)
            if run.load == load
        ]
        bodies.append(tag("tbody", *rows))
    table = tag("table", tag("caption", title), head, *bodies)
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=title)


def _column_head(column: CellColumn) -> Markup:
    part = ", ".join(piece for piece in (column.column.part, column.unit) if piece)
    return tag(
        "th",
        column.column.title,
        tag("span", part, class_="part"),
        scope="col",
        class_="number",
        title=DEFINITIONS[column.column.key],
    )


def _row(comparison: Comparison, run: Run, index: int, columns: Sequence[CellColumn], with_load: bool) -> Markup:
    load = [tag("td", "own" if run.load is None else f"{run.load:g}", class_="number")] if with_load else []
    is_baseline = run.policy == comparison.baseline_label()
    name = tag("th", run_name(comparison, run), scope="row", class_="baseline" if is_baseline else "policy")
    values = (_value(column.cells[index], any(cell.ratio for cell in column.cells)) for column in columns)
    return tag("tr", name, *load, *values)


def _value(cell: Cell, with_ratio: bool) -> Markup:
    best = {"role": "img", "aria_label": "best"} if cell.is_best else {}
    alike = {"role": "img", "aria_label": "cannot be told apart from the best"} if cell.is_alike else {}
    mark = tag("span", "★" if cell.is_best else "≈" if cell.is_alike else "", class_="star", **best, **alike)
    bar = tag("span", f" {cell.bar}", class_="part") if cell.bar else Markup("")
    ratio = tag("span", cell.ratio, class_="ratio") if with_ratio else Markup("")
    return tag("td", cell.text, bar, mark, ratio, class_="number best" if cell.is_best else "number")


def _bundles(comparison: Comparison) -> Markup:
    parts = dict.fromkeys(part for run in comparison.runs for part in run.bundle)
    bundles = {run.policy: run.bundle for run in reversed(comparison.runs)}
    head = tag("tr", tag("th", "policy", scope="col"), *(tag("th", part, scope="col") for part in parts))
    rows = [
        tag("tr", tag("th", label, scope="row"), *(tag("td", _chosen(bundles[label].get(part))) for part in parts))
        for label in dict.fromkeys(run.policy for run in comparison.runs)
    ]
    table = tag("table", tag("caption", "What each label stands for"), tag("thead", head), tag("tbody", *rows))
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label="What each label stands for")


def _chosen(value: Json) -> str:
    if not isinstance(value, Mapping):
        return NOTHING if value is None else str(value)
    options = value.get("options", {}) if "name" in value else value
    pairs = options.items() if isinstance(options, Mapping) else ()
    listed = ", ".join(f"{key} = {_plain(option)}" for key, option in pairs)
    if "name" not in value:
        return listed
    return f"{value['name']}{f' ({listed})' if listed else ''}"


def _recorded_figures(recorded: Agreement) -> Markup:
    """Each figure as measured, as simulated, and the error."""
    head = tag("tr", *(tag("th", title, scope="col") for title in ("figure", "measured", "simulated", "error")))
    rows = [
        tag("tr", tag("th", title, scope="row"), *(tag("td", value) for value in values))
        for title, *values in recorded.rows()
    ]
    caption = "The recorded day"
    table = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *rows))
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _fact_list(values: Mapping[str, Json]) -> Markup:
    items = [tag("div", tag("dt", name), tag("dd", text)) for name, text in _flat(values)]
    return tag("dl", *items, class_="facts")


def _flat(values: Mapping[str, Json], inside: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{inside}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield name, "; ".join(f"{part} {text}" for part, text in _flat(value)) or NOTHING
        else:
            yield name, _plain(value)


def _plain(value: Json) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return significant(value, 4) if abs(value) >= 1e-3 or value == 0 else f"{value:.4g}"
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(_plain(item) for item in value)
    return "; ".join(f"{part} {text}" for part, text in _flat(value))


def _at_load(run: Run) -> str:
    return "" if run.load is None else f" at load {run.load:g}"
