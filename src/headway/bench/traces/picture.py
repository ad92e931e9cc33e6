"""A trace's description for the terminal: a table of its statistics, histograms of its lengths and arrivals."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from rich.console import Group
from rich.table import Table
from rich.text import Text

from headway.bench.traces.describing import PrefillWork, TraceDescription, ValueRange
from headway.simulator.trace import Trace

WIDTH = 48
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = " ▁▂▃▄▅▆▇█"


def description_view(trace: Trace, description: TraceDescription) -> Group:
    """What `headway trace describe` prints, for a rich console."""
    return Group(
        numbers_table(description),
        Text(),
        Text("prompt tokens (requests per doubling of length)", style="bold"),
        Text(length_histogram(trace.prompt_tokens)),
        Text(),
        Text("output tokens", style="bold"),
        Text(length_histogram(trace.output_tokens)),
        Text(),
        Text("arrivals over time", style="bold"),
        Text(arrival_profile(trace.arrived_seconds)),
    )


def numbers_table(description: TraceDescription) -> Table:
    """The statistics, one per row, with their meaning."""
    table = Table(title=description.name, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for label, value, meaning in [*_arrival_rows(description), *_length_rows(description), *_client_rows(description)]:
        table.add_row(label, value, meaning)
    return table


def length_histogram(tokens: npt.NDArray[np.int64]) -> str:
    """One line per doubling of length: its range, a bar, the share of the requests and of the tokens."""
    exponents = np.floor(np.log2(tokens)).astype(np.int64)
    low, high = int(exponents.min()), int(exponents.max())
    requests = np.bincount(exponents - low, minlength=high - low + 1)
    sums = np.bincount(exponents - low, weights=tokens, minlength=high - low + 1)
    lines = [f"{'':>17}  {'':{WIDTH}} {'requests':>8} {'tokens':>7}"]
    for place, (count, total) in enumerate(zip(requests.tolist(), sums.tolist(), strict=True)):
        begin = 1 << (low + place)
        bounds = f"{begin:,}–{2 * begin - 1:,}" if begin > 1 else "1"
        bar = _bar(count / requests.max())
        lines.append(f"{bounds:>17}  {bar:{WIDTH}} {count / len(tokens):>8.1%} {total / tokens.sum():>7.1%}")
    return "\n".join(lines)


def arrival_profile(arrived: npt.NDArray[np.float64]) -> str:
    """Requests per second over the trace, one character per slice of time."""
    span = float(arrived[-1] - arrived[0])
    if not span:
        return f"all {len(arrived):,} at once"
    slices = WIDTH + 20
    counts, _ = np.histogram(arrived, bins=slices, range=(float(arrived[0]), float(arrived[-1])))
    peak = counts.max()
    levels = np.ceil(counts / peak * (len(_LEVELS) - 1)).astype(np.int64)
    line = "".join(_LEVELS[level] for level in levels.tolist())
    rate = slices / span
    return f"{line}\n0 … {_duration(span)}, peak {peak * rate:,.2f} and mean {len(arrived) / span:,.2f} requests/s"


def _bar(share: float) -> str:
    eighths = round(share * WIDTH * 8)
    if not eighths and share:
        eighths = 1  # a small share stays visible
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _arrival_rows(described: TraceDescription) -> list[tuple[str, str, str]]:
    def known(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    return [
        ("requests", f"{described.requests:,}", ""),
        ("span", _duration(described.span_seconds), "first arrival to last"),
        ("requests/s", f"{described.requests_per_second:.2f}", ""),
        ("CV", known(described.arrival_cv), "of the gaps between arrivals; 1 is Poisson"),
        ("IDC", known(described.arrival_idc), "variance ÷ mean of arrivals in 10 s; 1 is Poisson"),
    ]


def _length_rows(described: TraceDescription) -> list[tuple[str, str, str]]:
    rows = [
        ("prompt tokens", _quantiles(described.prompt_tokens), "mean · p50 · p90 · p99 · max"),
        ("output tokens", _quantiles(described.output_tokens), "mean · p50 · p90 · p99 · max"),
        *_work_rows("prefill", described.prefill),
    ]
    if described.prefix_hit is not None and described.uncached_prefill is not None:
        rows.append(("prefix hit", f"{described.prefix_hit:.0%}", "of the prompt tokens, with an unbounded cache"))
        rows += _work_rows("uncached prefill", described.uncached_prefill)
    return rows


def _work_rows(what: str, work: PrefillWork) -> list[tuple[str, str, str]]:
    top = f"{work.top_1_percent:.0%} · {work.top_5_percent:.0%} · {work.top_10_percent:.0%}"
    return [
        (f"{what}, top", top, "share of the 1 · 5 · 10 % of requests with the most"),
        (f"{what}, SCV", f"{work.scv:.1f}", "squared coefficient of variation"),
        (
            f"{what}, FCFS ÷ SJF",
            f"{work.fcfs_over_sjf:.1f}",
            "mean wait in one server at 80 % load",
        ),
    ]


def _client_rows(described: TraceDescription) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    if described.tenants is not None:
        shares = f"{described.tenants.largest_of_requests:.0%} · {described.tenants.largest_of_prompt_tokens:.0%}"
        rows += [
            ("tenants", f"{described.tenants.tenants:,}", ""),
            ("largest tenant", shares, "of the requests · of the prompt tokens"),
        ]
    if described.sessions is not None:
        rows += [
            ("sessions", f"{described.sessions.sessions:,}", ""),
            ("turns", _quantiles(described.sessions.turns), "mean · p50 · p90 · p99 · max"),
        ]
        if described.sessions.pause_seconds is not None:
            pauses = _quantiles(described.sessions.pause_seconds, 1)
            rows.append(("pause, s", pauses, "before a follow-up: mean · p50 · p90 · p99 · max"))
    if described.deadlines:
        rows.append(("with a deadline", f"{described.deadlines:.0%}", "of the requests"))
    if described.later_deadlines:
        rows.append(("with a TPOT or end-to-end deadline", f"{described.later_deadlines:.0%}", "of the requests"))
    if described.programs:
        rows.append(("programs", f"{described.programs:,}", ""))
    return rows


def _quantiles(spread: ValueRange, digits: int = 0) -> str:
    values = (spread.mean, spread.p50, spread.p90, spread.p99, spread.max)
    return " · ".join(f"{value:,.{digits}f}" for value in values)
