"""`headway load URL`: sends a trace or a workload to a live endpoint, and prints the table of `compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from headway.cli import command_options as options
from headway.cli.grouped_options import grouped
from headway.cli.load_options import EndpointOptions, SentTraffic


@grouped
def load(
    url: Annotated[str, typer.Argument(help="An OpenAI endpoint, without /v1, for example http://127.0.0.1:8000.")],
    traffic: SentTraffic,
    endpoint: EndpointOptions,
    slo: options.SloOption = options.DEFAULT_SLO,
    label: Annotated[str, typer.Option(metavar="TEXT", help="Name of the run in the table.")] = "live",
    json: options.JsonFile = None,
) -> None:
    """Send traffic to a live endpoint, and measure it.

    Times are measured at the client and shown in the table of `compare`. Prompts are token ids, not text, of the
    lengths in the trace. An engine gets `max_tokens` of the trace's output length with `ignore_eos`; a simulated engine
    gets the length as a hint. Refused and failed requests are counted, not retried. Ctrl-C ends it with the figures
    of what was sent until then. The exit status is 1 where no request was completed.
    """
    from headway.cli.gateway_extra import require_gateway

    require_gateway()
    from headway.cli.load_run import run_load

    run_load(url, traffic, endpoint, slo=slo, label=label, json=json)
