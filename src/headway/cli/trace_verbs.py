"""`headway trace …`: describes a trace, converts a log to one, and lists where public traces are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headway.cli import command_options as options
from headway.cli.grouped_options import grouped
from headway.cli.name_completion import complete_trace

app = typer.Typer(help="Look into request traces.", no_args_is_help=False, rich_markup_mode=None)


@app.command("describe")
@grouped
def describe(
    file: Annotated[
        str,
        typer.Argument(
            help="A trace file, a name in HEADWAY_TRACES, or a built-in workload.", autocompletion=complete_trace
        ),
    ],
    reading: options.TraceOptions,
) -> None:
    """Print statistics and histograms of a trace."""
    from headway.bench.traces.describing import describe as description_of
    from headway.bench.traces.picture import description_view
    from headway.cli.printing import print_rich
    from headway.cli.traffic import read_trace

    trace = read_trace(file, reading).trace
    print_rich(lambda console: console.print(description_view(trace, description_of(trace)), highlight=False))


@app.command("convert")
@grouped
def convert(
    file: Annotated[
        str, typer.Argument(metavar="IN", help="A log, a trace or a workload.", autocompletion=complete_trace)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A JSON Lines file, packed with .gz or .zst at its end.")],
    reading: options.TraceOptions,
) -> None:
    """Write a log as a trace in Headway's own fields."""
    from headway.bench.output_files import check_files, replacing
    from headway.bench.progress import say
    from headway.bench.traces.finding import find_file
    from headway.bench.traces.writing import write_jsonl
    from headway.bench.user_mistake import UserMistake
    from headway.bench.workloads import WORKLOADS
    from headway.cli.traffic import read_trace

    if out.suffix in (".csv", ".parquet", ".log"):
        raise UserMistake(f"OUT {out}: JSON Lines are written; name it {out.stem}.jsonl")
    check_files({"OUT": out}, [] if file in WORKLOADS else [str(find_file(file, tuple(WORKLOADS)))])
    trace = read_trace(file, reading).trace
    with replacing(out, "OUT") as temporary:
        write_jsonl(trace, temporary, packing=out.suffix)
    say(f"trace: {out}, {len(trace):,} requests; describe it with headway trace describe {out}")


@app.command("sources")
def sources() -> None:
    """List public traces, their licences and how to get each."""
    from headway.bench.traces.sources import sources_text

    print(sources_text())
    print("\nThe environment variable HEADWAY_TRACES names a folder of traces; a name is then enough.")
