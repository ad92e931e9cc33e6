"""The table of `headway bound`: each lower bound on the mean end-to-end latency, the best one last."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headway.bench.experiment.bounding import BoundResult
from headway.bench.report.table_columns import counted, significant
from headway.bounds.lower_bounds import LowerBounds

_BEST = "best"


def print_bounded(bounded: BoundResult, console: Console) -> None:
    """One table per load, the best bound last."""
    replica = bounded.replica
    console.print(f"trace    {bounded.trace['name']}: {counted(bounded.trace['requests'], 'request')}", highlight=False)
    console.print(
        f"replica  {replica['model']} on {replica['hardware']}, {replica['kv_tokens']:,} KV tokens", highlight=False
    )
    for load, bounds in bounded.at_loads.items():
        console.print()
        if load is not None and bounded.saturation is not None:
            rate = significant(load * bounded.saturation.requests_per_second)
            console.print(f"at load {load:g}, {rate} requests/s", highlight=False)
        console.print(_table(bounds), highlight=False)
        if bounds.mean_ttft_seconds is not None:
            console.print(f"no policy's mean TTFT is below {significant(bounds.mean_ttft_seconds)} s", highlight=False)
    if bounded.optimum is not None:
        console.print()
        console.print(Text(bounded.optimum.sentence()))


def _table(bounds: LowerBounds) -> Table | Text:
    if bounds.mean_e2e_seconds is None:
        return Text("This replica can serve no request of the trace, so there is nothing to bound.")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("no policy's mean end to end is below", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("which is", overflow="fold")
    for name, seconds, words in _rows(bounds):
        style = "bold" if name == _BEST else ""
        table.add_row(Text(name, style=style), Text(significant(seconds), style=style), Text(words))
    return table


def _rows(bounds: LowerBounds) -> Iterator[tuple[str, float, str]]:
    yield from bounds.parts
    assert bounds.mean_e2e_seconds is not None, "called only where a request is served"
    yield _BEST, bounds.mean_e2e_seconds, "the largest of these"
