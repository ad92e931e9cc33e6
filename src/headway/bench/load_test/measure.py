"""A live run as a `Comparison` of one row, so that the same table and JSON show it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import uvloop

from headway.bench.experiment.comparison import Comparison, Json, Run, trace_facts
from headway.bench.experiment.saturation import is_closed_loop, offered_rate
from headway.bench.load_test.addresses import http_address
from headway.bench.load_test.prompts import Prompts
from headway.bench.load_test.sending import Sender
from headway.bench.load_test.stream_client import KEPT_SECONDS, StreamClient, StreamFault
from headway.bench.metrics.curves import curves
from headway.bench.metrics.run_metrics import Slo, summarise
from headway.bench.user_mistake import UserMistake
from headway.gateway.embedded.engine_routes import SIMULATED_BY
from headway.simulator.outcome import DayOutcome
from headway.simulator.trace import Trace
from headway.version import __version__

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
    metrics = replace(metrics, preemptions=None, recomputed_tokens=None, kv_peak_share=None, prefix_hit_share=None)
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
    client = StreamClient(run.url, kept_seconds=KEPT_SECONDS, key=run.key)
    endpoint = await _ask(client, run)
    prompts = Prompts(run.trace, endpoint.model, run.seed, simulated=endpoint.is_simulated)
    trace, outcome = await Sender(client, run.trace, prompts, on_end=on_end).run()
    return endpoint, trace, outcome


async def _ask(client: StreamClient, run: LiveRun) -> _Endpoint:
    """Which model, and whether it is a simulated one."""
    try:
        models = await asyncio.wait_for(client.models(), _ASK_SECONDS)
    except TimeoutError:
        raise UserMistake(
            f"{run.url}: it cannot be reached: no answer in {_ASK_SECONDS:g} s; check the address"
        ) from None
    except StreamFault as fault:
        raise UserMistake(
            f"{run.url}: {fault}; check the address, and --api-key-env if the endpoint wants a key"
        ) from None
    name = run.model or next(iter(models), "")
    if name not in models:
        raise UserMistake(f"{run.url} has no model {name!r}; it lists {', '.join(models) or 'none'}")
    return _Endpoint(name, models[name] == SIMULATED_BY)
