"""A live run as a `Comparison` of one row, so that the same table and JSON show it."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import uvloop

from headway.bench.experiment.comparison import Comparison, Json, Run, trace_facts
from headway.bench.experiment.saturation import is_closed_loop, offered_rate
from headway.bench.load_test.addresses import http_address
from headway.bench.load_test.completion_stream import StreamFault
from headway.bench.load_test.prompts import Prompts
from headway.bench.load_test.sending import Sender, Tally
from headway.bench.load_test.stream_client import KEPT_SECONDS, StreamClient
from headway.bench.metrics.curves import curves
from headway.bench.metrics.run_metrics import Slo, summarise
from headway.bench.traces.reshaping import taken
from headway.bench.user_mistake import UserMistake
from headway.gateway.embedded.engine_routes import SIMULATED_BY
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.trace import Trace
from headway.version import __version__

_ASK_SECONDS = 10.0
_ENDING = (signal.SIGINT, signal.SIGTERM)
_UNSEEN: dict[str, Any] = dict.fromkeys(
    ("preemptions", "recomputed_tokens", "kv_peak_share", "prefix_hit_share")
)  # what a client does not see
_BY_ROW = (
    "arrived_ps", "admitted_ps", "first_token_ps", "ended_ps", "cached_tokens", "preemptions", "recomputed_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LiveRun:
    """What to send where.

    Attributes:
        url: of the endpoint.
        trace: what is sent.
        slo: what counts for goodput.
        label: of the run.
        model: name of the model; "" for the first one that the endpoint lists.
        key: its API key.
        seed: of the prompts.
        silence_seconds: a request to which nothing comes for so long has failed; None for never.
    """

    url: str
    trace: Trace
    slo: Slo
    label: str = "live"
    model: str = ""
    key: str | None = None
    seed: int = 0
    silence_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class _LiveDay:
    model: str
    trace: Trace
    outcome: DayOutcome
    stopped_by: signal.Signals | None


@dataclass(frozen=True, slots=True)
class _Endpoint:
    model: str
    is_simulated: bool


@dataclass(frozen=True, slots=True)
class LiveResult:
    """What was measured; `stopped_by` is the signal that ended it before its time, if one did."""

    comparison: Comparison
    stopped_by: signal.Signals | None


def measure(
    run: LiveRun,
    *,
    tell: Callable[[Tally], None] = lambda tally: None,
    tell_seconds: float = 10.0,
    command: str = "",
) -> LiveResult:
    """Send the trace and put the numbers into a comparison of one run.

    SIGINT and SIGTERM end it with what was sent until then.

    Args:
        run: what to send where.
        tell: called every `tell_seconds` with how far it is.
        tell_seconds: so often.
        command: the command line that repeats it.

    Raises:
        UserMistake: the endpoint cannot be reached, or does not have the model.
        KeyboardInterrupt: interrupted before anything was sent.
    """
    check_url(run.url)
    began = time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        day = runner.run(_send(run, tell, tell_seconds))
    trace, outcome = (day.trace, day.outcome) if day.stopped_by is None else _sent_part(day.trace, day.outcome)
    if not len(trace):
        raise KeyboardInterrupt
    metrics = summarise(trace, outcome, run.slo, None, kv_blocks=1)
    row = Run(
        policy=run.label,
        bundle={},
        load=None,
        seed=run.seed,
        metrics=replace(metrics, **_UNSEEN),
        curves=curves(trace, outcome, kv_blocks=1),
        wall_seconds=time.monotonic() - began,
    )
    facts: dict[str, Json] = {
        "requests_per_second": offered_rate(run.trace),
        "closed_loop": is_closed_loop(run.trace),
        "planned_requests": len(run.trace),
    }
    comparison = Comparison(
        trace=trace_facts(trace) | facts,
        replica={"hardware": run.url, "model": day.model, "live": True},
        slo=run.slo,
        saturation=None,
        runs=(row,),
        command=command,
        version=__version__,
    )
    return LiveResult(comparison, day.stopped_by)


def check_url(url: str) -> None:
    """Raise UserMistake if the URL is not an endpoint's."""
    parts = http_address(url)
    if parts is None or parts.path.rstrip("/").endswith("/v1"):
        raise UserMistake(f"{url!r} is no endpoint: write it like http://127.0.0.1:8000, without /v1")


async def _send(run: LiveRun, tell: Callable[[Tally], None], tell_seconds: float) -> _LiveDay:
    client = StreamClient(run.url, kept_seconds=KEPT_SECONDS, key=run.key, silence_seconds=run.silence_seconds)
    endpoint = await _ask(client, run)
    prompts = Prompts(run.trace, endpoint.model, run.seed, simulated=endpoint.is_simulated)
    sender = Sender(client, run.trace, prompts)
    telling = asyncio.create_task(_tell(sender, tell, tell_seconds))
    with _stopped_by_signals(sender.stop) as heard:
        trace, outcome = await sender.run()
    telling.cancel()
    return _LiveDay(endpoint.model, trace, outcome, heard[0] if heard else None)


async def _tell(sender: Sender, tell: Callable[[Tally], None], seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        tell(sender.tally())


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[list[signal.Signals]]:
    """Call `stop` at the first SIGINT or SIGTERM, which is then in the list; a second one ends the process.

    A signal that is ignored stays so, and outside the main thread none can be heard.
    """
    loop = asyncio.get_running_loop()
    heard: list[signal.Signals] = []
    main = threading.current_thread() is threading.main_thread()
    awaited = [one for one in _ENDING if main and signal.getsignal(one) is not signal.SIG_IGN]

    def leave() -> None:
        for one in awaited:
            loop.remove_signal_handler(one)
        awaited.clear()

    def hear(one: signal.Signals) -> None:
        heard.append(one)
        leave()
        stop()

    for one in awaited:
        loop.add_signal_handler(one, hear, one)
    try:
        yield heard
    finally:
        leave()


def _sent_part(trace: Trace, outcome: DayOutcome) -> tuple[Trace, DayOutcome]:
    """The rows that were sent, or will not be because an earlier turn of their session was lost."""
    known = outcome.arrived_ps != NEVER
    known[[*outcome.refused, *outcome.failed]] = True
    rows = np.flatnonzero(known)
    columns: dict[str, Any] = {name: getattr(outcome, name)[rows] for name in _BY_ROW}
    place = {int(row): number for number, row in enumerate(rows)}
    refused = {place[row]: why for row, why in outcome.refused.items()}
    failed = {place[row]: why for row, why in outcome.failed.items()}
    return taken(trace, rows), replace(outcome, **columns, refused=refused, failed=failed)


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
