"""`headway serve` as a process: signals, the loop, what is said when it starts and when it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace

import uvloop

from headway.gateway.embedded.embedded_engine import EmbeddedEngine
from headway.gateway.gateway import Gateway
from headway.gateway.gc_tuning import collect_when_quiet
from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.relay.exchange import Exchange, id_text
from headway.gateway.settings import ReplicaSettings, Settings

_DESCRIPTORS_MAX = 1 << 20
log = logging.getLogger("headway.gateway")


def serve(settings: Settings, reread: Callable[[], Settings] | None, *, log_requests: bool) -> bool:
    """Run until SIGTERM or SIGINT; False if requests had to be cut off at the end.

    Args:
        settings: what to run with.
        reread: reads the settings anew on SIGHUP; None where there is no file.
        log_requests: whether every request is logged, without any text of it.

    Raises:
        ValueError: one sentence; a key cannot be read, or there is no such embedded hardware or model.
        OSError: an address or the record cannot be had.
    """
    handler = logging.StreamHandler(sys.stderr)
    plain = _Plain("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    handler.setFormatter(plain if sys.stderr.isatty() else _JsonLines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    _raise_descriptor_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, reread, log_requests))


async def _serve(settings: Settings, reread: Callable[[], Settings] | None, log_requests: bool) -> bool:
    engines: list[EmbeddedEngine] = []
    embedded: list[ReplicaSettings] = []
    if not settings.replica:
        engines = [EmbeddedEngine(settings.embedded) for _ in range(settings.embedded.replicas)]
        embedded = [await engine.start(number) for number, engine in enumerate(engines)]
        log.info("no replica was named: simulated engines stand in", extra={"fields": {"replicas": len(engines)}})
    gateway = Gateway(_with(settings, embedded), [RequestLog()] if log_requests else [])
    await gateway.start()
    tidying = asyncio.create_task(collect_when_quiet(lambda: gateway.dispatcher.counts.inside))
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: _reload(gateway, reread, embedded))
    fields = {"url": gateway.urls[0], "page": _page(gateway)}
    log.info("listening", extra={"fields": fields})
    await ending.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)  # the second one ends the process
    log.info("draining", extra={"fields": {"inside": gateway.dispatcher.counts.inside}})
    tidying.cancel()
    whole = await gateway.drain()
    for engine in engines:
        await engine.stop()
    counts = gateway.dispatcher.counts
    ended = {str(outcome): number for outcome, number in counts.ended.items()}
    log.info("stopped", extra={"fields": {"arrived": counts.arrived, **ended, "cut_off": counts.inside}})
    return whole


def _raise_descriptor_limit() -> None:
    """A stream takes two descriptors, and what systems give at first is often 1,024: take what we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _with(settings: Settings, embedded: list[ReplicaSettings]) -> Settings:
    return replace(settings, replica=tuple(embedded)) if not settings.replica and embedded else settings


def _page(gateway: Gateway) -> str | None:
    settings = gateway.settings
    if settings.admin_listen is None and settings.tenant:
        return None
    return f"{gateway.urls[-1]}/headway/"


def _reload(gateway: Gateway, reread: Callable[[], Settings] | None, embedded: list[ReplicaSettings]) -> None:
    if reread is None:
        log.warning("SIGHUP: there is no configuration file to read again")
        return
    try:
        gateway.reload(_with(reread(), embedded))
    except ValueError as error:
        log.error("the new configuration is not taken: %s", error)
    else:
        log.info("the new configuration is in force")


class RequestLog:
    """A line for each request that ended."""

    def dispatched(self, exchange: Exchange, now: float) -> None:
        """Of `Watcher`."""

    def ended(self, exchange: Exchange, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Of `Watcher`."""
        fields = {
            "request": id_text(exchange.request_id),
            "tenant": exchange.request.tenant,
            "outcome": str(outcome),
            "reason": reason and str(reason),
            "status": exchange.status,
            "replica": exchange.replica.name if exchange.replica is not None else None,
            "prompt_tokens": exchange.request.prompt_tokens,
            "output_tokens": exchange.output_tokens,
            "waited_seconds": round((exchange.dispatched_at or now) - exchange.arrived_at, 6),
            "seconds": round(now - exchange.arrived_at, 6),
        }
        log.info("request", extra={"fields": fields})


class _Plain(logging.Formatter):
    """For whoever sits in front of it: the message, and its fields behind it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        return "  ".join([super().format(record), *(f"{name}={value}" for name, value in fields.items())])


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        told = {"at": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return json.dumps(told | getattr(record, "fields", {}))
