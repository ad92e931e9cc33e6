"""`headway compare`: the same traffic under several policies, side by side."""

from __future__ import annotations

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


def compare(
    traces: options.Traces = None,
    policy: options.PolicyNames = None,
    admission: options.Admission = "greedy",
    prediction: options.Prediction = "running-mean",
    preemption: options.Preemption = "latest-admitted",
    bundles: options.Bundles = None,
    load: options.Load = None,
    loads: options.Loads = None,
    seed: options.Seed = 0,
    requests: options.Requests = None,
    slo: options.SloOption = DEFAULT_SLO,
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
    json: options.JsonFile = None,
    report: options.ReportFile = None,
    jobs: options.Jobs = None,
) -> None:
    """Replay traffic under several policies on a modelled replica, and show what each would do.

    Without a trace a built-in workload is replayed. The table tells for every policy how long requests wait for their
    first token and for their last, who pays for whose gain, and what share meets the SLOs.
    """
    typed = CompareOptions(**locals())
    from headway.cli.compare_run import run_comparisons

    run_comparisons(typed)
