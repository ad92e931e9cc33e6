"""Process of `headway serve` and `headway epp`: the event loop, signals, start and end."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Protocol

import uvloop

from headway.gateway.api_keys import ApiKeys
from headway.gateway.embedded.embedded_engine import EmbeddedEngine
from headway.gateway.gateway import Gateway
from headway.gateway.gc_tuning import collect_when_quiet, spare_objects_of_the_start
from headway.gateway.observing.access_log import AccessLog
from headway.gateway.observing.logging_setup import LogForm, set_up_logging
from headway.gateway.settings import ReplicaSettings, Settings
from headway.gateway.settings_page import changed_keys, restart_keys
from headway.gateway.signed_tokens import signed_tokens

_DESCRIPTORS_MAX = 1 << 20
_NAMED_MAX = 20  # replicas or models in one line of the log
log = logging.getLogger("headway.gateway")


class GatewayListener(Protocol):
    """One more way for requests to come to a gateway, beside its own addresses."""

    @property
    def told(self) -> dict[str, object]:
        """Where it listens, for the log."""

    async def start(self) -> None:
        """Listen. Raises OSError if its address cannot be listened on."""

    async def stop(self) -> None:
        """End what is left, and listen no more."""


def serve(
    settings: Settings,
    reread: Callable[[], Settings] | None,
    *,
    log_requests: bool,
    log_form: LogForm,
    beside: Callable[[Gateway], GatewayListener] | None = None,
    check_found: Callable[[ReplicaSettings], None] = lambda replica: None,
) -> bool:
    """Run until SIGTERM or SIGINT; False if requests had to be cut off at the end.

    Args:
        settings: what to run with.
        reread: reads the settings again on SIGHUP; None where there is no file.
        log_requests: whether each request is logged when it ends, without its text.
        log_form: how the log is written.
        beside: makes a listener beside the gateway's own addresses; None where there is none.
        check_found: raises ValueError, one sentence, for a found replica that cannot be used.

    Raises:
        ValueError: one sentence; an API key cannot be read, or the embedded hardware or model is unknown.
        OSError: the gateway cannot listen on an address, or cannot write the record.
    """
    set_up_logging(settings.log_lines_max, log_form)
    _raise_descriptor_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, reread, log_requests, beside, check_found))


async def _serve(
    settings: Settings,
    reread: Callable[[], Settings] | None,
    log_requests: bool,
    beside: Callable[[Gateway], GatewayListener] | None = None,
    check_found: Callable[[ReplicaSettings], None] = lambda replica: None,
) -> bool:
    loop = asyncio.get_running_loop()
    ending, reloading = asyncio.Event(), asyncio.Event()
    ended_by: list[signal.Signals] = []

    def end(number: signal.Signals) -> None:
        ended_by.append(number)
        ending.set()

    # From the first moment on: a signal that comes before the gateway listens takes effect when it does.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    loop.add_signal_handler(signal.SIGHUP, reloading.set)
    engines: list[EmbeddedEngine] = []
    embedded: list[ReplicaSettings] = []
    if not settings.replica and not settings.replica_source:
        engines = [EmbeddedEngine(settings.embedded) for _ in range(settings.embedded.replicas)]
        embedded = [await engine.start(number) for number, engine in enumerate(engines)]
        told = "simulated engines answer" if engines else "replicas come by /admin/replicas"
        log.info("no replica is configured: %s", told, extra={"fields": {"replicas": len(engines)}})
    gateway = Gateway(_with(settings, embedded), [AccessLog()] if log_requests else [], check_found)
    spare_objects_of_the_start()
    await gateway.start()
    listener = None if beside is None else beside(gateway)
    if listener is not None:
        await listener.start()
    tidying = asyncio.create_task(collect_when_quiet(lambda: gateway.dispatcher.counts.inside))
    rereading = asyncio.create_task(_reload_when_asked(reloading, gateway, reread, embedded))
    fields = {"url": gateway.urls[0], "page": _page(gateway)} | ({} if listener is None else listener.told)
    fields |= _engines_and_policies(gateway)
    log.info("listening", extra={"fields": fields})
    if fields["page"] is None:
        log.warning("metrics and live page are served nowhere: with tenants they need `admin_listen`")
    await ending.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)  # the second one ends the process
    log.info("draining", extra={"fields": {"inside": gateway.dispatcher.counts.inside}})
    if ended_by[0] is signal.SIGTERM:
        await gateway.announce_end()
    tidying.cancel()
    rereading.cancel()
    whole = await gateway.drain()
    if listener is not None:
        await listener.stop()
    for engine in engines:
        await engine.stop()
    counts = gateway.dispatcher.counts
    ended = {str(outcome): number for outcome, number in counts.ended.items()}
    log.info("stopped", extra={"fields": {"arrived": counts.arrived, **ended, "cut_off": gateway.cut_off}})
    return whole


def _raise_descriptor_limit() -> None:
    """Raise the limit as far as allowed: a stream takes two descriptors, and the first limit is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _with(settings: Settings, embedded: list[ReplicaSettings]) -> Settings:
    is_needed = embedded and not settings.replica and not settings.replica_source
    return replace(settings, replica=tuple(embedded)) if is_needed else settings


