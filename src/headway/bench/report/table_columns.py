"""The columns of the results: which number, in which unit, which end is better, and how it is written.

The terminal table and the HTML report take their cells from here, so that both show the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from headway.bench.experiment.comparison import Comparison, Run
from headway.bench.metrics.run_metrics import RunMetrics
from headway.bench.metrics.samples import Interval, not_worse

Kind: TypeAlias = Literal[
    "seconds", "seconds per token", "per second", "requests per second", "share", "count", "index", "factor"
]

COMPARABLE_SHARE = 0.99
"""A run with fewer completed requests than this share of the most at its load cannot be best:
percentiles over the completed ones flatter a policy that drops the hard ones."""

NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        key: of the metric in `metrics.DEFINITIONS`.
        title: what is measured, for the first line of the header.
        part: which part of its distribution, for the second line; may be empty.
        kind: how it is written.
        better: which end is better; None where neither is, and no best is marked.
        ratio: whether the ratio to the baseline means anything.
        value: reads it.
    """

    key: str
    title: str
    part: str
    kind: Kind
    better: Literal["low", "high"] | None
    ratio: bool
    value: Callable[[RunMetrics], float | None]

    @property
    def name(self) -> str:
        """Of the number in samples, in CSV and in the data frame."""
        return f"{self.key}.{self.part}" if self.part in _PARTS else self.key


_PARTS = ("mean", "p50", "p90", "p99")


def _float(count: int | None) -> float | None:
    return None if count is None else float(count)


COLUMNS: tuple[Column, ...] = (
    Column("ttft_seconds", "TTFT", "mean", "seconds", "low", True, lambda m: m.ttft_seconds.mean),
    Column("ttft_seconds", "TTFT", "p50", "seconds", "low", True, lambda m: m.ttft_seconds.p50),
    Column("ttft_seconds", "TTFT", "p99", "seconds", "low", True, lambda m: m.ttft_seconds.p99),
    Column(
        "ttft_short_half_seconds",
        "TTFT short half",
        "mean",
        "seconds",
        "low",
        True,
        lambda m: m.ttft_short_half_seconds.mean,
    ),
    Column(
        "ttft_longest_5pct_seconds",
        "TTFT longest 5%",
        "mean",
        "seconds",
        "low",
        True,
        lambda m: m.ttft_longest_5pct_seconds.mean,
    ),
    Column("tpot_seconds", "TPOT", "mean", "seconds", "low", True, lambda m: m.tpot_seconds.mean),
    Column("e2e_seconds", "end to end", "mean", "seconds", "low", True, lambda m: m.e2e_seconds.mean),
    Column("e2e_seconds", "end to end", "p99", "seconds", "low", True, lambda m: m.e2e_seconds.p99),
    Column("times_lower_bound", "× lower bound", "", "factor", "low", False, lambda m: m.times_lower_bound),
    Column(
        "normalised_latency_seconds_per_token",
        "norm. latency",
        "mean",
        "seconds per token",
        "low",
        True,
        lambda m: m.normalised_latency_seconds_per_token.mean,
    ),
    Column("slowdown", "slowdown", "p99", "factor", "low", True, lambda m: m.slowdown.p99),
    Column("goodput", "goodput", "", "share", "high", True, lambda m: m.goodput),
    Column(
        "throughput_tokens_per_second",
        "throughput",
        "",
        "per second",
        "high",
        True,
        lambda m: m.throughput_tokens_per_second,
    ),
    Column("preemptions", "preemptions", "", "count", "low", True, lambda m: _float(m.preemptions)),
    Column("recomputed_tokens", "recomputed", "", "count", "low", True, lambda m: _float(m.recomputed_tokens)),
    Column("kv_peak_share", "peak KV", "", "share", None, False, lambda m: m.kv_peak_share),
    Column("jain_index", "Jain index", "", "index", "high", False, lambda m: m.jain_index),
)

OF_FLEETS: tuple[Column, ...] = (
    Column("prefix_hit_share", "prefix hits", "", "share", "high", False, lambda m: m.prefix_hit_share),
    Column("load_imbalance", "imbalance", "", "index", "low", False, lambda m: m.load_imbalance),
)
"""Shown behind the others where several replicas share the load."""

OF_DEADLINES: tuple[Column, ...] = (
    Column("total_tardiness_seconds", "tardiness", "sum", "seconds", "low", True, lambda m: m.total_tardiness_seconds),
)
"""Shown behind the others where requests have deadlines."""

OF_GIVEN_DEADLINES: tuple[Column, ...] = (
    Column(
        "token_goodput_tokens_per_second",
        "token goodput",
        "",
        "per second",
        "high",
        True,
        lambda m: m.token_goodput_tokens_per_second,
    ),
    Column("token_goodput_share", "token goodput", "share", "share", "high", True, lambda m: m.token_goodput_share),
)
"""Shown behind these where clients gave deadlines."""

