"""GET of something small from a replica: its health, its models, its metrics."""

from __future__ import annotations

import asyncio

from headway.gateway.wire.messages import VIA_HEADER, Headers, header_lines
from headway.gateway.wire.upstream_pool import UpstreamPool

_BYTES_MAX = 8 << 20


class _Collecting:
    """A `ResponseSink` that keeps the answer."""

    def __init__(self) -> None:
        self.done: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._body = bytearray()

    def upstream_head(self, status: int, headers: Headers, length: int | None, more: bool) -> None:
        self._status = status

    def upstream_data(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > _BYTES_MAX:
            self.upstream_failed(f"its answer is longer than {_BYTES_MAX >> 20} MiB")

    def upstream_end(self, body: bytes) -> None:
        self.upstream_data(body)
        if not self.done.done():
            self.done.set_result((self._status, bytes(self._body)))

    def upstream_broke(self, error: Exception) -> None:
        """Reading it raised."""
        if not self.done.done():
            self.done.set_exception(error)

    def upstream_failed(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(OSError(why))


async def fetch(
    pool: UpstreamPool, path: str, *, seconds: float, authorization: bytes | None = None
) -> tuple[int, bytes]:
    """Status and body of a GET on a connection of its own.

    Raises:
        OSError: the replica cannot be reached, breaks off, says too much, or takes longer than `seconds`.
    """
    headers: Headers = [(b"host", pool.host_header), (b"connection", b"close"), (b"accept", b"*/*")]
    headers.append((VIA_HEADER, pool.via))
    if authorization is not None:
        headers.append((b"authorization", authorization))
    request = b"GET %b%b HTTP/1.1\r\n%b\r\n" % (pool.prefix, path.encode(), header_lines(headers))
    async with asyncio.timeout(seconds):
        connection = await pool.open(once=True)
        sink = _Collecting()
        connection.send(request, sink)
        try:
            return await sink.done
        except (asyncio.CancelledError, OSError):
            connection.drop()
            raise
