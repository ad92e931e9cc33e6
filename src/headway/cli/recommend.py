"""`headway recommend`: says which policies this traffic wants, for what the operator wants."""

from __future__ import annotations

from typing import Annotated

import typer

from headway.cli import command_options as options
from headway.cli import comparison_options as comparison
from headway.cli.grouped_options import grouped
from headway.cli.name_completion import complete_trace


@grouped
def recommend(
    trace: Annotated[
        str,
        typer.Argument(help="A trace file, or a built-in workload.", autocompletion=complete_trace),
    ],
    orderings: comparison.ComparedOrderings,
    others: options.GatewayPolicies,
    reading: options.TraceOptions,
    replica: options.ReplicaOptions,
    outputs: comparison.ComparisonOutputs,
    objective: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="mean-ttft, p99-ttft, e2e, balanced, goodput, goodput(ttft=2s,tpot=100ms), or a file FILE.toml with "
            "weights and bounds.",
        ),
    ] = "balanced",
    load: options.Load = None,
    slo: options.SloOption = options.DEFAULT_SLO,
    jobs: options.Jobs = None,
) -> None:
    """Recommend policies for this traffic, in the simulator.

    Orders compete, each with a small grid of its dial; then admission, victim and predictor beside the best one. Stdout
    shows the verdict with its price, how sure it is, and the configuration to paste. --report draws all candidates.
    """
    from headway.cli.recommend_run import run_recommendation
    from headway.cli.traffic import Traffic

    traffic = Traffic([trace], reading, options.LoadOptions(load=load))
    run_recommendation(traffic, replica, orderings, others, outputs, objective=objective, slo=slo, jobs=jobs)
