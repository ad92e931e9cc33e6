"""Connections to a replica that are kept: quiet ones are used again, and no other."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from headway.gateway.wire.messages import Headers
from headway.gateway.wire.upstream_connection import UpstreamConnection
from headway.gateway.wire.upstream_pool import KEPT_SECONDS, SETTLE_SECONDS, UpstreamPool

PATIENT = 120.0
HEAD_BYTES = 65_536
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Sink:
    """Keeps one answer."""

    def __init__(self) -> None:
        self.body, self.why = b"", ""
        self.over = asyncio.Event()

    def upstream_head(self, status: int, headers: Headers, length: int | None, more: bool) -> None: ...

    def upstream_data(self, body: bytes) -> None:
        self.body += body

    def upstream_end(self, body: bytes) -> None:
        self.body += body
        self.over.set()

    def upstream_failed(self, why: str) -> None:
        self.why = why
        self.over.set()


class Peer:
    """A replica of one connection, whose bytes are sent in the moment that the test says."""

    def __init__(self) -> None:
        self.now = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.pool = UpstreamPool(
            f"http://127.0.0.1:{port}", connect_seconds=PATIENT, head_bytes=HEAD_BYTES, clock=lambda: self.now
        )

    async def open(self) -> UpstreamConnection:
        connection = await self.pool.open()
        self.socket, _ = self._listener.accept()
        return connection

    async def ask(self, connection: UpstreamConnection, *answer: bytes) -> Sink:
        sink = Sink()
        connection.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", sink)
        for part in answer:
            if not sink.over.is_set():
                self.socket.sendall(part)
                await asyncio.sleep(0.001)
        await sink.over.wait()
        return sink

    def close(self) -> None:
        self.pool.close()
        self._listener.close()
        self.socket.close()


def run(scenario: Callable[[Peer], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(PATIENT):
            peer = Peer()
            await scenario(peer)
            peer.close()
            await asyncio.sleep(0)

    asyncio.run(whole())


def test_a_connection_rests_after_its_answer_and_is_used_again_while_it_is_young() -> None:
    async def scenario(peer: Peer) -> None:
        connection = await peer.open()
        assert (await peer.ask(connection, ANSWER)).body == b"ok"
        assert peer.pool.take() is None
        peer.now += SETTLE_SECONDS
        assert peer.pool.take() is connection
        assert peer.pool.take() is None
        assert (await peer.ask(connection, ANSWER)).body == b"ok"
        peer.now += KEPT_SECONDS
        assert peer.pool.take() is None

    run(scenario)


@pytest.mark.parametrize("after", [ANSWER, b"x", None], ids=["another answer", "a byte", "its end"])
def test_what_follows_an_answer_reaches_no_other_request(after: bytes | None) -> None:
    async def scenario(peer: Peer) -> None:
        connection = await peer.open()
        assert (await peer.ask(connection, ANSWER)).body == b"ok"
        peer.now += SETTLE_SECONDS
        if after is None:
            peer.socket.shutdown(socket.SHUT_WR)
        else:
            peer.socket.sendall(after)
        assert peer.pool.take() is None  # the loop has had no turn yet to read it

    run(scenario)


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nendless: ",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;",
    ],
    ids=["headers", "one header", "trailers", "an extension"],
)
def test_headers_trailers_and_extensions_without_end_are_a_failure(start: bytes) -> None:
    async def scenario(peer: Peer) -> None:
        line = b"a" * 1_000 if start.endswith((b": ", b";")) else b"name: value\r\n" * 100
        sink = await peer.ask(await peer.open(), start, *[line] * (HEAD_BYTES // len(line) + 2))
        assert sink.why == f"the headers or trailers of its answer are longer than {HEAD_BYTES} bytes"

    run(scenario)


def test_interim_answers_without_end_are_a_failure() -> None:
    async def scenario(peer: Peer) -> None:
        interim = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100
        assert "longer" in (await peer.ask(await peer.open(), *[interim] * 30)).why

    run(scenario)


def test_much_framing_around_a_body_is_none() -> None:
    async def scenario(peer: Peer) -> None:
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        parts = [part for _ in range(40) for part in (b"1;" + b"x" * 4_000, b"\r\na\r\n")]
        assert (await peer.ask(await peer.open(), head, *parts, b"0\r\n\r\n")).body == b"a" * 40

    run(scenario)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_system_is_told_to_notice_a_peer_that_is_gone_without_a_word(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Pulling a cable shows to nobody else: a request would wait for the whole `silent_seconds`."""

    async def scenario() -> dict[str, int]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            pool = UpstreamPool(
                url, connect_seconds=PATIENT, head_bytes=HEAD_BYTES, clock=lambda: 0.0, tcp_idle_seconds=9
            )
            connection = await pool.open()
            sock = connection._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            told = {n: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, n)) for n in names if hasattr(socket, n)}
            pool.close()
            await asyncio.sleep(0)
            return told

    with asyncio.Runner(loop_factory=new_loop) as runner:
        told = runner.run(scenario())
    expected = {"TCP_KEEPIDLE": 9, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 18_000}
    assert told == {name: expected[name] for name in told}
    assert told or not sys.platform.startswith("linux")
