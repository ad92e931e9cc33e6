"""Large packets of one replica take turns, so that a crowd of them does not hold the event loop; nothing is lost."""

from __future__ import annotations

import asyncio

from headway.gateway.wire.messages import Headers
from headway.gateway.wire.read_pacing import ReadPacer
from headway.gateway.wire.upstream_connection import LARGE_PACKET_BYTES, UpstreamConnection
from tests.support.fake_transport import FakeTransport

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
LARGE = b"x" * LARGE_PACKET_BYTES


class Answer:
    """One request's connection and what came of its answer."""

    def __init__(self, pacer: ReadPacer, length: int) -> None:
        self.body = b""
        self.has_ended = False
        self.failed: str | None = None
        self.connection = UpstreamConnection(lambda _: None, lambda _: None, 65_536, pacer)
        self.transport = FakeTransport()
        self.connection.connection_made(self.transport)
        self.connection.send(b"GET / HTTP/1.1\r\n\r\n", self)
        self.connection.data_received(HEAD % length)

    def upstream_head(self, status: int, headers: Headers, length: int | None, more: bool) -> None: ...

    def upstream_data(self, body: bytes) -> None:
        self.body += body

    def upstream_end(self, body: bytes) -> None:
        self.body += body
        self.has_ended = True

    def upstream_failed(self, why: str) -> None:
        self.failed = why

    def upstream_broke(self, error: Exception) -> None:
        raise error


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def test_one_large_packet_is_read_at_a_turn_and_small_ones_pass() -> None:
    async def run() -> None:
        pacer = ReadPacer(1)
        large = [Answer(pacer, 2 * len(LARGE)) for _ in range(5)]
        small = Answer(pacer, 100)
        for answer in large:
            answer.connection.data_received(LARGE)
        small.connection.data_received(b"token")
        assert [len(answer.body) for answer in large] == [len(LARGE), 0, 0, 0, 0]
        assert [answer.transport.reads for answer in large] == [True, False, False, False, False]
        assert small.body == b"token"
        read = []
        for _ in range(6):
            await turns(1)
            read.append(sum(len(answer.body) for answer in large) // len(LARGE))
        assert read == [2, 3, 4, 5, 5, 5]
        assert all(answer.transport.reads for answer in large)
        for answer in large:
            answer.connection.data_received(LARGE)
        await turns(6)
        assert all(answer.body == 2 * LARGE and answer.has_ended for answer in large)

    asyncio.run(run())


def test_what_still_comes_behind_a_packet_that_waits_keeps_its_place() -> None:
    async def run() -> None:
        pacer = ReadPacer(1)
        first, second = Answer(pacer, len(LARGE)), Answer(pacer, len(LARGE) + 3)
        first.connection.data_received(LARGE)
        second.connection.data_received(LARGE)
        second.connection.data_received(b"end")
        assert second.body == b""
        await turns(3)
        assert second.body == LARGE + b"end"
        assert second.has_ended

    asyncio.run(run())


def test_a_packet_that_waits_is_read_when_its_connection_is_lost() -> None:
    async def run() -> None:
        pacer = ReadPacer(1)
        first, second, third = Answer(pacer, len(LARGE)), Answer(pacer, len(LARGE)), Answer(pacer, 2 * len(LARGE))
        for answer in (first, second, third):
            answer.connection.data_received(LARGE)
        second.connection.connection_lost(None)
        third.connection.connection_lost(ConnectionResetError())
        assert (second.body, second.has_ended, second.failed) == (LARGE, True, None)
        assert third.body == LARGE
        assert third.failed == "it closed the connection in the middle of its answer"
        await turns(4)  # their turns come, and nothing is left to read

    asyncio.run(run())


def test_a_client_that_does_not_read_keeps_the_connection_paused_beyond_the_turn() -> None:
    async def run() -> None:
        pacer = ReadPacer(1)
        first, second = Answer(pacer, len(LARGE)), Answer(pacer, 2 * len(LARGE))
        first.connection.data_received(LARGE)
        second.connection.data_received(LARGE)
        second.connection.pause()
        await turns(3)
        assert second.body == LARGE
        assert not second.transport.reads
        second.connection.resume()
        assert second.transport.reads
        second.connection.pause()
        second.connection.resume()
        assert second.transport.reads

    asyncio.run(run())


def test_a_request_that_is_dropped_leaves_its_waiting_packet_unread() -> None:
    async def run() -> None:
        pacer = ReadPacer(1)
        first, second = Answer(pacer, len(LARGE)), Answer(pacer, 2 * len(LARGE))
        first.connection.data_received(LARGE)
        second.connection.data_received(LARGE)
        second.connection.drop()
        await turns(3)
        assert second.body == b""
        assert second.failed is None
        assert second.transport.closed

    asyncio.run(run())
