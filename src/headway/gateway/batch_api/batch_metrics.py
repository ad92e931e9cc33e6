"""Metrics of the Batch API, of a gateway that has one."""

from __future__ import annotations

from collections.abc import Iterator

from headway.gateway.batch_api.disk_space import DiskSpace
from headway.gateway.batch_api.open_batches import OpenBatches
from headway.gateway.observing import prometheus_text as prometheus


def batch_metrics(batches: OpenBatches, space: DiskSpace, bytes_max: int) -> Iterator[str]:
    """Gauges and counters."""
    yield prometheus.gauge(
        "headway_batches",
        "Batches of the Batch API that are kept, by status",
        [({"status": status}, number) for status, number in batches.statuses.items()],
    )
    yield prometheus.gauge(
        "headway_batch_requests",
        "Requests of batches that have not ended, by state: waiting, in a file or in the queue, or sent to a replica",
        [({"state": "waiting"}, batches.lines_waiting), ({"state": "sent"}, batches.lines_sent)],
    )
    yield prometheus.counter(
        "headway_batch_requests_ended",
        "Requests of batches that ended, by result: completed (in an output file) or failed (in an error file)",
        [({"result": result}, batches.sent.ended[result]) for result in ("completed", "failed")],
    )
    yield prometheus.counter(
        "headway_batch_requests_sent_again",
        "Requests of batches that were under way when the gateway before this one ended, and wait again",
        [({}, batches.sent_again)],
    )
    yield prometheus.counter(
        "headway_batch_store_faults",
        "Times that the folder of batches could not be read or written, which holds batches up",
        [({}, batches.store_faults)],
    )
    yield prometheus.gauge("headway_batch_store_bytes", "Bytes of files and results of batches", [({}, space.bytes)])
    yield prometheus.gauge(
        "headway_batch_store_bytes_max", "Limit of those bytes: `batches.bytes_max`", [({}, bytes_max)]
    )
    yield prometheus.gauge(
        "headway_batch_disk_free_bytes", "Free bytes of the disk with the folder of batches", [({}, space.free_bytes)]
    )
