"""The terminal table of a comparison: one row per policy, nothing cut at any width, definitions underneath.

The text depends on the comparison and the width alone: `wall_seconds` is not shown, so two runs print the same bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from headway.bench.experiment.comparison import Comparison, Json, Run
from headway.bench.metrics.agreement import Agreement
from headway.bench.metrics.prediction_quality import INTERVALS
from headway.bench.report.figures import policy_points
from headway.bench.report.frontier_picture import frontier
from headway.bench.report.headline import headline
from headway.bench.report.table_columns import (
    BRIEF,
    Cell,
    CellColumn,
    cell_columns,
    counted,
    definition,
    same_in_all,
    shown_columns,
    significant,
)
from headway.simulator.rules import EngineRules

BEST = "*"
BEST_STYLE = "bold green"

_SIZES = frozenset(
    {"kv_blocks", "max_model_tokens", "max_num_batched_tokens", "max_num_seqs"}
)  # differ from card to card
_LITTLE_LOAD = 0.5  # below it, orders differ little in docs/concepts.md's picture and in our tables
_REASONS = 5  # shown of why requests were refused
_GAP = 2  # blanks between two columns, one of them rich's own divider
_FEWEST_COLUMNS = 2  # a table of fewer values than this reads worse than blocks


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Facts, table, headline and definitions at the console's width; plain text where it is not a terminal."""
    console.print(facts(comparison), highlight=False)
    console.print()
    console.print(results(comparison, console.width), highlight=False)
    for sentence in (*headline(comparison), *on_frontier(comparison), *filter(None, [same_in_all(comparison)])):
        console.print(Text(sentence))
    for sentence in (*describe_losses(comparison), *describe_predictions(comparison), *describe_recorded(comparison)):
        console.print(Text(sentence))
    for run in comparison.runs:
        if run.recorded is not None:
            console.print(_recorded_figures(run.recorded), highlight=False)
    console.print()
    console.print(definitions(comparison), highlight=False)


def print_brief(comparison: Comparison, console: Console) -> None:
    """The headline, and the few columns that a decision takes."""
    for sentence in headline(comparison)[:2]:
        console.print(Text(sentence))
    console.print()
    columns = [column for column in cell_columns(comparison) if column.column in BRIEF]
    console.print(_laid_out(comparison, columns, console.width), highlight=False)


def on_frontier(comparison: Comparison) -> list[str]:
    """Which policies no other one dominates in mean and p99 TTFT, a sentence for each load; for three or more."""
    said = []
    for load in comparison.loads():
        points = policy_points(comparison, comparison.at_load(load))
        kept = frontier(points)
        if len(points) > 2:
            at = "" if load is None else f" at load {load:g}"
            rest = counted(len(points) - len(kept), "other")
            names = ", ".join(point.name for point in kept)
            said.append(f"On the frontier of mean and p99 TTFT{at}: {names}. They dominate {rest}.")
    return said


def results(comparison: Comparison, width: int) -> RenderableType:
    """The numbers within `width` characters: one table, several if it is too narrow, else one block per run."""
    return _laid_out(comparison, shown_columns(comparison), width)


def _laid_out(comparison: Comparison, columns: Sequence[CellColumn], width: int) -> RenderableType:
    heads = _row_heads(comparison)
    head_width = sum(max(map(len, head)) + _GAP for head in heads)
    parts = _pack(columns, width - head_width)
    if not all(len(part) >= _FEWEST_COLUMNS for part in parts[:-1]) or not _fits(columns, width - head_width):
        return Group(*_blocks(comparison, columns))
    return Group(*(piece for part in parts for piece in (_table(comparison, heads, part), Text())))


def facts(comparison: Comparison) -> RenderableType:
    """The trace, the replica, the error of its step times, and what load 1 means."""
    trace, replica = comparison.trace, comparison.replica
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("trace", Text(f"{trace.get('name')}: {counted(trace.get('requests'), 'request')}"))
    grid.add_row("endpoint" if comparison.is_live else "replica", Text(_described(replica)))
    if comparison.fleet:
        grid.add_row("fleet", Text(describe_fleet(comparison)))
    profile = replica.get("profile")
    if isinstance(profile, Mapping):
        grid.add_row("step times", Text(f"{profile.get('source')}; error: {profile.get('error')}"))
    for title, text in (("engine", describe_rules(comparison)), ("plug-in", describe_plugin(comparison))):
        if text:
            grid.add_row(title, Text(text))
    if comparison.saturation is not None:
        grid.add_row("load 1", Text(describe_saturation(comparison)))
    if comparison.own_load is not None:
        grid.add_row("own load", Text(describe_own_load(comparison.own_load, of_fleet=bool(comparison.fleet))))
    return grid


