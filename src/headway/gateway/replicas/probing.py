"""Probes of replicas: whether they are healthy, which models they have and how loaded they are.

A probe lists a replica's models and decides on its health. Its metrics are only figures: where they hang, break off or
are no HTTP, the figures grow stale and the next probe comes at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus

import msgspec

from headway.gateway.replicas.engine_figures import METRICS_PATHS, read_metrics
from headway.gateway.replicas.load_report import LoadReport
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import HealthSettings
from headway.gateway.wire.http_fetch import fetch
from headway.gateway.wire.name_lookup import is_ours

_SEEK_SECONDS = 30.0  # until metrics are looked for again where there were none
_RETRY_SECONDS = 5.0  # likewise where the replica could not answer
_PROBE_SECONDS = 5.0
_MODELS_BYTES_MAX = 1 << 20  # of JSON, which is read in one go
_MODELS_MAX = 10_000
_NAMED_MAX = 20  # in one line of the log
_MODEL_CHARACTERS_MAX = 512  # of a name, which becomes a label of the metrics
_THREAD_BYTES = 256 << 10  # longer metrics are read in a thread
log = logging.getLogger("headway.gateway")


async def keep_probing(
    replica: UpstreamReplica, health: HealthSettings, clock: Callable[[], float], on_news: Callable[[], None]
) -> None:
    """Probe a replica when it is time, scrape its metrics while it is up; then call `on_news`. Runs until cancelled."""
    scraper = _Scraper(replica, clock)
    while True:
        try:
            if clock() >= replica.state.probe_at:
                await _probe(replica)
            elif replica.is_healthy and replica.settings.metrics:
                await scraper.scrape()
        except Exception:  # a fault over one answer must not end the probing of this replica
            log.exception("cannot read the answer of replica %s to a probe", replica.name)
            if not replica.is_healthy:  # else requests would wait for it for ever
                replica.probed(False, "the gateway failed at its probe")
        on_news()
        await asyncio.sleep(health.scrape_seconds if replica.is_healthy else min(0.25, health.scrape_seconds))


async def _probe(replica: UpstreamReplica) -> None:
    """A replica is alive if it lists its models or answers its health path."""
    try:
        status = await read_models(replica, _PROBE_SECONDS)
        if status != 200:
            status, _ = await _get(replica, "/health")
    except OSError as error:
        if not is_ours(error):
            why = f"it cannot be reached: {error or 'no answer in time'}"
            replica.probed(False, why, refused=isinstance(error, ConnectionRefusedError))
        return
    why = (
        "its url leads back to this gateway"
        if status == HTTPStatus.LOOP_DETECTED
        else f"it answered its probe with status {status}"
    )
    replica.probed(status == 200, why)


async def read_models(replica: UpstreamReplica, seconds: float) -> int:
    """Ask a replica for its models, and keep them; the status of its answer.

    Raises:
        OSError: it cannot be reached, breaks off, or takes longer than `seconds` (TimeoutError).
    """
    status, body = await _get(replica, "/v1/models", seconds)
    models = None
    if status == 200:
        models, before = _models(body), replica.state.models or {}
        if models and models.keys() != before.keys():
            named = {"replica": replica.name, "models": list(models)[:_NAMED_MAX]}
            log.info("replica %s serves %d models", replica.name, len(models), extra={"fields": named})
        replica.listed(models, _adapters(models or {}))
    _note_withheld(replica, status, is_empty=models is not None and not models)
    return status


def _note_withheld(replica: UpstreamReplica, status: int, *, is_empty: bool) -> None:
    """Say once that a replica keeps its list for another key; it is then believed to have any model."""
    why = ""
    if is_empty:
        why = "its /v1/models is an empty list; if that takes a key, set `api_key_env` to a variable that holds it"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        has = "wants a key" if replica.authorization is None else "does not take the key of `api_key_env`"
        why = f"its /v1/models {has} (status {status}); set `api_key_env` to a variable that holds its key"
    if why and why != replica.state.models_withheld:
        log.warning("replica %s lists no models: %s", replica.name, why, extra={"fields": {"replica": replica.name}})
    replica.state.models_withheld = why


class _Scraper:
    """Finds where a replica has its metrics, and reads them."""

    def __init__(self, replica: UpstreamReplica, clock: Callable[[], float]) -> None:
        self._replica = replica
        self._clock = clock
        self._path: str | None = None  # where figures were found
        self._has_page = False  # where it was asked last
        self._seek_at = clock()

    async def scrape(self) -> None:
        """Read its metrics once, or look for them if it is time."""
        if self._path is not None:
            await self._read(self._path)
        elif self._clock() >= self._seek_at:
            self._seek_at = self._clock() + _SEEK_SECONDS
            for path in METRICS_PATHS:
                if await self._read(path) or not self._has_page:
                    return  # only an engine with another page there may have its figures elsewhere

    async def _read(self, path: str) -> bool:
        """Read the metrics at one path; whether it has figures."""
        began = self._clock()
        self._has_page = False
        try:
            status, body = await _get(self._replica, path)
        except OSError as error:
            self._seek_at = min(self._seek_at, began + _RETRY_SECONDS)
            if not is_ours(error):
                hangs = self._path is not None and isinstance(error, TimeoutError)
                self._replica.metrics_missed(began if hangs else None)
            return False
        self._replica.metrics_came()
        if status >= 500:
            self._seek_at = min(self._seek_at, began + _RETRY_SECONDS)
            return False
        self._has_page = status == 200
        report = await _report(body) if status == 200 else LoadReport()
        has_figures = report != LoadReport()
        if self._path is not None and not has_figures:  # the engine was changed: they may be elsewhere now
            self._seek_at = began
        self._path = path if has_figures else None
        if report.waiting is not None or report.kv_share is not None:
            self._replica.state.asked_at = began
            self._replica.reported(report)
        return has_figures


async def _report(body: bytes) -> LoadReport:
    text = body.decode("utf-8", "replace")
    return read_metrics(text) if len(body) < _THREAD_BYTES else await asyncio.to_thread(read_metrics, text)


async def _get(replica: UpstreamReplica, path: str, seconds: float = _PROBE_SECONDS) -> tuple[int, bytes]:
    return await fetch(replica.pool, path, seconds=seconds, authorization=replica.authorization)


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


class _Entry(msgspec.Struct):
    id: str


class _Adapter(msgspec.Struct):
    parent: str  # the model that it belongs to, as vLLM writes it; null for a model


_LIST = msgspec.json.Decoder(_List)
_ENTRY = msgspec.json.Decoder(_Entry)
_ADAPTER = msgspec.json.Decoder(_Adapter)


def _models(body: bytes) -> dict[str, msgspec.Raw] | None:
    """The entries of a list of models as they stand in it, by their ids; None where it is no such list."""
    if len(body) > _MODELS_BYTES_MAX:
        return None
    try:
        body.decode()  # what is passed on to clients
        listed = _LIST.decode(body).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if len(listed) > _MODELS_MAX:
        return None
    models: dict[str, msgspec.Raw] = {}
    for entry in listed:
        with suppress(msgspec.DecodeError, UnicodeDecodeError):  # it is no model that a request can name
            name = _ENTRY.decode(entry).id
            if 0 < len(name) <= _MODEL_CHARACTERS_MAX:
                models[name] = entry
    return models


def _adapters(models: Mapping[str, msgspec.Raw]) -> dict[str, str]:
    """Those that are LoRA adapters of another, each with the name of that one."""
    adapters = {}
    for name, entry in models.items():
        with suppress(msgspec.DecodeError):
            parent = _ADAPTER.decode(entry).parent
            if parent:
                adapters[name] = parent
    return adapters
