"""Probes of replicas: whether they are healthy, which models they have and how loaded they are."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable

from headway.gateway.replicas.engine_figures import read_metrics
from headway.gateway.replicas.upstream_replica import Health, UpstreamReplica
from headway.gateway.settings import HealthSettings
from headway.gateway.wire.http_fetch import fetch
from headway.gateway.wire.name_lookup import is_ours

_PROBE_SECONDS = 5.0
log = logging.getLogger("headway.gateway")


async def keep_probing(
    replica: UpstreamReplica, health: HealthSettings, clock: Callable[[], float], on_news: Callable[[], None]
) -> None:
    """Probe a replica while it is not up, scrape its metrics while it is; then call `on_news`. Runs until cancelled."""
    models_at, scrapes = clock(), replica.settings.metrics
    while True:
        now = clock()
        try:
            if replica.state.health is not Health.UP:
                if now >= replica.state.probe_at:
                    await _probe(replica)
                    models_at = clock()
            elif now - models_at >= health.models_seconds:
                models_at = now
                await _probe(replica)
            elif scrapes:
                scrapes = await _scrape(replica, health)
        except Exception:  # a fault over one answer must not end the probing of this replica
            log.exception("cannot read the answer of replica %s to a probe", replica.name)
        on_news()
        await asyncio.sleep(health.scrape_seconds if replica.is_up else min(0.25, health.scrape_seconds))


async def _probe(replica: UpstreamReplica) -> None:
    """A replica is alive if it lists its models or answers its health path."""
    try:
        status = await read_models(replica, _PROBE_SECONDS)
        if status != 200:
            status, _ = await _get(replica, "/health")
    except (OSError, TimeoutError) as error:
        _unreachable(replica, error)
        return
    replica.probed(status == 200, f"it answered its probe with status {status}")


async def read_models(replica: UpstreamReplica, seconds: float) -> int:
    """Ask a replica for its models, and keep them; the status of its answer.

    Raises:
        OSError: it cannot be reached, breaks off, or takes longer than `seconds` (TimeoutError).
    """
    status, body = await _get(replica, "/v1/models", seconds)
    if status == 200:
        replica.state.models = _models(body)
    return status


async def _scrape(replica: UpstreamReplica, health: HealthSettings) -> bool:
    """Read its metrics; False if it has none and need not be asked again."""
    try:
        status, body = await _get(replica, "/metrics")
    except (OSError, TimeoutError) as error:
        _unreachable(replica, error)
        return True
    if status == 200:
        report = read_metrics(body.decode("utf-8", "replace"))
        if report.waiting is not None or report.kv_share is not None:
            replica.reported(report)
    return status != 404


def _unreachable(replica: UpstreamReplica, error: OSError) -> None:
    if not is_ours(error):
        replica.probed(False, f"it cannot be reached: {error or 'no answer in time'}")


async def _get(replica: UpstreamReplica, path: str, seconds: float = _PROBE_SECONDS) -> tuple[int, bytes]:
    return await fetch(replica.pool, path, seconds=seconds, authorization=replica.authorization)


def _models(body: bytes) -> dict[str, dict[str, object]] | None:
    try:
        listed = json.loads(body)["data"]
        return {entry["id"]: entry for entry in listed if isinstance(entry["id"], str)}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