def describe_fleet(comparison: Comparison) -> str:
    """How many replicas of which kind there are, where requests wait, and how old the figures are."""
    kinds = Counter([_described(replica) for replica in comparison.fleet])
    several = "; ".join(f"{count} × {kind}" for kind, count in kinds.items())
    replicas = f"{len(comparison.fleet)} equal replicas" if len(kinds) == 1 else several
    queues = {run.queue for run in comparison.runs}
    waits = "in one queue in front of the replicas" if queues == {"gateway"} else "at the replica each is sent to"
    moves = [name for name in dict.fromkeys([run.rescheduling for run in comparison.runs]) if name is not None]
    moving = f"; rescheduling {', '.join(moves)}" if moves else ""
    return f"{replicas}; requests wait {waits}; routing reads {_signals(comparison.signal_seconds)}{moving}"


def describe_own_load(load: float, *, of_fleet: bool) -> str:
    """What the trace's own rate means for what serves it."""
    what = "fleet" if of_fleet else "replica"
    said = f"{significant(load, 2)} of what the {what} can serve"
    if load < _LITTLE_LOAD:
        return f"{said}: little waits, and the order hardly matters but in bursts"
    if load <= 1:
        return f"{said}: requests wait, and the order matters"
    return (
        f"{said}: the queue grows as long as the traffic lasts, and no order helps all requests; it takes "
        f"{math.ceil(load)} such {what}s"
    )


def describe_saturation(comparison: Comparison) -> str:
    """What a load of 1 is, in words."""
    saturation = comparison.saturation or {}
    rate, definition = saturation.get("requests_per_second"), saturation.get("definition")
    text = f"{significant(rate)} requests/s" if isinstance(rate, int | float) else "a measured rate"
    quarters, copies, busy = saturation.get("quarters"), saturation.get("copies"), saturation.get("busy_share")
    if isinstance(quarters, Sequence):
        rates = [rate for rate in quarters if isinstance(rate, int | float)]
        text += f" ({significant(min(rates))} to {significant(max(rates))} over the quarters of these requests)"
    if saturation.get("closed_loop") and isinstance(busy, int | float):
        text += f" (sessions in {copies} copies, replica busy {100 * busy:.0f} % of the time)"
    where = "the fleet" if comparison.fleet else "this replica"
    return f"{text}, measured on {where}{f': {definition}' if definition else ''}"


def describe_rules(comparison: Comparison) -> str:
    """What of the engine's rules is not vLLM's default, and a KV cache that is not BF16; "" if nothing is."""
    rules, profile = comparison.replica.get("rules"), comparison.replica.get("profile")
    defaults = {rule.name: rule.default for rule in fields(EngineRules) if rule.name not in _SIZES}
    shown = rules if isinstance(rules, Mapping) else {}
    parts = [f"{name} {_rule(shown[name])}" for name in defaults if shown.get(name, defaults[name]) != defaults[name]]
    kv_precision = profile.get("kv_precision", "bf16") if isinstance(profile, Mapping) else "bf16"
    return ", ".join([*parts, *([] if kv_precision == "bf16" else [f"KV cache {kv_precision}"])])


_TUNINGS = {"self-tuned": "self-tuned threshold", "prefill-budget": "prefill budget"}


def describe_plugin(comparison: Comparison) -> str:
    """In which rows the vLLM plug-in acts beside its policies; "" if in none."""
    rows: dict[str, list[str]] = {name: [] for name in (*_TUNINGS.values(), "do-no-harm guard", "displacement")}
    for run in {run.policy: run for run in comparison.runs}.values():
        if run.bundle.get("tuning", "off") != "off":
            rows[_TUNINGS[str(run.bundle["tuning"])]].append(run.policy)
        for key, name in (("guard", "do-no-harm guard"), ("displace", "displacement")):
            if run.bundle.get(key) is not None:
                rows[name].append(run.policy)
    return "; ".join(f"{what}: {', '.join(policies)}" for what, policies in rows.items() if policies)


