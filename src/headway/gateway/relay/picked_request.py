"""Picked request: what Envoy is to change in a request on its way to the replica that was picked for it.

Law: the replica gets what it would get from this gateway itself (`upstream_request.py`), less what is asked of an
answer that passes Envoy unread.
"""

from __future__ import annotations

from typing import NamedTuple

from headway.gateway.openai.request_body import LARGE_BYTES, with_fields
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.relay.upstream_request import large_body_parts, needed_fields
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.wire.messages import TRACE_HEADER, VIA_HEADER, Headers


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
    request: GatewayRequest, replica: UpstreamReplica, came: Headers, came_target: bytes
) -> PickedRequest:
    """The request for this replica; `came` and `came_target` are its headers and its target as Envoy has them."""
    http = request.arrived.http
    headers: Headers = [(b"x-request-id", request.arrived.request_id), (VIA_HEADER, _via(came, replica))]
    if replica.authorization is not None:
        headers.append((b"authorization", replica.authorization))
    if request.arrived.traceparent is not None:
        headers.append((TRACE_HEADER, request.arrived.traceparent))
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
    return PickedRequest(headers, removed, _body(request, needed_fields(request, replica)))


def _via(came: Headers, replica: UpstreamReplica) -> bytes:
    """Those that passed it on before, and this gateway: a request that comes back to it is a loop."""
    return b", ".join([*(value for name, value in came if name == VIA_HEADER), replica.pool.via])


def _body(request: GatewayRequest, changes: dict[str, object]) -> list[bytes | memoryview]:
    arrived = request.arrived
    content = arrived.http.body
    if arrived.body_bytes > LARGE_BYTES:
        return large_body_parts(request, changes)
    if not changes or arrived.body is None:
        return [content]
    return [with_fields(content, changes)]
