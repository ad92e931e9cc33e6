"""`headway tune`: searches a policy's options on a trace, in the simulator, and writes a bundle to compare."""

from __future__ import annotations

from typing import Annotated

import typer

from headway.cli import command_options as options
from headway.cli.grouped_options import grouped
from headway.cli.name_completion import complete_trace
from headway.cli.tune_options import SearchOptions


@grouped
def tune(
    trace: Annotated[
        str,
        typer.Argument(help="A trace file, or a built-in workload.", autocompletion=complete_trace),
    ],
    search: SearchOptions,
    others: options.OtherPolicies,
    reading: options.TraceOptions,
    replica: options.ReplicaOptions,
    load: options.Load = None,
    slo: options.SloOption = options.DEFAULT_SLO,
) -> None:
    """Search a policy's best options, in the simulator.

    The search replays the first 70 % of a trace; the best options are then checked on the rest. Stdout shows every
    trial. It ends with the reward of the best options on traffic outside the search, beside the defaults and FCFS. The
    same seed gives the same search.
    """
    from headway.cli.traffic import Traffic
    from headway.cli.tune_run import run_tuning

    traffic = Traffic([trace], reading, options.LoadOptions(load=load, open_loop=True))
    run_tuning(traffic, replica, search, others, slo=slo)
