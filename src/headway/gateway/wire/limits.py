"""Limits of size, time and number for the connections of clients."""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Limits for the connections of clients. Needs a restart.

    Attributes:
        head_bytes: Request line and headers together, at most. Trailers likewise.
        headers: Number of headers, at most.
        body_bytes: Body of one request, at most.
        body_values: Values, names and brackets in a JSON body above 128 KiB, at most, and a twentieth of it beside the
            prompt; eight blanks count as one. More gets 413, since reading them must not hold up other clients. The
            default is twice the token ids of the longest common context, a million.
        bodies_bytes: Bodies of all requests whose answer has not begun, at most; a request beyond it gets 503.
        connections: Open connections, those in a TLS handshake included, at most; one beyond it gets 503. No more than
            three quarters of the file descriptors that the process may open, or none would be left to connect to
            replicas.
        address_connections: Open connections per client address (of IPv6: per network of 64 bits). Unset: no limit,
            because a proxy has one address.
        key_connections: Open connections per API key. Unset: no limit.
        ahead_bytes: Bytes a client may send before its current request is answered (pipelining). With more, the
            requests among them get 413, and the connection ends.
        head_seconds: From a request's first byte to the end of its headers (against slow-header attacks). Also the
            longest TLS handshake.
        body_seconds: From there to the end of its body.
        idle_seconds: Between two requests.
        stalled_seconds: How long a client may leave its answer unread.
        linger_seconds: After a refusal, the silence of its client after which the connection ends. Until then what
            still comes is read past, for `body_seconds` at most, so that the client can read the answer.
        buffer_bytes: Bytes of answers waiting in memory for one client; above it the replica is not read.
    """

    head_bytes: int = 32_768
    headers: int = 128
    body_bytes: int = 64 << 20
    body_values: int = 2_000_000
    bodies_bytes: int = 2 << 30
    connections: int = 65_536
    address_connections: int | None = None
    key_connections: int | None = None
    ahead_bytes: int = 65_536
    head_seconds: float = 15.0
    body_seconds: float = 120.0
    idle_seconds: float = 75.0
    stalled_seconds: float = 60.0
    linger_seconds: float = 2.0
    buffer_bytes: int = 262_144


def within_descriptors(limits: WireLimits, share: float) -> WireLimits:
    """The same limits, with no more connections than this share of the descriptors that the process may open."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return limits
    return replace(limits, connections=max(1, min(limits.connections, int(share * descriptors))))
