"""Picked request: what Envoy is to change in a request on its way to the replica that was picked for it.

Law: the replica gets what it would get from this gateway itself (`upstream_request.py`), less what is asked of answers
where they pass Envoy unread.
"""

from __future__ import annotations

from typing import NamedTuple

from headway.gateway.openai.request_body import LARGE_BYTES, with_fields, with_usage_asked
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.relay.upstream_request import (
    ENCODING_HEADER,
    large_body_parts,
    needed_fields,
    needed_headers,
    wanted_fields,
)
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.wire.messages import Headers

_ID_HEADER = b"x-request-id"


class PickedRequest(NamedTuple):
    """One request as its replica is to get it.

    Attributes:
        headers: that take the place of those of the same name; `:path` among them if another path is to be asked.
        removed: names of headers that the replica is not to get.
        body: its parts.
    """

    headers: Headers
    removed: list[bytes]
    body: list[bytes | memoryview]


def picked_request(
    request: GatewayRequest, replica: UpstreamReplica, came: Headers, came_target: bytes, *, reads_answer: bool
) -> PickedRequest:
    """The request for this replica.

    Args:
        request: that waited.
        replica: that was picked for it.
        came: its headers as Envoy has them.
        came_target: its target, likewise.
        reads_answer: whether Envoy shows the body of the answer.
    """
    http = request.arrived.http
    headers = needed_headers(request, replica)
    if http.named.get(_ID_HEADER) != request.arrived.request_id:
        headers.append((_ID_HEADER, request.arrived.request_id))
    removed: list[bytes] = []
    if http.headers is not came:  # its key, or hints that the key does not allow, were taken out
        ours = {name for name, _ in headers}
        changed = [pair for pair in http.headers if pair not in came and pair[0] not in ours]
        headers += changed
        kept = ours.union(name for name, _ in http.headers)
        removed = [name for name, _ in came if name not in kept]
    target = replica.pool.prefix + http.target
    if target != came_target:
        headers.append((b":path", target))
    if not reads_answer:
        return PickedRequest(headers, removed, _body(request, needed_fields(request, replica)))
    if request.arrived.endpoint.is_generation:  # a packed answer could not be read
        headers.append((ENCODING_HEADER, b"identity"))
    return PickedRequest(headers, removed, _body(request, wanted_fields(request, replica)))


def _body(request: GatewayRequest, changes: dict[str, object]) -> list[bytes | memoryview]:
    arrived = request.arrived
    content = arrived.http.body
    if arrived.body_bytes > LARGE_BYTES:
        return large_body_parts(request, changes)
    if not changes or arrived.body is None:
        return [content]
    if "stream_options" in changes:
        changes |= with_usage_asked(content)
    return [with_fields(content, changes)]
