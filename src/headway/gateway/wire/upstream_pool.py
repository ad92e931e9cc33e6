"""Connections to one replica: kept for reuse while they are young, opened when none is free."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from functools import cache
from urllib.parse import urlsplit

from headway.gateway.wire.name_lookup import NameLookup, first_to_connect
from headway.gateway.wire.read_pacing import ReadPacer
from headway.gateway.wire.upstream_connection import UpstreamConnection

KEPT_SECONDS = 4.0
"""Engines behind uvicorn close idle connections after 5 s (its `--timeout-keep-alive`); ours are closed before that."""
_PROBES = 3  # of a connection that rests, before it counts as broken
SETTLE_SECONDS = 0.01
"""How long a connection rests after an answer: bytes that come then belong to no request, and end the connection."""
_LARGE_PACKETS_A_TURN = 1
"""Of one replica: a packet of 256 KiB may hold 37,000 events, which take 20 to 40 ms."""


@cache
def _trusted() -> ssl.SSLContext:
    """The authorities that this machine trusts: some 20 ms to read, so they are read once for all replicas."""
    return ssl.create_default_context()


class UpstreamPool:
    """Connections to one address. `url` is http(s)://host[:port][/prefix]; `via` names this gateway in requests."""

    def __init__(
        self,
        url: str,
        *,
        connect_seconds: float,
        head_bytes: int,
        clock: Callable[[], float],
        via: bytes = b"1.1 headway",
        tcp_idle_seconds: int = 30,
    ) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.prefix = parts.path.rstrip("/").encode()
        default = self.port == (443 if parts.scheme == "https" else 80)
        bracketed = f"[{self.host}]" if ":" in self.host else self.host
        self.endpoint = f"{bracketed}:{self.port}"
        self.host_header = (bracketed if default else self.endpoint).encode()
        self.via = via
        self._ssl = _trusted() if parts.scheme == "https" else None
        self._connect_seconds = connect_seconds
        self._head_bytes = head_bytes
        self._clock = clock
        self._tcp_idle_seconds = tcp_idle_seconds
        self._lookup = NameLookup(self.host, self.port, clock)
        self._resting: deque[tuple[float, UpstreamConnection]] = deque()  # freed just now; the latest freed last
        self._idle: deque[tuple[float, UpstreamConnection]] = deque()  # freed before those, likewise
        self._all: set[UpstreamConnection] = set()
        self._pacer = ReadPacer(_LARGE_PACKETS_A_TURN)

    def without_address(self, url: bytes) -> bytes:
        """A URL that an answer names, as a path where it leads to this replica: clients never see its address."""
        try:
            parts = urlsplit(url.decode("latin-1"))
            leads_here = parts.hostname == self.host and (parts.port or self.port) == self.port
        except ValueError:  # of its port or its brackets
            return url
        if not leads_here and parts.netloc.lower().encode("latin-1") != self.host_header:
            return url
        path = parts.path.encode("latin-1").removeprefix(self.prefix) or b"/"
        return path + (b"?" + parts.query.encode("latin-1") if parts.query else b"")

    def take(self) -> UpstreamConnection | None:
        """A free connection, the one used last that has rested; None if a new one has to be opened."""
        now = self._clock()
        while self._resting and now - self._resting[0][0] >= SETTLE_SECONDS:
            self._idle.append(self._resting.popleft())
        while self._idle:
            since, connection = self._idle.pop()
            if now - since < KEPT_SECONDS and connection.is_quiet:
                return connection
            if not connection.is_lost:
                connection.close()
        return None

    async def open(self, *, once: bool = False) -> UpstreamConnection:
        """A new connection; with `once` it is not kept after its answer.

        Raises:
            OSError: no address of the name accepts it, or all of them take too long.
        """
        on_free = UpstreamConnection.close if once else self._free
        loop = asyncio.get_running_loop()
        name = self.host if self._ssl is not None else None

        async def connect(address: str) -> UpstreamConnection:
            transport, connection = await loop.create_connection(
                lambda: UpstreamConnection(on_free, self._lost, self._head_bytes, self._pacer),
                address,
                self.port,
                ssl=self._ssl,
                server_hostname=name,
            )
            _notice_dead_peer(transport, self._tcp_idle_seconds)
            return connection

        async with asyncio.timeout(self._connect_seconds):
            connection = await first_to_connect(self._lookup, connect, UpstreamConnection.drop)
        self._all.add(connection)
        return connection

    def sweep(self, now: float) -> None:
        """Close connections that were idle too long."""
        for kept in (self._idle, self._resting):
            while kept and now - kept[0][0] >= KEPT_SECONDS:
                kept.popleft()[1].close()

    def close(self) -> None:
        """Close all connections at once."""
        for connection in list(self._all):
            connection.drop()
        self._idle.clear()
        self._resting.clear()

    def _free(self, connection: UpstreamConnection) -> None:
        self._resting.append((self._clock(), connection))

    def _lost(self, connection: UpstreamConnection) -> None:
        self._all.discard(connection)


def _notice_dead_peer(transport: asyncio.BaseTransport, idle_seconds: int) -> None:
    """Have the system break a connection whose peer is gone without a word, within twice `idle_seconds`.

    By TCP keep-alive while nothing is under way, and by the user timeout (RFC 5482) while bytes are not acknowledged.
    """
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", idle_seconds),
        ("TCP_KEEPINTVL", max(1, idle_seconds // _PROBES)),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", 2_000 * idle_seconds),
    ):
        if hasattr(socket, name):  # the names differ by system
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
