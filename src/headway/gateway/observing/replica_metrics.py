"""Metrics of replicas, and of the sources that name them. Those of a replica that left go away with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headway.gateway.discovery.replica_register import FollowedSource
from headway.gateway.observing import prometheus_text as prometheus
from headway.gateway.replicas.inter_token_latency import TOKEN_SECONDS, InterTokenLatency
from headway.gateway.replicas.upstream_replica import UpstreamReplica

_ITL = prometheus.HistogramFamily(
    "headway_replica_inter_token_seconds",
    "Seconds between two parts of a stream that came one after the other, each with a token or more (ITL)",
    TOKEN_SECONDS,
)


def replica_metrics(replicas: Sequence[UpstreamReplica]) -> Iterator[str]:
    """Gauges and counters of the replicas that are there now, labelled by replica."""
    yield prometheus.gauge(
        "headway_replica_up",
        "1 if the replica is healthy and may be sent requests, else 0",
        [({"replica": replica.name}, replica.is_up) for replica in replicas],
    )
    yield prometheus.gauge(
        "headway_replica_drained",
        "1 if an operator drained the replica: it gets no new request, else 0",
        [({"replica": replica.name}, replica.is_drained) for replica in replicas],
    )
    yield prometheus.gauge(
        "headway_replica_requests",
        "Requests dispatched to the replica and not ended",
        [({"replica": replica.name}, replica.ledger.requests) for replica in replicas],
    )
    yield prometheus.gauge(
        "headway_replica_requests_max",
        "Limit of concurrent requests at the replica, adaptive or configured",
        [({"replica": replica.name}, replica.ledger.requests_max) for replica in replicas],
    )
    yield prometheus.gauge(
        "headway_replica_report_age_seconds",
        "Seconds since the replica last reported this signal",
        [
            ({"replica": replica.name, "signal": signal}, seconds)
            for replica in replicas
            for signal, seconds in replica.ages_seconds().items()
        ],
    )
    yield prometheus.gauge(
        "headway_replica_seconds_per_token",
        "Seconds per token that the replica's own latest answers show, by type: input or output",
        [
            ({"replica": replica.name, "type": kind}, seconds)
            for replica in replicas
            for kind, seconds in replica.learned_costs.shown().items()
        ],
    )
    yield _ITL.head
    for replica in replicas:
        yield _ITL.lines(_histogram(replica.token_latency), prometheus.label_text({"replica": replica.name}))
    yield prometheus.counter(
        "headway_replica_ejections",
        "Times the replica was ejected or not reached",
        [({"replica": replica.name}, replica.state.ejections_total) for replica in replicas],
    )
    yield prometheus.counter(
        "headway_replica_ejections_withheld",
        "Times the replica stayed although it failed, because too few others were up",
        [({"replica": replica.name}, replica.state.ejections_withheld) for replica in replicas],
    )
    yield prometheus.counter(
        "headway_replica_failures",
        "Requests that the replica did not answer, or not properly",
        [({"replica": replica.name}, replica.state.failure_share.failed_in_all) for replica in replicas],
    )
    yield prometheus.counter(
        "headway_replica_refusals",
        "Requests that the replica refused because it has too many (status 429, 503 or 529)",
        [({"replica": replica.name}, replica.state.refusals_total) for replica in replicas],
    )


def _histogram(latency: InterTokenLatency) -> prometheus.BucketHistogram:
    histogram = prometheus.BucketHistogram(TOKEN_SECONDS)
    histogram.add(latency.counts, latency.seconds)
    return histogram


def source_metrics(sources: Sequence[FollowedSource]) -> Iterator[str]:
    """Gauges and counters of the sources that are followed, labelled by source."""
    yield prometheus.gauge(
        "headway_replica_source_up",
        "1 if the source of replicas could be read when it was looked at last, else 0",
        [({"source": one.label}, one.findings is not None and not one.report.fault) for one in sources],
    )
    yield prometheus.gauge(
        "headway_replica_source_replicas",
        "Replicas that the source names",
        [({"source": one.label}, len(one.findings.replicas)) for one in sources if one.findings is not None],
    )
    yield prometheus.counter(
        "headway_replica_source_faults",
        "Times that the source of replicas could not be read",
        [({"source": one.label}, one.report.faults) for one in sources],
    )
