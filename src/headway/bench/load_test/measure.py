"""A live run as a `Comparison` of one row, so that the same table and JSON show it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import uvloop

from headway import __version__
from headway.bench.experiment.comparison import Comparison, Json, Run, trace_facts
from headway.bench.experiment.saturation import is_closed_loop, offered_rate
from headway.bench.load_test.addresses import http_address
from headway.bench.load_test.prompts import Prompts
from headway.bench.load_test.sending import Sender
from headway.bench.metrics.curves import curves
from headway.bench.metrics.run_metrics import Slo, summarise
from headway.bench.user_mistake import UserMistake
from headway.gateway.embedded.engine_routes import SIMULATED_BY
from headway.gateway.wire.http_fetch import fetch
from headway.gateway.wire.upstream_pool import UpstreamPool
from headway.simulator.outcome import DayOutcome
from headway.simulator.trace import Trace

_ASK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class LiveRun:
    """What to send where. `model` "" is the first one that the endpoint lists; `key` is its API key."""

    url: str
    trace: Trace
    slo: Slo
    label: str = "live"
    model: str = ""
    key: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Endpoint:
    model: str
    is_simulated: bool


def measure(run: LiveRun, *, on_end: Callable[[], None] = lambda: None, command: str = "") -> Comparison:
    """Send the trace and put the numbers into a comparison of one run.

    Raises:
        UserMistake: the endpoint cannot be reached, or does not have the model.
    """
    check_url(run.url)
    began = time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        endpoint, trace, outcome = runner.run(_send(run, on_end))
    metrics = summarise(trace, outcome, run.slo, None, kv_blocks=1)
    metrics = replace(metrics, preemptions=None, recomputed_tokens=None, kv_peak_share=None)
    row = Run(
        policy=run.label,
        bundle={},
        load=None,
        seed=run.seed,
        metrics=metrics,
        curves=curves(trace, outcome, kv_blocks=1),
        wall_seconds=time.monotonic() - began,
    )
    facts: dict[str, Json] = {"requests_per_second": offered_rate(trace), "closed_loop": is_closed_loop(trace)}
    return Comparison(
        trace=trace_facts(trace) | facts,
        replica={"hardware": run.url, "model": endpoint.model, "live": True},
        slo=run.slo,
        saturation=None,
        runs=(row,),
        command=command,
        version=__version__,
    )


def check_url(url: str) -> None:
    """Raise UserMistake if the URL is not an endpoint's."""
    parts = http_address(url)
    if parts is None or parts.path.rstrip("/").endswith("/v1"):
        raise UserMistake(f"{url!r} is no endpoint: write it like http://127.0.0.1:8000, without /v1")


async def _send(run: LiveRun, on_end: Callable[[], None]) -> tuple[_Endpoint, Trace, DayOutcome]:
    authorization = f"Bearer {run.key}".encode() if run.key else None
    endpoint = await _ask(run, authorization)
    prompts = Prompts(run.trace, endpoint.model, run.seed, simulated=endpoint.is_simulated)
    trace, outcome = await Sender(run.url, run.trace, prompts, authorization=authorization, on_end=on_end).run()
    return endpoint, trace, outcome


async def _ask(run: LiveRun, authorization: bytes | None) -> _Endpoint:
    """Which model, and whether it is a simulated one."""
    pool = UpstreamPool(run.url, connect_seconds=_ASK_SECONDS, clock=time.monotonic)
    try:
        status, body = await fetch(pool, "/v1/models", seconds=_ASK_SECONDS, authorization=authorization)
        listed = json.loads(body)["data"] if status == 200 else []
        models = {entry["id"]: entry.get("owned_by") for entry in listed}
    except (OSError, TimeoutError) as error:
        raise UserMistake(f"{run.url} cannot be reached: {error or 'no answer'}; is it running?") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserMistake(f"{run.url}/v1/models is no list of models; is this an OpenAI endpoint?") from None
    if status != 200:
        raise UserMistake(f"{run.url}/v1/models answered with status {status}; is the key right?")
    name = run.model or next(iter(models), "")
    if name not in models:
        raise UserMistake(f"{run.url} has no model {name!r}; it lists {', '.join(models) or 'none'}")
    return _Endpoint(name, models[name] == SIMULATED_BY)