def describe_losses(comparison: Comparison) -> Iterator[str]:
    """How many requests of a live run were refused and failed, for which reasons: a sentence for each kind."""
    for run in comparison.runs if comparison.is_live else ():
        lost = ("refused", run.metrics.refused_reasons), ("failed", run.metrics.failed_reasons)
        for verb, reasons in lost:
            often = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
            listed = "; ".join(f"{number:,} × {reason}" for reason, number in often[:_REASONS])
            rest = sum(number for _, number in often[_REASONS:])
            more = f"; {rest:,} for other reasons" if rest else ""
            if reasons:
                yield f"{counted(sum(reasons.values()), 'request')} {verb}: {listed}{more}."
        if run.metrics.unfinished:
            yield f"{counted(run.metrics.unfinished, 'request')} had not ended when the run was interrupted."


def describe_predictions(comparison: Comparison) -> Iterator[str]:
    """How well each predictor was calibrated: one sentence per load, from the first run that has it."""
    seen = set()
    for run in comparison.runs:
        quality = run.prediction_calibration
        predictor = (str(run.bundle.get("prediction")), run.load)
        if quality is None or predictor in seen:
            continue
        seen.add(predictor)
        held = ", ".join(f"{100 * quality.coverage[name]:.0f} % in its {name} % interval" for name in INTERVALS)
        at = "" if run.load is None else f" at load {run.load:g}"
        yield (
            f"Prediction {quality.made_by}{at}: of {counted(quality.completions, 'output length')} {held};"
            f" CRPS {quality.crps_tokens:.0f} tokens, mean output {quality.output_tokens:.0f}."
        )


def describe_recorded(comparison: Comparison) -> Iterator[str]:
    """How far the simulation is from the times measured when the trace was recorded; one sentence per run."""
    for run in comparison.runs:
        if run.recorded is not None:
            yield (
                f"Recorded day: the trace has measured times. Simulated {run.policy} against them: "
                f"{run.recorded.sentence()}. Every figure above has an error like this one."
            )


