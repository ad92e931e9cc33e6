"""`headway bound`: computes what no policy can beat on this traffic."""

from __future__ import annotations

from typing import Annotated

import typer

from headway.cli import command_options as options
from headway.cli.grouped_options import grouped


@grouped
def bound(
    loads: options.LoadOptions,
    reading: options.TraceOptions,
    replica: options.ReplicaOptions,
    traces: options.Traces = None,
    optimum: Annotated[
        bool,
        typer.Option("--optimum", help="Also solve a small trace exactly, in the papers' model: one token per step."),
    ] = False,
    time_limit: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="For --optimum. If it stops early, the gap is shown."),
    ] = 60.0,
    json: options.JsonFile = None,
    jobs: options.Jobs = None,
) -> None:
    """Compute what no policy can beat on this traffic.

    These are lower bounds on the mean end-to-end latency of any policy on this traffic and replica. `headway compare`
    divides the mean of every policy by the best of these bounds.
    """
    from headway.cli.bound_run import run_bounds
    from headway.cli.traffic import Traffic

    run_bounds(
        Traffic(traces, reading, loads), replica, optimum_seconds=time_limit if optimum else None, json=json, jobs=jobs
    )
