"""Runs `headway load`: traffic in, requests on the wire, table and numbers out."""

from __future__ import annotations

import math
import os

import typer

from headway.bench.experiment.comparison import SCHEMA
from headway.bench.experiment.saturation import at_rate
from headway.bench.load_test.load_progress import telling
from headway.bench.load_test.measure import LiveResult, LiveRun, check_url, measure
from headway.bench.metrics.run_metrics import Slo
from headway.bench.output_files import check_files
from headway.bench.progress import say
from headway.bench.user_mistake import UserMistake
from headway.cli.command_options import TraceOptions
from headway.cli.compare_run import show
from headway.cli.load_options import EndpointOptions, SentTraffic
from headway.cli.result_files import STDOUT, command_line, json_file, write_json
from headway.cli.traffic import DEFAULT_WORKLOAD, read_trace
from headway.simulator.trace import Trace

NOTHING_COMPLETED = 1
"""Exit status where no request was completed."""


def run_load(url: str, sent: SentTraffic, endpoint: EndpointOptions, *, slo: str, label: str, json: str | None) -> None:
    """Send, measure, print, write.

    Raises:
        UserMistake: an option or the trace is wrong, or the endpoint does not answer.
        typer.Exit: the run was interrupted, or no request was completed.
    """
    check_url(url)
    if not 0 < endpoint.silence_seconds < math.inf:
        raise UserMistake(f"--silence-seconds: {endpoint.silence_seconds:g} is no time; write seconds, for example 600")
    check_files({"--json": json_file(json)}, [] if sent.trace is None else [sent.trace])
    key = None if endpoint.api_key_env is None else _key(endpoint.api_key_env)
    trace = _traffic(sent)
    run = LiveRun(
        url.rstrip("/"),
        trace,
        Slo.parse(slo),
        label=label,
        model=endpoint.model,
        key=key,
        seed=sent.seed,
        silence_seconds=endpoint.silence_seconds,
    )
    with telling(len(trace)) as told:
        result = measure(run, tell=told.tell, tell_seconds=told.seconds, command=command_line())
    comparison = result.comparison
    if json != STDOUT:
        show(comparison)
    if json is not None:
        write_json(json, [comparison.to_json()], schema=SCHEMA, several="comparisons")
    _end(result, len(trace))


def _end(result: LiveResult, planned: int) -> None:
    """Say on stderr what is to know of a run that was interrupted, or in which nothing was completed.

    Raises:
        typer.Exit: with the status of such a run.
    """
    (run,) = result.comparison.runs
    if result.stopped_by is not None:
        say(f"headway: interrupted: figures of the {run.metrics.requests:,} requests sent, of {planned:,}")
        raise typer.Exit(128 + result.stopped_by)
    if not run.metrics.completed:
        say(f"headway: no request was completed: {run.metrics.refused:,} were refused, {run.metrics.failed:,} failed")
        raise typer.Exit(NOTHING_COMPLETED)


def _traffic(sent: SentTraffic) -> Trace:
    if sent.workload is not None and sent.trace is not None:
        raise UserMistake("give --workload or --trace, not both")
    if sent.rate is not None and not 0 < sent.rate < 1e6:
        raise UserMistake(f"--rate: {sent.rate:g} is no rate; write requests a second, for example 5")
    reading = TraceOptions(sent.seed, sent.requests, sent.skip_bad_lines, sent.columns)
    trace = read_trace(sent.trace or sent.workload or DEFAULT_WORKLOAD, reading).trace
    return trace if sent.rate is None else at_rate(trace, sent.rate)


def _key(variable: str) -> str:
    key = os.environ.get(variable)
    if not key:
        raise UserMistake(f"--api-key-env: the environment variable {variable} is empty")
    return key
