"""`headway trace …`: what a trace holds, and where traces are to be had."""

from __future__ import annotations

from typing import Annotated

import typer

from headway.cli import compare_options as options

app = typer.Typer(help="Look into request traces.", no_args_is_help=False, rich_markup_mode=None)


@app.command("describe")
def describe(
    file: Annotated[str, typer.Argument(help="A trace file, a name in HEADWAY_TRACES, or a built-in workload.")],
    requests: options.Requests = None,
    seed: options.Seed = 0,
    skip_bad_lines: options.SkipBadLines = False,
    columns: options.Columns = None,
) -> None:
    """Print a trace's statistics and a picture of its lengths and arrivals."""
    from headway.bench.traces.describing import describe as description_of
    from headway.bench.traces.loading import load_trace
    from headway.bench.traces.picture import description_view
    from headway.bench.traces.reshaping import head
    from headway.cli.printing import print_rich
    from headway.cli.progress import say

    wanted = {} if requests is None else {"requests": requests}
    loaded = load_trace(file, skip_bad_lines=skip_bad_lines, columns=columns, seed=seed, **wanted)
    for note in loaded.notes:
        say(note)
    trace = loaded.trace if requests is None else head(loaded.trace, requests)
    print_rich(lambda console: console.print(description_view(trace, description_of(trace)), highlight=False))


@app.command("sources")
def sources() -> None:
    """List public traces, their licences and how to get each."""
    from headway.bench.traces.sources import sources_text

    print(sources_text())
    print("\nThe environment variable HEADWAY_TRACES names a folder of traces; a name is then enough.")
