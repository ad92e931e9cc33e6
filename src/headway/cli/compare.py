"""`headway compare`: replays the same traffic under several policies, side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from headway.cli import command_options as options
from headway.cli import comparison_options as comparison
from headway.cli.grouped_options import grouped


@grouped
def compare(
    orderings: comparison.ComparedOrderings,
    others: options.OtherPolicies,
    plugin: comparison.PluginOptions,
    loads: options.LoadOptions,
    reading: options.TraceOptions,
    replica: options.ReplicaOptions,
    fleet: options.FleetOptions,
    outputs: comparison.ComparisonOutputs,
    traces: options.Traces = None,
    slo: options.SloOption = options.DEFAULT_SLO,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="What the twin of --ordering auto wants, as in headway recommend; balanced unless told otherwise.",
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Error bars: run a workload with N seeds, or draw N blocks of a recorded trace again and again.",
            show_default=False,
        ),
    ] = None,
    jobs: options.Jobs = None,
) -> None:
    """Compare policies on the same traffic, in the simulator.

    Without a trace, a built-in workload is replayed. For every policy the table shows TTFT and end-to-end latency,
    which requests pay for the gain, and which share of them meets the SLOs. --ordering auto is a twin that chooses the
    order as the day goes on. With --replicas or --fleet the rows are
    routing policies × orderings.
    """
    from headway.cli.compare_run import run_comparisons
    from headway.cli.traffic import Traffic

    run_comparisons(
        Traffic(traces, reading, loads),
        replica,
        fleet,
        orderings,
        others,
        plugin,
        outputs,
        slo=slo,
        objective=objective,
        repeats=repeats,
        jobs=jobs,
    )