def _recorded_figures(recorded: Agreement) -> Table:
    """Each figure as it was measured, as simulated, and the error."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("recorded day", no_wrap=True)
    for title in ("measured", "simulated", "error"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in recorded.rows():
        table.add_row(*map(Text, row))
    return table


def definitions(comparison: Comparison) -> RenderableType:
    """How to read the marks and what each column means."""
    several = len(comparison.loads()) > 1
    baseline = comparison.baseline_label()
    slo = str(comparison.slo) or "none given, so goodput is the share completed"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    if len(comparison.runs) > 1:
        grid.add_row(BEST, f"best of its column{' at its load' if several else ''}; values equal as printed share it")
        grid.add_row("0.31×", Text(f"ratio to {baseline}{' at the same load' if several else ''}"))
    shown = dict.fromkeys((column.column.title, column.column.key) for column in shown_columns(comparison))
    for title, key in shown:
        grid.add_row(title, Text(definition(comparison, key) + (f". SLO: {slo}" if key == "goodput" else "")))
    return grid


def _row_heads(comparison: Comparison) -> list[list[str]]:
    """The leading columns, header first: policy; load and seed where they differ between runs; moves where asked."""
    heads = [["policy", *(run.policy for run in comparison.runs)]]
    if any(run.load is not None for run in comparison.runs):
        heads.append(["load", *("own" if run.load is None else f"{run.load:g}" for run in comparison.runs)])
    if any(run.rescheduling is not None for run in comparison.runs):
        heads.append(["moves", *(str(run.moves) for run in comparison.runs)])
    if len({run.seed for run in comparison.runs}) > 1:
        heads.append(["seed", *(str(run.seed) for run in comparison.runs)])
    return heads


def _pack(columns: Sequence[CellColumn], width: int) -> list[list[CellColumn]]:
    """Columns in order, as few parts as possible, of about equal width."""
    total = sum(_width(column) + _GAP for column in columns)
    parts_min = max(1, -(-total // max(width, 1)))
    for parts in range(parts_min, len(columns) + 1):
        packed = _greedy(columns, max(-(-total // parts) + max(map(_width, columns)) // 2, 1), width)
        if len(packed) <= parts:
            return packed
    return _greedy(columns, width, width)


def _greedy(columns: Sequence[CellColumn], wanted: int, width: int) -> list[list[CellColumn]]:
    parts: list[list[CellColumn]] = [[]]
    used = 0
    for column in columns:
        need = _width(column) + _GAP
        if parts[-1] and used + need > min(wanted, width):
            parts.append([])
            used = 0
        parts[-1].append(column)
        used += need
    return parts


def _fits(columns: Sequence[CellColumn], width: int) -> bool:
    return all(_width(column) + _GAP <= width for column in columns)


def _header(column: CellColumn) -> tuple[str, str]:
    return column.column.title, ", ".join(part for part in (column.column.part, column.unit) if part)


def _width(column: CellColumn) -> int:
    return max(*(len(line) for line in _header(column)), _value_width(column) + len(BEST) + _ratio_width(column))


def _value_width(column: CellColumn) -> int:
    return max((len(cell.text) for cell in column.cells), default=0)


def _ratio_width(column: CellColumn) -> int:
    """With the blank in front of it; 0 where no cell has a ratio."""
    widest = max((len(cell.ratio) for cell in column.cells), default=0)
    return widest + 1 if widest else 0


def _table(comparison: Comparison, heads: Sequence[Sequence[str]], columns: Sequence[CellColumn]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, _GAP - 1, 0, 0), show_edge=False, collapse_padding=True
    )
    for head in heads:
        table.add_column(f"\n{head[0]}", no_wrap=True, justify="left" if head[0] == "policy" else "right")
    for column in columns:
        table.add_column("\n".join(_header(column)), no_wrap=True, justify="right")
    for row, run in enumerate(comparison.runs):
        last_of_load = row + 1 < len(comparison.runs) and comparison.runs[row + 1].load != run.load
        values = (_padded(column, column.cells[row]) for column in columns)
        table.add_row(*(Text(head[row + 1]) for head in heads), *values, end_section=last_of_load)
    return table


def _padded(column: CellColumn, cell: Cell) -> Text:
    """Value, mark and ratio under those of the other rows."""
    value = cell.text.rjust(_value_width(column)) + (BEST if cell.is_best else " ")
    text = Text(value, style=BEST_STYLE if cell.is_best else "")
    return text.append(cell.ratio.rjust(_ratio_width(column)), style="not bold default")


def _blocks(comparison: Comparison, columns: Sequence[CellColumn]) -> Iterator[RenderableType]:
    """One block a run, a line a number: for terminals too narrow for any table."""
    for row, run in enumerate(comparison.runs):
        yield Text(f"\n{_run_name(run)}", style="bold")
        for column in columns:
            cell = column.cells[row]
            line = Text(f"  {', '.join(filter(None, (column.column.title, column.column.part)))}\n    ")
            shown = f"{cell.text} {column.unit}".rstrip() + (f" {BEST}" if cell.is_best else "")
            yield line.append(shown, style=BEST_STYLE if cell.is_best else "").append(f" {cell.ratio}".rstrip())


def _run_name(run: Run) -> str:
    return run.policy if run.load is None else f"{run.policy} at load {run.load:g}"


def _described(replica: Mapping[str, Json]) -> str:
    """A replica in a line."""
    accelerators = f"{_accelerators(replica.get('tensor_parallel'))}{replica.get('hardware')}"
    memory = f", {_number(replica.get('kv_tokens'))} KV tokens" if "kv_tokens" in replica else ""
    return f"{replica.get('model')} on {accelerators}{memory}"


def _signals(seconds: float) -> str:
    return "exact figures" if not seconds else f"what replicas report every {significant(seconds)} s"


def _accelerators(count: Json) -> str:
    return f"{count} × " if isinstance(count, int) and count > 1 else ""


def _rule(value: Json) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return _adapters(value) if isinstance(value, Mapping) else _number(value)


def _adapters(rules: Mapping[str, Json]) -> str:
    """As "8 in slots, each of 13 KV blocks and loaded in 1.6 ms"; of a rule that is a table, the only one."""
    load_ps = rules["load_ps"]
    milliseconds = load_ps / 1e9 if isinstance(load_ps, int) else 0.0
    where = "in slots" if rules["paging"] == "slots" else "in pages"
    blocks = _number(rules["blocks"])
    return f"{_number(rules['resident_max'])} {where}, each of {blocks} KV blocks and loaded in {milliseconds:,.1f} ms"


def _number(value: Json) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
