"""`headway bound`: what no policy can beat on this traffic."""

from __future__ import annotations

from typing import Annotated

import typer

from headway.cli import compare_options as options
from headway.cli.compare_options import (
    DEFAULT_HARDWARE,
    DEFAULT_MODEL,
    DEFAULT_SLO,
    CompareOptions,
    OverContext,
    Precision,
    PrefixCaching,
)


def bound(
    traces: options.Traces = None,
    load: options.Load = None,
    loads: options.Loads = None,
    seed: options.Seed = 0,
    requests: options.Requests = None,
    hardware: options.Hardware = DEFAULT_HARDWARE,
    model: options.Model = DEFAULT_MODEL,
    tp: options.TensorParallel = None,
    precision: options.PrecisionOption = Precision.bf16,
    kv_tokens: options.KvTokens = None,
    calibration: options.CalibrationFile = None,
    over_context: options.OverContextOption = OverContext.error,
    prefix_caching: options.PrefixCachingOption = PrefixCaching.auto,
    async_scheduling: options.AsyncScheduling = None,
    max_num_seqs: options.MaxNumSeqs = None,
    max_num_batched_tokens: options.MaxNumBatchedTokens = None,
    open_loop: options.OpenLoop = False,
    skip_bad_lines: options.SkipBadLines = False,
    columns: options.Columns = None,
    optimum: Annotated[
        bool,
        typer.Option("--optimum", help="Solve a small trace exactly too, in the papers' model: a token a step."),
    ] = False,
    time_limit: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="For --optimum; the gap is told when it stops early.")
    ] = 60.0,
    json: options.JsonFile = None,
    jobs: options.Jobs = None,
) -> None:
    """Bound from below the mean end-to-end latency that any policy could reach on this traffic and replica.

    `headway compare` shows for every policy how many times the best of these bounds its mean is.
    """
    asked = {name: value for name, value in locals().items() if name not in ("optimum", "time_limit")}
    typed = CompareOptions(
        **asked,
        policy=None,
        admission="greedy",
        prediction="running-mean",
        preemption="latest-admitted",
        bundles=None,
        slo=DEFAULT_SLO,
        report=None,
    )
    from headway.cli.bound_run import run_bounds

    run_bounds(typed, time_limit if optimum else None)
