"""`headway trace …`: describes a trace, and lists where public traces are."""

from __future__ import annotations

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


@app.command("sources")
def sources() -> None:
    """List public traces, their licences and how to get each."""
    from headway.bench.traces.sources import sources_text

    print(sources_text())
    print("\nThe environment variable HEADWAY_TRACES names a folder of traces; a name is then enough.")
