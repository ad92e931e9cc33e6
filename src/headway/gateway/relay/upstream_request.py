"""Request to a replica: the client's request, byte for byte, except for fields that this replica understands.

Fields are written only where the replica's settings ask for it or its metrics show that it reads them. They are a
stream's usage, the priority with the engine's sign, and hints for Headway's vLLM plug-in (`domain/engine_hints.py`).
"""

from __future__ import annotations

from itertools import chain

from headway.domain import engine_hints as hints
from headway.domain.later_deadlines import LaterDeadlines
from headway.domain.request import expected_output_tokens
from headway.gateway.openai.allowed_paths import METHODS, name_in_api
from headway.gateway.openai.endpoints import UNLISTED
from headway.gateway.openai.found_fields import found_fields
from headway.gateway.openai.large_body import written_in_parts
from headway.gateway.openai.request_body import (
    LARGE_BYTES,
    NO_PRIORITY,
    StreamOptions,
    extra_arguments,
    slices,
    with_fields,
    with_usage_asked,
)
from headway.gateway.queueing.learning_from_answer import SESSION_HEADER
from headway.gateway.queueing.request_state import GatewayRequest, QueuedRequest
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.trusted_sources import FORWARDED_HEADERS
from headway.gateway.wire.messages import HOP_BY_HOP, TRACE_HEADER, VIA_HEADER, Headers, connection_names, header_lines
from headway.gateway.wire.upstream_connection import ResponseSink, UpstreamConnection

LOAD_HEADER = b"endpoint-load-metrics"
LOAD_FORMAT_HEADER = b"endpoint-load-metrics-format"
_NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"x-request-id"}
_NOT_FORWARDED_FROM_CLIENTS = _NOT_FORWARDED | FORWARDED_HEADERS
ENCODING_HEADER = b"accept-encoding"
_SENT_BYTES = 256 << 10
USAGE_ASKED = {"include_usage": True}
_SIGNS = {"lower-first": 1, "higher-first": -1}


def send_request(
    request: GatewayRequest, replica: UpstreamReplica, connection: UpstreamConnection, sink: ResponseSink
) -> None:
    """Send the whole request to this replica; a large body follows in pieces, one at a turn of the event loop."""
    if request.arrived.body_bytes <= LARGE_BYTES:
        connection.send(upstream_request(request, replica), sink)
    else:
        head, parts = upstream_parts(request, replica)
        connection.send(head, sink, chain.from_iterable(slices(part, _SENT_BYTES) for part in parts))


def upstream_request(request: GatewayRequest, replica: UpstreamReplica) -> bytes:
    """The whole request as bytes for this replica: the client's body, with the fields set that the replica needs."""
    body, changes = request.arrived.http.body, wanted_fields(request, replica)
    if "stream_options" in changes:
        changes |= with_usage_asked(body)
    if changes:
        body = with_fields(body, changes)
    return _head(request, replica, len(body)) + body


def upstream_parts(request: GatewayRequest, replica: UpstreamReplica) -> tuple[bytes, list[bytes | memoryview]]:
    """The same of a request with a large body, which is not copied: its head, and the parts of its body."""
    parts = large_body_parts(request, wanted_fields(request, replica))
    return _head(request, replica, sum(map(len, parts))), parts


def large_body_parts(request: GatewayRequest, changes: dict[str, object]) -> list[bytes | memoryview]:
    """A large body as it is sent: with these changes of its JSON, and with what was found to be replaced in it."""
    arrived = request.arrived
    content, found = arrived.http.body, found_fields(arrived.http)
    if arrived.body is None:
        return [content] if found is None else found.written(content)
    if found is not None:
        changes = found.changes | changes
    if not changes:
        return [content]
    fields = None if found is None else found.json
    return written_in_parts(content, arrived.body, changes, arrived.asked_model, fields)


def needed_headers(request: GatewayRequest, replica: UpstreamReplica) -> Headers:
    """The headers that this replica needs, whether its answer is read or not."""
    arrived, headers = request.arrived, []
    if replica.authorization is not None:
        headers.append((b"authorization", replica.authorization))
    if arrived.traceparent is not None:
        headers.append((TRACE_HEADER, arrived.traceparent))
    if replica.kv_events is not None and arrived.endpoint.is_generation and arrived.http.header(SESSION_HEADER) is None:
        headers.append((SESSION_HEADER, replica.session_id(arrived.number).encode("latin-1")))
    return headers


