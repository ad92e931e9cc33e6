"""Where a replica's KV events are: as configured, as its engine says (vLLM 0.32 and later), or at vLLM's usual port."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

import msgspec

from headway.gateway.replicas.kv_block_index import KvBlockIndex
from headway.gateway.replicas.kv_event_subscription import KvEventSource, KvEventSubscription, NoKvEvents
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.wire.http_fetch import fetch

_PATH = "/kv_event_sources"
_PORT = 5557  # vLLM's default
_SECONDS = 5.0
_EVERY_ADDRESS = ("*", "::", "[::]")  # what vLLM binds; to any other address it connects


class _Rank(msgspec.Struct):
    enable_kv_cache_events: bool = False
    publisher: str | None = None
    endpoint: str = ""
    replay_endpoint: str | None = None


_RANKS = msgspec.json.Decoder(dict[str, _Rank])


def subscribe(replica: UpstreamReplica, clock: Callable[[], float]) -> KvEventSubscription | None:
    """The subscription to a replica's events, not running yet; None where it has none. `clock` gives seconds."""
    settings = replica.settings
    if not settings.kv_events:
        return None
    index = replica.ledger.kv_blocks = KvBlockIndex(settings.kv_blocks_max)
    replica.kv_events = KvEventSubscription(replica.name, index, lambda: find_source(replica), clock)
    return replica.kv_events


async def find_source(replica: UpstreamReplica) -> KvEventSource | None:
    """Where its events are; None as long as it is not up.

    Raises NoKvEvents where it has none that can be read.
    """
    settings = replica.settings
    replay = settings.kv_events_replay or ""
    if settings.kv_events_endpoint is not None:
        return KvEventSource(settings.kv_events_endpoint, replay)
    if not replica.is_healthy:
        return None
    try:
        status, body = await fetch(replica.pool, _PATH, seconds=_SECONDS, authorization=replica.authorization)
    except OSError:
        return None
    host = f"[{replica.pool.host}]" if ":" in replica.pool.host else replica.pool.host
    ranks = _ranks(body) if status == HTTPStatus.OK else None
    if ranks is None:  # an engine that does not say
        return KvEventSource(f"tcp://{host}:{_PORT}", replay)
    if len(ranks) > 1:
        raise NoKvEvents(
            f"it has {len(ranks)} data-parallel ranks with a cache each, and nothing says which one gets a request; "
            "start each rank as a server of its own and name it as a replica"
        )
    rank = next(iter(ranks.values()), _Rank())
    if not rank.enable_kv_cache_events or rank.publisher == "null":
        raise NoKvEvents(
            "they are off in its engine; start vLLM with --kv-events-config '{\"enable_kv_cache_events\": true}'"
        )
    events = _reachable(rank.endpoint, host)
    if events is None:
        raise NoKvEvents(
            f"its engine sends them to {rank.endpoint!r}, where a collector has to listen; "
            "let it publish at 'tcp://*:5557', or set kv_events_endpoint"
        )
    return KvEventSource(events, replay or _reachable(rank.replay_endpoint or "", host) or "")


def _ranks(body: bytes) -> dict[str, _Rank] | None:
    try:
        return _RANKS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _reachable(bound: str, host: str) -> str | None:
    """The address to connect to, of what an engine bound; None where it connects itself, to a collector."""
    if bound.startswith("tcp://"):
        name, _, port = bound.removeprefix("tcp://").rpartition(":")
        if name in _EVERY_ADDRESS and port.isdecimal():
            return f"tcp://{host}:{port}"
        return None
    return bound if bound.startswith("ipc://") else None
