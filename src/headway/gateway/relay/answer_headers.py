"""Headers of an answer as its client gets them: the replica's, less those of its hop and its address, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote

from headway.gateway.budgets.rate_limit_headers import RATE_LIMIT_NAMES
from headway.gateway.cross_origin import TELLS_OTHER_ORIGINS, without_origin_twice
from headway.gateway.openai.answer_readers import JsonReader, SequencesReader, StreamReader
from headway.gateway.openai.client_terms import CLASS_HEADER
from headway.gateway.openai.error_responses import REASON_HEADER
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.relay.upstream_request import LOAD_HEADER, asks_for_load, hides_usage
from headway.gateway.replicas.load_report import read_load_header
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.wire.messages import HOP_BY_HOP, Headers, connection_names

_ID_HEADER, _REPLICA_HEADER, _QUEUE_HEADER = b"x-request-id", b"x-headway-replica", b"x-headway-queue-ms"
_TIER_HEADER, _MODEL_HEADER = b"x-headway-service-tier", b"x-headway-model"
_AS_THEY_ARE = "/:@+,;=!$&'()*[]"  # in the name of a model; what no header may hold is percent-encoded
_OURS = {REASON_HEADER, _ID_HEADER, _REPLICA_HEADER, _QUEUE_HEADER, _TIER_HEADER, _MODEL_HEADER, CLASS_HEADER}
_STREAM_TYPE = b"text/event-stream"
UNBUFFERED = b"x-accel-buffering", b"no"
"""Asks nginx, and others that know it, to pass each event on as it comes."""
_NOT_RETURNED = HOP_BY_HOP | {b"content-length"} | _OURS


def answer_headers(
    request: GatewayRequest, replica: UpstreamReplica, headers: Headers, named: Mapping[bytes, bytes]
) -> Headers:
    """The headers for the client; `named` are the replica's `headers` by name."""
    dropped = _NOT_RETURNED if b"connection" not in named else _NOT_RETURNED | connection_names(headers)
    if LOAD_HEADER in named and asks_for_load(request, replica):
        dropped = dropped | {LOAD_HEADER}
    returned = [pair for pair in headers if pair[0] not in dropped and not pair[0].startswith(TELLS_OTHER_ORIGINS)]
    if request.queued.budget is not None:
        returned = [pair for pair in returned if not pair[0].startswith(RATE_LIMIT_NAMES)]
    if request.arrived.http.reply_headers:
        returned = without_origin_twice(returned, request.arrived.http.reply_headers)
    if b"location" in named:
        hidden = replica.pool.without_address
        returned = [(name, hidden(value) if name == b"location" else value) for name, value in returned]
    is_stream = media_type(named.get(b"content-type", b"")) == _STREAM_TYPE
    if is_stream:
        returned = [pair for pair in returned if pair[0] != UNBUFFERED[0]]
    return [*returned, *own_headers(request, replica, is_stream=is_stream)]


def own_headers(request: GatewayRequest, replica: UpstreamReplica, *, is_stream: bool) -> Headers:
    """What the gateway tells the client of its request: its id, its replica, how long it waited, what was chosen.

    `is_stream`: its events are to pass proxies at once.
    """
    arrived = request.arrived
    waited = (request.queued.dispatched_at or arrived.arrived_at) - arrived.arrived_at
    return [
        (_ID_HEADER, arrived.request_id),
        (_REPLICA_HEADER, replica.shown_as.encode("latin-1", "replace")),
        (_QUEUE_HEADER, b"%d" % (waited * 1000)),
        *chosen_headers(request),
        *([UNBUFFERED] if is_stream else []),
    ]


def chosen_headers(request: GatewayRequest) -> Headers:
    """What was chosen for a request at its arrival: another model than it names, and the service tier that counts."""
    arrived, told = request.arrived, []
    if arrived.is_renamed:
        told.append((_MODEL_HEADER, quote(arrived.model, safe=_AS_THEY_ARE).encode()))
    if arrived.service_tier is not None:
        told.append((_TIER_HEADER, arrived.service_tier.encode()))
    if arrived.request_class != "online":
        told.append((CLASS_HEADER, arrived.request_class.encode()))
    return told


def note_load(replica: UpstreamReplica, value: bytes) -> None:
    """Take note of the load that an answer reports in its header."""
    report = read_load_header(value)
    if report is not None:
        replica.reported_in_header(report)


def answer_reader(
    request: GatewayRequest, replica: UpstreamReplica, named: Mapping[bytes, bytes], length: int | None
) -> StreamReader | JsonReader | None:
    """The reader of an answer with these headers and this length; None where it is neither a stream nor JSON."""
    if named.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        return None
    kind, usage = media_type(named.get(b"content-type", b"")), request.arrived.endpoint.usage
    if kind == _STREAM_TYPE:
        hide, sequences = hides_usage(request, replica), request.queued.sequences
        if sequences > 1:
            return SequencesReader(sequences, hide_usage=hide, fields=usage)
        return StreamReader(hide_usage=hide, fields=usage)
    return JsonReader(usage, may_be_cut=length is None) if kind == b"application/json" else None


@lru_cache(maxsize=256)
def media_type(content_type: bytes) -> bytes:
    """The type itself, without its parameters."""
    return content_type.partition(b";")[0].strip().lower()
