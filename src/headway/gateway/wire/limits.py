"""How much and how slowly a client may send before it is shown the door."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Bounds of one client connection.

    Attributes:
        head_bytes: request line and headers together.
        headers: how many.
        body_bytes: of one request.
        ahead_bytes: what a client may send before its current request is answered (pipelining).
        head_seconds: from a request's first byte to the end of its headers (slow-header attacks).
        body_seconds: from there to the end of its body.
        idle_seconds: between requests.
        stalled_seconds: how long a client may leave its answer unread.
        linger_seconds: after a refusal, how long its unread bytes are still taken, so that it can read the answer.
        buffer_bytes: answered bytes waiting in memory for one client; above it the replica is not read.
    """

    head_bytes: int = 32_768
    headers: int = 128
    body_bytes: int = 64 << 20
    ahead_bytes: int = 65_536
    head_seconds: float = 15.0
    body_seconds: float = 120.0
    idle_seconds: float = 75.0
    stalled_seconds: float = 60.0
    linger_seconds: float = 2.0
    buffer_bytes: int = 262_144
