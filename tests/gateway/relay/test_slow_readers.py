"""Clients that read slowly get the whole of an answer that is done, and are not kept for ever once they have it."""

from __future__ import annotations

import asyncio
import socket

from headway.gateway.wire.client_connection import ClientConnection
from headway.gateway.wire.limits import WireLimits
from tests.gateway.wire.test_framing import Echo, Transport
from tests.support.gateway_setup import Answer, RawClient, RunGateway, Setup, post
from tests.support.scripted_replica import answers

LIMITS = WireLimits(linger_seconds=0.02)
ASKED = {"model": "m", "prompt": "x"}


class SlowClient(RawClient):
    """Takes a few kilobytes, and no more until it reads."""

    async def __aenter__(self) -> SlowClient:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect(("127.0.0.1", self.port))
        self.reader, self.writer = await asyncio.open_connection(sock=connection)
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]
        return self

    async def asks(self, setup: Setup, request: bytes) -> None:
        """Send it, with the gateway's socket as small as our own."""
        await setup.until(lambda: setup.clients)
        (there,) = setup.clients
        there._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        await self.send(request)
        await setup.until(lambda: setup.replicas[0].calls and not setup.dispatcher.counts.inside)
        assert there.has_unsent

    async def reads(self) -> Answer:
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]
        return await self.answer()


def test_an_answer_that_is_done_is_not_cut_off_behind_a_slow_reader(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(200, {"text": "x" * 200_000})
        async with SlowClient(setup.port) as client:
            await client.asks(setup, post(ASKED, headers="connection: close\r\n"))
            await asyncio.sleep(0.3)  # much longer than the gateway lingers
            answer = await client.reads()
            assert answer.json() == {"text": "x" * 200_000}
            assert await client.closes()
        await setup.until(lambda: not setup.clients)

    run_gateway(scenario, wire=LIMITS)


def test_a_client_that_caught_up_after_its_answer_was_done_is_idle_like_any_other() -> None:
    now, transport = 0.0, Transport()
    connection = ClientConnection(Echo(), WireLimits(idle_seconds=75.0), set(), lambda: now)
    connection.connection_made(transport)
    connection.pause_writing()
    connection.data_received(post(ASKED))
    connection.resume_writing()
    now = 74.0
    connection.sweep(now)
    assert not transport.is_over
    now = 75.0
    connection.sweep(now)
    assert transport.is_over


def test_the_drain_waits_until_what_is_done_was_read(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(200, {"text": "x" * 200_000})
        async with SlowClient(setup.port) as client:
            await client.asks(setup, post(ASKED))
            draining = asyncio.create_task(setup.gateway.drain())
            await asyncio.sleep(0.3)
            assert not draining.done()
            assert (await client.reads()).json() == {"text": "x" * 200_000}
            assert await draining

    run_gateway(scenario, wire=LIMITS)


def test_a_client_of_http_1_0_that_asks_to_stay_is_told_that_it_may(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(200, {})
        async with RawClient(setup.port) as client:
            for _ in range(2):
                request = post(ASKED, headers="connection: keep-alive\r\n")
                await client.send(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
                answer = await client.answer()
                assert (answer.status, answer.headers["connection"]) == (200, "keep-alive")
            await client.send(post(ASKED).replace(b"HTTP/1.1", b"HTTP/1.0"))
            assert (await client.answer()).headers["connection"] == "close"
            assert await client.closes()

    run_gateway(scenario)
