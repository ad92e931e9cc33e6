"""Who is slow holds back who sends, in both directions, and what is held for them meanwhile is bounded."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

from headway.gateway.settings import ReplicaSettings
from headway.gateway.wire.limits import WireLimits
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Flood

READ_BYTES = 262_144  # the most that one read of the loop takes


def test_a_slow_client_stops_the_reading_of_its_replica_within_a_bound(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        flood = Flood(300)
        setup.replicas[0].next.append(flood)
        async with RawClient(setup.port) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(post(completion()))
            await setup.until(lambda: any(not one.writable for one in setup.clients))
            (slow,) = [one for one in setup.clients if not one.writable]
            held = flood.sent
            for _ in range(20):
                await asyncio.sleep(0.01)
                assert slow._transport.get_write_buffer_size() <= WireLimits().buffer_bytes + READ_BYTES + 64
            assert flood.sent <= held + 80, "its replica is read on"  # what fits into the sockets
            assert flood.sent < 300
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            answer = await client.answer()
            assert answer.whole
            assert len(answer.body) == 300 * 100_008 + len(b"data: [DONE]\n\n")

    run_gateway(scenario)


def test_a_replica_that_does_not_read_fills_no_memory_with_what_its_client_sends_ahead(run_gateway: RunGateway) -> None:
    """A body is taken whole, since its prompt decides when it is sent; what comes behind it is refused, not kept."""
    gate = asyncio.Event()
    bodies: list[int] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                told = b'{"data":[{"id":"m"}]}'
                if head.startswith(b"post"):
                    await gate.wait()
                    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                    bodies.append(len(await reader.readexactly(length)))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(told), told))

    async def scenario(setup: Setup) -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        setup.gateway.reload(
            replace(setup.settings, replica=(ReplicaSettings(url=url, name="slow", learn_usage=False),))
        )
        await setup.until(lambda: setup.dispatcher.replicas[0].is_up)
        large = post(completion(prompt="x" * 24_000_000))
        async with RawClient(setup.port) as client:
            client.writer.write(large + large)
            transport = client.writer.transport
            await setup.until(lambda: transport.get_write_buffer_size() == 0)
            (connection,) = setup.clients
            assert len(connection._ahead) <= WireLimits().ahead_bytes
            await setup.until(lambda: setup.dispatcher.counts.arrived)  # a large body is read in steps
            assert setup.dispatcher.counts.arrived == 1
            assert len(connection._ahead) <= WireLimits().ahead_bytes
            assert (await setup.get("/health")).status == 200
            gate.set()
            assert (await client.answer()).status == 200
            assert (await client.answer()).status == 413
        assert bodies == [len(large.partition(b"\r\n\r\n")[2])]
        setup.gateway.reload(setup.settings)  # no probe connects any more
        await asyncio.sleep(0.02)
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.02)

    run_gateway(scenario)


def test_who_asks_on_and_never_reads_is_not_answered_into_memory(run_gateway: RunGateway) -> None:
    """Small questions with large answers, one behind the other: the next is taken up when the client has read."""

    async def scenario(setup: Setup) -> None:
        ask, asked = b"GET /headway/live.js HTTP/1.1\r\nhost: x\r\n\r\n", 1_500
        async with RawClient(setup.port) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.writer.write(ask * asked)
            await setup.until(lambda: any(not one.writable for one in setup.clients))
            (slow,) = setup.clients
            for _ in range(20):
                await asyncio.sleep(0.01)
                assert slow._transport.get_write_buffer_size() <= WireLimits().buffer_bytes + READ_BYTES
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            for _ in range(asked):
                assert (await client.answer()).status == 200

    run_gateway(scenario)