_RATE: Kind = "requests per second"
OF_LIVE: tuple[Column, ...] = (
    Column("offered_requests_per_second", "offered", "", _RATE, None, False, lambda m: m.offered_requests_per_second),
    Column(
        "completed_requests_per_second", "achieved", "", _RATE, None, False, lambda m: m.completed_requests_per_second
    ),
    Column("makespan_seconds", "duration", "", "seconds", None, False, lambda m: m.makespan_seconds),
    Column("completed", "completed", "", "count", None, False, lambda m: float(m.completed)),
    Column("refused", "refused", "", "count", None, False, lambda m: float(m.refused)),
    Column("failed", "failed", "", "count", None, False, lambda m: float(m.failed)),
)
"""Shown in front of the others where a live endpoint was measured."""

COMPLETED = Column("completed", "completed", "", "count", None, False, lambda m: float(m.completed))
"""Shown in front of the others if one run did not complete everything."""


_BRIEF_KEYS = (
    ("ttft_seconds", "mean"),
    ("ttft_seconds", "p99"),
    ("ttft_longest_5pct_seconds", "mean"),
    ("e2e_seconds", "mean"),
    ("goodput", ""),
)
BRIEF = tuple(column for column in COLUMNS if (column.key, column.part) in _BRIEF_KEYS)
"""What a decision takes: mean and tail, what long requests pay, the whole answer, and the bounds kept."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One value as it is written.

    Attributes:
        text: the value.
        ratio: to the baseline; empty for the baseline itself and where it would mean nothing.
        is_best: whether it is the best of its column.
        bar: `±` and the larger half of its interval; empty without one.
        is_alike: whether it cannot be told apart from the best, which stands in another row.
    """

    text: str
    ratio: str
    is_best: bool
    bar: str = ""
    is_alike: bool = False


@dataclass(frozen=True, slots=True)
class CellColumn:
    """One column written out: `cells[i]` belongs to `comparison.runs[i]`."""

    column: Column
    unit: str
    cells: tuple[Cell, ...]


def cell_columns(comparison: Comparison) -> tuple[CellColumn, ...]:
    """Every column of the comparison; `completed` leads when not all runs completed everything."""
    everything = all(run.metrics.completed == run.metrics.requests for run in comparison.runs)
    shown = COLUMNS if everything else (COMPLETED, *COLUMNS)
    if comparison.is_live:
        shown = (*OF_LIVE, *COLUMNS)
    if comparison.fleet:
        shown = (*shown, *OF_FLEETS)
    if any(run.metrics.total_tardiness_seconds is not None for run in comparison.runs):
        shown = (*shown, *OF_DEADLINES)
    if any(run.metrics.token_goodput_share is not None for run in comparison.runs):
        shown = (*shown, *OF_GIVEN_DEADLINES)
    return tuple(_write(comparison, column) for column in shown)


def shown_columns(comparison: Comparison) -> tuple[CellColumn, ...]:
    """The columns that tell something: not those without a value, nor those in which several runs are alike.

    Of one tenant there is no fairness.
    """
    several = len(comparison.runs) > 1
    of_one = {"jain_index"} if comparison.trace.get("tenants") == 1 else set()
    return tuple(
        column
        for column in cell_columns(comparison)
        if (texts := {cell.text for cell in column.cells}) != {NOTHING}
        and not (several and len(texts) == 1)
        and column.column.key not in of_one
    )


def same_in_all(comparison: Comparison) -> str:
    """The values that `shown_columns` leaves out as they are the same in all runs, in a sentence; "" for none."""
    if len(comparison.runs) == 1:
        return ""
    shown = {id(column.column) for column in shown_columns(comparison)}
    alike = [
        " ".join(part for part in (column.column.title, column.column.part, column.cells[0].text, column.unit) if part)
        for column in cell_columns(comparison)
        if id(column.column) not in shown and column.cells and column.cells[0].text != NOTHING
    ]
    return f"The same in all runs: {', '.join(alike)}." if alike else ""


def counted(number: object, thing: str) -> str:
    """`1 request`, `1,200 requests`: a number and its noun, whose plural ends in s."""
    said = f"{number:,}" if isinstance(number, int) else str(number)
    return f"{said} {thing if number == 1 else thing + 's'}"


def significant(value: float, digits: int = 3) -> str:
    """Rounded to `digits` significant digits, integer digits all shown, no exponent, thousands parted by commas."""
    if value == 0:
        return "0"
    exponent = int(f"{abs(value):.{digits - 1}e}".partition("e")[2])
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}"


def ratio_text(value: float | None, baseline: float | None) -> str:
    """`0.31×`; empty where there is nothing to divide."""
    if value is None or not baseline:
        return ""
    ratio = value / baseline
    if 0 < ratio < 0.01:
        return "<0.01×"
    return f"{ratio:.2f}×" if ratio < 10 else f"{significant(ratio)}×"


