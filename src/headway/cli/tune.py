"""`headway tune`: search a policy's options on a trace, in the simulator, and write a bundle to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from headway.cli import compare_options as options
from headway.cli.compare_options import DEFAULT_SLO, CompareOptions, OverContext, Precision, PrefixCaching

Trace: TypeAlias = Annotated[str, typer.Argument(metavar="TRACE", help="A trace file, or a built-in workload.")]
PolicyName: TypeAlias = Annotated[
    str, typer.Option("--policy", metavar="NAME", help="The ordering to tune; it must declare tunable options.")
]
Trials: TypeAlias = Annotated[int, typer.Option(min=1, metavar="N", help="Trials, each a replay of 70 % of the trace.")]
Reward: TypeAlias = Annotated[
    str, typer.Option(metavar="NAME", help="plain: SLO goodput less starvation; published: EWSJF's own, about lanes.")
]
Ranges: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--range", metavar="OPTION=LOW:HIGH", help="Search an option here, not in its own range; repeatable."),
]
Fixed: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option to keep at a value; repeatable.")
]
Out: TypeAlias = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.toml", help="Write the best as a bundle for `headway compare --bundles`."),
]
State: TypeAlias = Annotated[
    Path | None,
    typer.Option("--state", metavar="FILE", help="Go on from this state if it is there, and write what was learned."),
]


def tune(
    trace: Trace,
    policy: PolicyName = "ewsjf",
    trials: Trials = 20,
    reward: Reward = "plain",
    range_: Ranges = None,
    set_: Fixed = None,
    out: Out = None,
    state: State = None,
    load: options.Load = None,
    admission: options.Admission = "greedy",
    prediction: options.Prediction = "running-mean",
    preemption: options.Preemption = "latest-admitted",
    seed: options.Seed = 0,
    requests: options.Requests = None,
    slo: options.SloOption = DEFAULT_SLO,
    hardware: options.Hardware = "h100",
    model: options.Model = "llama-3.1-8b",
    tp: options.TensorParallel = None,
    precision: options.PrecisionOption = Precision.bf16,
    kv_tokens: options.KvTokens = None,
    over_context: options.OverContextOption = OverContext.error,
    prefix_caching: options.PrefixCachingOption = PrefixCaching.auto,
    async_scheduling: options.AsyncScheduling = None,
    max_num_seqs: options.MaxNumSeqs = None,
    max_num_batched_tokens: options.MaxNumBatchedTokens = None,
    skip_bad_lines: options.SkipBadLines = False,
    columns: options.Columns = None,
) -> None:
    """Search a policy's tunable options on the first 70 % of a trace; check the best on the rest.

    Stdout tells every trial and what the best is worth on traffic it was not searched on, beside the defaults and
    FCFS. The same seed gives the same search.
    """
    typed = CompareOptions(
        traces=[trace],
        policy=[policy],
        admission=admission,
        prediction=prediction,
        preemption=preemption,
        bundles=None,
        load=load,
        loads=None,
        seed=seed,
        requests=requests,
        slo=slo,
        hardware=hardware,
        model=model,
        tp=tp,
        precision=precision,
        kv_tokens=kv_tokens,
        over_context=over_context,
        prefix_caching=prefix_caching,
        async_scheduling=async_scheduling,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        open_loop=True,
        skip_bad_lines=skip_bad_lines,
        columns=columns,
        json=None,
        report=None,
        jobs=1,
    )
    from headway.cli.tune_run import TuneOptions, run_tuning

    run_tuning(TuneOptions(typed, policy, trials, reward, range_ or [], set_ or [], out, state))
