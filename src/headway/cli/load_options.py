"""The options of `headway load` alone: what is sent, and what is asked of the endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from headway.cli import command_options as options
from headway.cli.name_completion import complete_trace, complete_workload


@dataclass(frozen=True, slots=True)
class SentTraffic:
    """What is sent, and how fast."""

    workload: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A built-in workload (`headway workloads`).", autocompletion=complete_workload
        ),
    ] = None
    trace: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A trace, as for `headway compare`.", autocompletion=complete_trace),
    ] = None
    requests: Annotated[int, typer.Option(min=1, metavar="N", help="Only the first N requests.")] = 500
    rate: Annotated[
        float | None,
        typer.Option(metavar="R", help="Scale arrivals to R requests/s. By default a trace keeps its own times."),
    ] = None
    seed: options.Seed = 0
    skip_bad_lines: options.SkipBadLines = False
    columns: options.Columns = None


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """What is asked of the endpoint."""

    model: Annotated[
        str, typer.Option(metavar="NAME", help="Model to request. Default: the first one that the endpoint lists.")
    ] = ""
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable that holds the API key.")
    ] = None
    silence_seconds: Annotated[
        float,
        typer.Option("--silence-seconds", metavar="S", help="A request to which nothing comes for so long has failed."),
    ] = 600.0