def _engines_and_policies(gateway: Gateway) -> dict[str, object]:
    """What a start names: replicas (at most 20), models of which the configuration speaks, and the policies."""
    settings = gateway.settings
    names = [replica.name for replica in gateway.dispatcher.replicas]
    more = [f"and {len(names) - _NAMED_MAX:,} more"] if len(names) > _NAMED_MAX else []
    policies = {key.name: getattr(settings.policies, key.name) for key in fields(settings.policies)}
    return {
        "replicas": [*names[:_NAMED_MAX], *more],
        "models": sorted({*settings.models, *settings.aliases})[:_NAMED_MAX],
        "policies": {key: name for key, name in policies.items() if isinstance(name, str)},
    } | _twin(settings)


def _twin(settings: Settings) -> dict[str, object]:
    """By which objective a twin chooses; nothing without one."""
    return {"auto": settings.auto.objective} if settings.auto.on else {}


def _page(gateway: Gateway) -> str | None:
    settings = gateway.settings
    if settings.admin_listen is None and settings.tenant:
        return None
    return f"{gateway.urls[-1]}/headway/"


async def _reload_when_asked(
    asked: asyncio.Event,
    gateway: Gateway,
    reread: Callable[[], Settings] | None,
    embedded: list[ReplicaSettings],
) -> None:
    while True:
        await asked.wait()
        asked.clear()
        await _reload(gateway, reread, embedded)


async def _reload(gateway: Gateway, reread: Callable[[], Settings] | None, embedded: list[ReplicaSettings]) -> None:
    """Read the file again in a thread: with many tenants that takes seconds, in which streams go on."""
    if reread is None:
        log.warning("SIGHUP ignored: the gateway runs without a configuration file")
        return
    try:
        settings = _with(await asyncio.to_thread(reread), embedded)
        tokens = await asyncio.to_thread(signed_tokens, settings.jwt, gateway.tokens)
        tenants = await asyncio.to_thread(ApiKeys, settings.tenant, tokens)
        if tokens is not None and tokens is not gateway.tokens:
            await tokens.ask()
        before = gateway.settings
        gateway.reload(settings, tenants)
    except ValueError as error:
        log.error("configuration reload rejected: %s", error)
    except Exception:  # the settings of before stay
        log.exception("configuration reload failed")
    else:
        _log_reload(before, settings)


def _log_reload(before: Settings, now: Settings) -> None:
    """Say what is in force, what changed, and which changes wait for a restart."""
    waiting = restart_keys(before, now)
    facts = {"replicas": len(now.replica), "tenants": len(now.tenant), "ordering": now.policies.ordering}
    facts |= _twin(now)
    facts |= {"changed": changed_keys(before, now), "needs_restart": waiting}
    log.info("configuration reloaded", extra={"fields": facts})
    if waiting:
        log.warning("these keys changed and need a restart: %s", ", ".join(waiting))
    if before.tenant and not now.tenant:
        log.warning("no tenant is configured any more: requests need no key")