def _head(request: GatewayRequest, replica: UpstreamReplica, body_bytes: int) -> bytes:
    arrived, pool = request.arrived, replica.pool
    http = arrived.http
    ours: Headers = []  # each takes the place of the client's
    if arrived.endpoint.is_generation:  # a packed answer could not be read
        ours.append((ENCODING_HEADER, b"identity"))
    ours += needed_headers(request, replica)
    dropped = _NOT_FORWARDED if http.keeps_forwarded else _NOT_FORWARDED_FROM_CLIENTS
    if b"connection" in http.named:
        dropped = dropped | connection_names(http.headers)
    replaced = dict(ours)
    headers = [pair for pair in http.headers if pair[0] not in dropped and pair[0] not in replaced]
    headers += ours
    if asks_for_load(request, replica):
        headers.append((LOAD_FORMAT_HEADER, b"json"))
    headers += [(b"host", pool.host_header), (VIA_HEADER, pool.via), (b"x-request-id", arrived.request_id)]
    if body_bytes or http.method not in (b"GET", b"DELETE", b"OPTIONS"):
        headers.append((b"content-length", b"%d" % body_bytes))
    line = b"%b %b%b HTTP/1.1\r\n" % (http.method, pool.prefix, http.target)
    return b"".join([line, header_lines(headers), b"\r\n"])


def hides_usage(request: GatewayRequest, replica: UpstreamReplica) -> bool:
    """Whether the gateway asks for a usage chunk that the client did not ask for; it is then hidden."""
    body = request.arrived.body
    if body is None or not body.stream or not replica.settings.learn_usage:
        return False
    asked = isinstance(body.stream_options, StreamOptions) and body.stream_options.include_usage
    return not asked and request.arrived.endpoint.usage_on_request


def asks_for_load(request: GatewayRequest, replica: UpstreamReplica) -> bool:
    """Whether the gateway asks for the load header, and removes it: the client did not ask for it."""
    return replica.settings.load_header and request.arrived.http.header(LOAD_FORMAT_HEADER) is None


def engine_hints(queued: QueuedRequest, *, rank: bool) -> dict[str, object]:
    """Hints about one request for the vLLM plug-in, which reads them from `vllm_xargs`.

    Its rank is its number in our order of dispatch: an engine that serves by it keeps our order.
    """
    now = queued.dispatched_at or queued.arrived_at
    fields: dict[str, object] = {hints.EXPECTED_TOKENS: max(1, round(expected_output_tokens(queued)))}
    if rank:
        fields[hints.RANK] = min(queued.rank, hints.MAX_RANK)
    if queued.deadline is not None:
        fields[hints.DEADLINE_MS] = max(0, round((queued.deadline - now) * 1000))
    if queued.later_deadlines is not None:
        fields |= _later_hints(queued.later_deadlines.moved(-now))
    if queued.is_offline:
        fields[hints.CLASS] = "offline"
    for name, text in ((hints.TENANT, queued.tenant), (hints.SESSION, queued.session)):
        if text and text.isprintable():
            fields[name] = text[: hints.MAX_TEXT]
    return fields


def _later_hints(later: LaterDeadlines) -> dict[str, object]:
    """Deadlines after the first token and the place in a program, as times that are left."""
    fields: dict[str, object] = {}
    if later.tpot_seconds is not None:
        fields[hints.TPOT_MS] = later.tpot_seconds * 1000
    if later.end is not None:
        fields[hints.END_DEADLINE_MS] = max(0, round(later.end * 1000))
    program = later.program
    if program is not None and program.program.isprintable():
        fields[hints.PROGRAM] = program.program[: hints.MAX_TEXT]
        fields[hints.PROGRAM_STAGE] = program.stage
        if program.stages is not None:
            fields[hints.PROGRAM_STAGES] = program.stages
        if program.deadline is not None:
            fields[hints.PROGRAM_DEADLINE_MS] = max(0, round(program.deadline * 1000))
    return fields


def _is_of_the_api(request: GatewayRequest) -> bool:
    """Whether its path is one of the usual APIs: what `forward` adds is an engine's own, and goes out as it came."""
    arrived = request.arrived
    return arrived.endpoint is not UNLISTED or name_in_api(arrived.http.path) in METHODS


def wanted_fields(request: GatewayRequest, replica: UpstreamReplica) -> dict[str, object]:
    """The fields that are set for this replica where its answer is read: usage is asked for, too."""
    changes = needed_fields(request, replica)
    if hides_usage(request, replica):
        changes["stream_options"] = USAGE_ASKED
    return changes


def needed_fields(request: GatewayRequest, replica: UpstreamReplica) -> dict[str, object]:
    """The fields that this replica needs, whether its answer is read or not."""
    body = request.arrived.body
    changes: dict[str, object] = {}
    if body is None:
        return changes
    if request.arrived.is_renamed:
        changes["model"] = request.arrived.model
    sign = _SIGNS.get(replica.settings.priority)
    if sign is not None and _is_of_the_api(request):
        changes["priority"] = sign * request.arrived.priority
    if replica.reads_hints and request.arrived.endpoint.takes_engine_hints:
        # What the client wrote there itself is replaced: hints count only as far as its key allows them.
        own = {key: value for key, value in extra_arguments(body).items() if key not in hints.NAMES}
        changes["vllm_xargs"] = own | engine_hints(request.queued, rank=sign is None)
        if sign is None and bytes(body.priority_bytes) not in NO_PRIORITY:
            changes["priority"] = 0
    return changes
