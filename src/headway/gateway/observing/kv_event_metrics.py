"""Metrics of replicas' KV events, of the replicas whose events are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headway.gateway.observing import prometheus_text as prometheus
from headway.gateway.replicas.kv_event_subscription import KvEventSubscription
from headway.gateway.replicas.upstream_replica import UpstreamReplica


def kv_event_metrics(replicas: Sequence[UpstreamReplica]) -> Iterator[str]:
    """Gauges and counters, labelled by replica."""
    read = [replica.kv_events for replica in replicas if replica.kv_events is not None]
    yield prometheus.gauge(
        "headway_replica_kv_events_connected",
        "1 if the replica's KV events are being read, else 0",
        [({"replica": one.name}, one.is_connected) for one in read],
    )
    yield prometheus.gauge(
        "headway_replica_kv_index_whole",
        "1 if all blocks of the replica's prefix cache are known, 0 after a gap",
        [({"replica": one.name}, one.index.is_whole) for one in read],
    )
    yield prometheus.gauge(
        "headway_replica_kv_blocks",
        "Blocks that the replica's prefix cache holds, by its KV events",
        [({"replica": one.name}, len(one.index)) for one in read],
    )
    yield prometheus.gauge(
        "headway_replica_kv_event_lag_seconds",
        "Seconds from the writing of the latest KV events to their taking in, by the clocks of both machines",
        [({"replica": one.name}, one.counts.lag_seconds) for one in read if one.counts.lag_seconds is not None],
    )
    yield from _counters(read)


def _counters(read: Sequence[KvEventSubscription]) -> Iterator[str]:
    for name, help_text, field in (
        ("batches", "Batches of KV events taken in", "batches"),
        ("replayed", "Those batches that came from a replay", "replayed"),
        ("gaps", "Times that batches of KV events were missing, lost connections among them", "gaps"),
        ("restarts", "Times that the numbers of the batches began again, because the engine did", "restarts"),
        ("malformed", "Messages that were no KV events", "malformed"),
    ):
        yield prometheus.counter(
            f"headway_replica_kv_event_{name}",
            help_text,
            [({"replica": one.name}, getattr(one.counts, field)) for one in read],
        )
    yield prometheus.counter(
        "headway_replica_kv_blocks_left_out",
        "Blocks not kept in mind: what is before them is not known, or `kv_blocks_max` is reached",
        [({"replica": one.name}, one.index.left_out) for one in read],
    )
