"""The terminal table of a comparison: one row per policy, nothing cut at any width, definitions underneath.

The text depends on the comparison and the width alone: `wall_seconds` is not shown, so two runs print the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from headway.bench.experiment.comparison import Comparison, Run
from headway.bench.metrics.agreement import Agreement
from headway.bench.report.comparison_facts import (
    definition,
    describe_fleet,
    describe_losses,
    describe_own_load,
    describe_plugin,
    describe_predictions,
    describe_recorded,
    describe_repeats,
    describe_replica,
    describe_rules,
    describe_saturation,
)
from headway.bench.report.figures import policy_points
from headway.bench.report.frontier_picture import frontier
from headway.bench.report.headline import headline
from headway.bench.report.table_columns import (
    BRIEF,
    Cell,
    CellColumn,
    cell_columns,
    counted,
    same_in_all,
    shown_columns,
)

BEST, ALIKE = "*", "≈"
BEST_STYLE = "bold green"

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
    for sentence in headline(comparison)[: 2 if comparison.repeats is None else 3]:
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
    grid.add_row("endpoint" if comparison.is_live else "replica", Text(describe_replica(replica)))
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
    if comparison.repeats is not None:
        grid.add_row("repeats", Text(describe_repeats(comparison.repeats)))
    if comparison.own_load is not None:
        grid.add_row("own load", Text(describe_own_load(comparison.own_load, of_fleet=bool(comparison.fleet))))
    return grid


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
        if comparison.repeats is not None:
            grid.add_row("±", "the larger half of a 90 % interval")
            grid.add_row(ALIKE, "cannot be told apart from the best of its column on the same seeds or blocks")
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
    value = _value_width(column) + _bar_width(column)
    return max(*(len(line) for line in _header(column)), value + len(BEST) + _ratio_width(column))


def _value_width(column: CellColumn) -> int:
    return max((len(cell.text) for cell in column.cells), default=0)


def _bar_width(column: CellColumn) -> int:
    """With the blank in front of it; 0 where no cell has an interval."""
    widest = max((len(cell.bar) for cell in column.cells), default=0)
    return widest + 1 if widest else 0


def _mark(cell: Cell) -> str:
    return BEST if cell.is_best else ALIKE if cell.is_alike else " "


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
    value = cell.text.rjust(_value_width(column)) + cell.bar.rjust(_bar_width(column)) + _mark(cell)
    text = Text(value, style=BEST_STYLE if cell.is_best else "")
    return text.append(cell.ratio.rjust(_ratio_width(column)), style="not bold default")


def _blocks(comparison: Comparison, columns: Sequence[CellColumn]) -> Iterator[RenderableType]:
    """One block a run, a line a number: for terminals too narrow for any table."""
    for row, run in enumerate(comparison.runs):
        yield Text(f"\n{_run_name(run)}", style="bold")
        for column in columns:
            cell = column.cells[row]
            line = Text(f"  {', '.join(filter(None, (column.column.title, column.column.part)))}\n    ")
            value = " ".join(part for part in (cell.text, cell.bar, column.unit) if part)
            shown = f"{value} {_mark(cell)}".rstrip()
            yield line.append(shown, style=BEST_STYLE if cell.is_best else "").append(f" {cell.ratio}".rstrip())


def _run_name(run: Run) -> str:
    return run.policy if run.load is None else f"{run.policy} at load {run.load:g}"