def seconds_text(seconds: float | None) -> str:
    """One duration for a sentence, with its unit."""
    if seconds is None:
        return NOTHING
    return f"{significant(seconds * 1000)} ms" if seconds < 1 else f"{significant(seconds)} s"


def incomparable(comparison: Comparison, run: Run) -> bool:
    """Whether the run completed too few requests to be called best at its load; see `COMPARABLE_SHARE`."""
    most = max(other.metrics.completed for other in comparison.at_load(run.load))
    return run.metrics.completed < COMPARABLE_SHARE * most


def _write(comparison: Comparison, column: Column) -> CellColumn:
    values = [column.value(run.metrics) for run in comparison.runs]
    unit, scale = _unit(column, _largest(comparison, column))
    texts = [_text(column.kind, value, scale) for value in values]
    best = [text in best for text, best in zip(texts, _best_texts(comparison, column, values, texts), strict=True)]
    alike = _alike(comparison, column, best)
    return CellColumn(
        column,
        unit,
        tuple(
            Cell(
                texts[row],
                _ratio(comparison, run, column),
                best[row],
                _bar(comparison.interval(run, column.name), values[row], texts[row], scale),
                alike[row],
            )
            for row, run in enumerate(comparison.runs)
        ),
    )


def _bar(interval: Interval | None, value: float | None, text: str, scale: float) -> str:
    """The larger half of an interval, with as many decimals as the value has, but never as nothing."""
    if interval is None or value is None:
        return ""
    half = max(interval.high - value, value - interval.low) * scale
    shown = f"{half:,.{len(text.partition('.')[2])}f}"
    return f"±{significant(half, 1) if half and not shown.strip('0.,') else shown}"


def _alike(comparison: Comparison, column: Column, best: Sequence[bool]) -> list[bool]:
    """Per run, whether its value cannot be told apart from that of the best at its load, and it is not the best."""
    alike = [False] * len(best)
    for load in comparison.loads() if column.better else ():
        racing = {
            row: told
            for row, run in enumerate(comparison.runs)
            if run.load == load
            and not incomparable(comparison, run)
            and run.samples is not None
            and (told := run.samples.told.get(column.name)) is not None
        }
        first = next((place for place, row in enumerate(racing) if best[row]), None)
        if first is not None:
            kept = not_worse([*racing.values()], first, is_high_better=column.better == "high")
            for row, is_kept in zip(racing, kept, strict=True):
                alike[row] = bool(is_kept) and not best[row]
    return alike


def _largest(comparison: Comparison, column: Column) -> float:
    """Largest value of the column and of those that measure the same thing, which share its unit."""
    family = column.key.partition("_")[0]
    same = [column]
    same += [other for other in COLUMNS if other.key.partition("_")[0] == family and other.kind == column.kind]
    values = (other.value(run.metrics) for other in same for run in comparison.runs)
    return max((value for value in values if value is not None), default=0.0)


def _unit(column: Column, largest: float) -> tuple[str, float]:
    """(unit, factor) of a whole column: one unit, so that the eye can compare."""
    match column.kind:
        case "seconds":
            return ("ms", 1000.0) if largest < 1 else ("s", 1.0)
        case "seconds per token":
            return ("ms/token", 1000.0) if largest < 1 else ("s/token", 1.0)
        case "share":
            return "%", 100.0
        case "per second":
            return "tokens/s", 1.0
        case "requests per second":
            return "requests/s", 1.0
        case "factor":
            return "×", 1.0
        case "count":
            return ("tokens" if column.key.endswith("tokens") else "", 1.0)
        case "index":
            return "", 1.0


def _text(kind: Kind, value: float | None, scale: float) -> str:
    if value is None:
        return NOTHING
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "share":
        return f"{value * scale:.1f}"
    if kind == "index":
        return f"{value:.3f}"
    return significant(value * scale)


def _best_texts(
    comparison: Comparison, column: Column, values: Sequence[float | None], texts: Sequence[str]
) -> list[frozenset[str]]:
    """Per run the texts that count as best at its load: equal as written is equal, and no best where all are equal."""
    best: dict[float | None, frozenset[str]] = {}
    for load in comparison.loads():
        race = [
            (value, text)
            for run, value, text in zip(comparison.runs, values, texts, strict=True)
            if run.load == load and value is not None and not incomparable(comparison, run)
        ]
        pick = max if column.better == "high" else min
        winner = {pick(race)[1]} if column.better and len({text for _, text in race}) > 1 else set()
        best[load] = frozenset(winner)
    return [frozenset() if incomparable(comparison, run) else best[run.load] for run in comparison.runs]


def _ratio(comparison: Comparison, run: Run, column: Column) -> str:
    baseline = comparison.baseline_of(run)
    if not column.ratio or baseline is None or baseline is run:
        return ""
    return ratio_text(column.value(run.metrics), column.value(baseline.metrics))
