"""`headway load URL`: send a trace or a workload to a live endpoint and print the table that `compare` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headway.cli import compare_options as options
from headway.cli.compare_options import DEFAULT_SLO

_REQUESTS = 500


def load(
    url: Annotated[str, typer.Argument(help="An OpenAI endpoint, without /v1, for example http://127.0.0.1:8000.")],
    workload: Annotated[
        str | None, typer.Option(metavar="NAME", help="A built-in workload (`headway workloads`).")
    ] = None,
    trace: Annotated[str | None, typer.Option(metavar="FILE", help="A trace, as for `headway compare`.")] = None,
    requests: Annotated[int, typer.Option(min=1, metavar="N", help="Only the first N requests.")] = _REQUESTS,
    rate: Annotated[
        float | None, typer.Option(metavar="R", help="Scale arrivals to R requests/s; else the trace's own times.")
    ] = None,
    slo: Annotated[str, typer.Option(metavar="BOUNDS", help="What counts for goodput: ttft, tpot, e2e.")] = DEFAULT_SLO,
    model: Annotated[str, typer.Option(metavar="NAME", help="By default the first one the endpoint lists.")] = "",
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable that holds the API key.")
    ] = None,
    label: Annotated[str, typer.Option(metavar="TEXT", help="What to call the run in the table.")] = "live",
    seed: Annotated[int, typer.Option(min=0, help="Seed of workload and prompts.")] = 0,
    skip_bad_lines: options.SkipBadLines = False,
    columns: options.Columns = None,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the numbers as JSON too.")] = None,
) -> None:
    """Send traffic on the wall clock and measure it as the client sees it, in the numbers of `compare`.

    Prompts are token ids of the lengths the trace asks for, no text. An engine gets `ignore_eos` with `max_tokens` of
    the trace's output length; a simulated one is told the length. Refusals are counted, not retried.
    """
    import os

    from headway.bench.user_mistake import UserMistake
    from headway.cli.gateway_extra import require_gateway

    require_gateway()
    from headway.bench.experiment.comparison import json_text
    from headway.bench.experiment.saturation import at_rate
    from headway.bench.load_test.measure import LiveRun, check_url, measure
    from headway.bench.metrics.run_metrics import Slo
    from headway.bench.output_files import check_files, replacing
    from headway.bench.traces.loading import load_trace
    from headway.bench.traces.reshaping import head
    from headway.cli.compare_run import show
    from headway.cli.progress import progress, say

    check_url(url)
    if workload is not None and trace is not None:
        raise UserMistake("give --workload or --trace, not both")
    if rate is not None and not 0 < rate < 1e6:
        raise UserMistake(f"--rate: {rate:g} is no rate; write requests a second, for example 5")
    check_files({"--json": None if json is None else Path(json)}, [] if trace is None else [trace])
    key = os.environ.get(api_key_env) if api_key_env is not None else None
    if api_key_env is not None and not key:
        raise UserMistake(f"--api-key-env: the environment variable {api_key_env} is empty")
    loaded = load_trace(
        trace or workload or "chat-and-documents",
        skip_bad_lines=skip_bad_lines,
        columns=columns,
        requests=requests,
        seed=seed,
    )
    for note in loaded.notes:
        say(note)
    traffic = head(loaded.trace, requests)
    if rate is not None:
        traffic = at_rate(traffic, rate)
    run = LiveRun(url.rstrip("/"), traffic, Slo.parse(slo), label=label, model=model, key=key, seed=seed)
    with progress("sending", len(traffic)) as on_end:
        comparison = measure(run, on_end=on_end, command=f"headway load {url}")
    show(comparison)
    if json is not None:
        with replacing(Path(json), "--json") as temporary:
            temporary.write_text(json_text(comparison), encoding="utf-8")
