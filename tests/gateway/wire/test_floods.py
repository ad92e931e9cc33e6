"""Floods of clients that dawdle, half-close and do not read, beside good ones: these are served, those are cut."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import uvloop

from headway.gateway.queueing.counts import Outcome
from headway.gateway.wire.client_connection import ClientConnection, PendingAnswer
from headway.gateway.wire.limits import WireLimits
from headway.gateway.wire.messages import HttpRequest
from headway.gateway.wire.read_pacing import PACKETS_A_TURN
from tests.support.gateway_setup import QUICK, RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Call, echoes

EACH = 60
LIMITS = WireLimits(
    head_seconds=0.6, body_seconds=0.6, idle_seconds=0.6, stalled_seconds=0.6, linger_seconds=0.3, buffer_bytes=65_536
)
PATIENT = replace(QUICK, connect_seconds=120.0, stall_seconds=600.0, failures_to_eject=1_000)
"""No replica is judged by the speed of this machine."""
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"


async def serves(call: Call) -> None:
    """Tokens that name the prompt; to who asked for a flood more than any buffer between us holds; else nothing."""
    prompt = call.json()["prompt"]
    if prompt == "never":
        await call.left.wait()
    elif prompt == "flood":
        await call.head()
        while not call.left.is_set():
            await call.chunk(b"data: " + b"x" * 100_000 + b"\n\n")
    else:
        await echoes(gap=0.002)(call)


async def drips(client: RawClient, data: bytes, gap: float = 0.1) -> str:
    """Sends a byte now and then, for ever; how it was shown the door."""
    reading = asyncio.ensure_future(client.answer())
    for byte in data:
        if reading.done():
            break
        try:
            await client.send(bytes([byte]))
        except ConnectionError:
            break
        await asyncio.wait([reading], timeout=gap)
    try:
        return str((await reading).status)
    except (ConnectionError, asyncio.IncompleteReadError):
        return "closed"


async def slow_header(client: RawClient) -> str:
    return await drips(client, b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: " + b"z" * 500)


async def slow_body(client: RawClient) -> str:
    await client.send(HEAD + b"content-length: 500\r\n\r\n")
    return await drips(client, b"x" * 500)


async def silent(client: RawClient) -> str:
    return "closed" if await client.closes() else "answered"


async def half_closed(client: RawClient) -> str:
    await client.send(post(completion(prompt="never")))
    client.writer.write_eof()
    return "closed" if await client.closes() else "answered"


async def half_closed_early(client: RawClient) -> str:
    await client.send(HEAD + b"content-length: 10\r\n\r\nabc")
    client.writer.write_eof()
    return "closed" if await client.closes() else "answered"


async def reads_nothing(client: RawClient) -> str:
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(post(completion(prompt="flood")))
    return "cut"  # the gateway's own books tell whether it was


async def good(setup: Setup, number: int, requests: int) -> int:
    """Asks again and again on one connection, and finds each answer whole and its own; how many there were."""
    async with RawClient(setup.port) as client:
        for turn in range(requests):
            mark = f"g{number}x{turn}"
            await client.send(post(completion(prompt=mark)))
            answer = await client.answer()
            assert (answer.status, answer.whole) == (200, True), answer
            assert answer.texts.split() == [f"{mark}.{token}" for token in range(8)], answer
    return requests


def test_a_flood_of_bad_clients_harms_no_good_one_and_all_are_counted(run_gateway: RunGateway) -> None:
    bad = (slow_header, slow_body, silent, half_closed, half_closed_early, reads_nothing)

    async def scenario(setup: Setup) -> None:
        for one in setup.replicas:
            one.usual = serves
        clock = setup.stop_the_clock()
        found: Counter[tuple[str, str]] = Counter()

        async def misbehaves(client: RawClient, how: int) -> None:
            found[bad[how].__name__, await bad[how](client)] += 1

        def all_are_bad() -> bool:
            begun = sum(client._begun for client in setup.clients)
            full = sum(not client.writable for client in setup.clients)
            return (len(setup.clients), begun, full) == (3 * EACH + 10, 2 * EACH, 10)

        async with AsyncExitStack() as stack:
            kinds = [how for how, kind in enumerate(bad) for _ in range(EACH if kind is not reads_nothing else 10)]
            crowd = [(how, await stack.enter_async_context(RawClient(setup.port))) for how in kinds]
            flood = [asyncio.ensure_future(misbehaves(client, how)) for how, client in crowd]
            assert await asyncio.gather(*(good(setup, number, 8) for number in range(20))) == [8] * 20
            await setup.until(all_are_bad)  # who closed its side has left; none of the others was cut
            clock.now += 0.7
            assert await asyncio.gather(*(good(setup, number, 7) for number in range(20))) == [7] * 20
            await asyncio.gather(*flood)
            clock.now += 0.7
            # Who does not read is cut by the gateway, not by its own end: its connection is still open here.
            await setup.until(lambda: not setup.dispatcher.counts.inside)
            await setup.until(lambda: len(setup.clients) == 0)
        assert found == {
            ("slow_header", "408"): EACH,
            ("slow_body", "408"): EACH,
            ("silent", "closed"): EACH,
            ("half_closed", "closed"): EACH,
            ("half_closed_early", "closed"): EACH,
            ("reads_nothing", "cut"): 10,
        }
        counts = setup.dispatcher.counts
        assert counts.arrived == 300 + EACH + 10
        assert counts.ended == {Outcome.COMPLETED: 300, Outcome.CANCELLED: EACH + 10}
        assert not any(one.inside for one in setup.replicas)

    run_gateway(scenario, replicas=2, seats=60, wire=LIMITS, health=PATIENT)


def test_a_flood_of_connections_that_come_and_go_leaves_nothing_behind(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for one in setup.replicas:
            one.usual = serves

        async def knocks(number: int) -> None:
            async with RawClient(setup.port) as client:
                if number % 3 == 1:
                    await client.send(HEAD)
                elif number % 3 == 2:
                    await client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                    assert (await client.answer()).status == 200

        for _ in range(5):
            await asyncio.gather(*(knocks(number) for number in range(300)), good(setup, 0, 3))
        await setup.until(lambda: len(setup.clients) == 0)
        assert setup.dispatcher.counts.ended == {Outcome.COMPLETED: 15}

    run_gateway(scenario)


def test_idle_clients_leave_descriptors_for_the_others(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 80 descriptors 60 are for clients; those beyond hear why, or are cut where they are too many."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (80, 80))

    async def scenario(setup: Setup) -> None:
        async with AsyncExitStack() as stack:
            first, *_ = [await stack.enter_async_context(RawClient(setup.port)) for _ in range(60)]
            await setup.until(lambda: len(setup.clients) == 60)
            told = [await stack.enter_async_context(RawClient(setup.port)) for _ in range(8)]
            for client in told:
                answer = await client.answer()
                assert (answer.status, answer.reason) == (503, "overloaded")
                assert "60 open connections" in answer.json()["error"]["message"]
            async with RawClient(setup.port) as cut:
                assert await cut.closes()
            await first.send(post(completion()))
            assert (await first.answer()).status == 200

    run_gateway(scenario, wire=WireLimits(linger_seconds=600.0))  # those that are told stay, however slow this is


@pytest.mark.parametrize("is_chunked", [False, True])
def test_thousands_of_requests_in_one_packet_leave_the_others_their_turns(
    run_gateway: RunGateway, is_chunked: bool
) -> None:
    """So many are read at a turn of the loop as fit into 8 KiB; beyond `ahead_bytes` they are refused."""
    small = b"GET /health HTTP/1.1\r\nhost:x\r\n\r\n"

    async def scenario(setup: Setup) -> None:
        turn, answered = 0, Counter[int]()
        answer = setup.gateway.site.answer

        def counted(request: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
            answered[turn] += 1
            return answer(request, client)

        async def turns() -> None:
            nonlocal turn
            while True:
                await asyncio.sleep(0)
                turn += 1

        setup.gateway.site.answer = counted  # type: ignore[method-assign]
        counting = asyncio.create_task(turns())
        first = HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" if is_chunked else b""
        async with RawClient(setup.port) as client:
            await client.send(first + small * 8_000)
            told = (await client.reader.read()).decode()
        counting.cancel()
        assert told.count("HTTP/1.1 200 ") >= 100
        assert "HTTP/1.1 413 " in told
        assert max(answered.values()) <= 8_192 // len(small) + 1

    run_gateway(scenario)


def test_requests_in_one_packet_are_answered_in_order(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as client:
            sizes = [0, 100, 9_000, 30_000, 5, 8_192, 1]
            packet = b"".join(
                post(completion(prompt="x" * size, stream=False), headers=f"x-request-id: r{number}\r\n")
                for number, size in enumerate(sizes)
            )
            await client.send(packet)
            got = [(await client.answer()).headers["x-request-id"] for _ in sizes]
        assert got == [f"r{number}" for number in range(len(sizes))]
        assert [len(str(call.json()["prompt"])) for call in setup.replicas[0].calls] == sizes

    run_gateway(scenario)


@pytest.mark.parametrize("sent", [b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", HEAD + b"content-length: 9\r\n\r\n"])
def test_clients_that_ask_at_the_same_moment_leave_the_others_their_turns(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """So many are read at a turn of the loop; all are read, in order, and who left meanwhile is none of them."""

    async def scenario(setup: Setup) -> None:
        turn, read, order = 0, Counter[int](), list[ClientConnection]()
        feed = ClientConnection._feed

        def counted(client: ClientConnection, data: bytes) -> None:
            read[turn] += 1
            order.append(client)
            feed(client, data)

        async def turns() -> None:
            nonlocal turn
            while True:
                await asyncio.sleep(0)
                turn += 1

        async with AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(RawClient(setup.port)) for _ in range(200)]
            await setup.until(lambda: len(setup.clients) == len(crowd))
            monkeypatch.setattr(ClientConnection, "_feed", counted)
            counting = asyncio.create_task(turns())
            await setup.until(lambda: turn > 2)
            for client in crowd:
                client.writer.write(sent)  # at once: the loop has no turn between them
            crowd[-1].writer.transport.abort()
            await setup.until(lambda: len(order) >= 199)
            counting.cancel()
            assert len(set(order)) == len(order) == read.total()
            assert max(read.values()) == PACKETS_A_TURN
            if sent.startswith(b"GET"):
                for client in crowd[:-1]:
                    assert (await client.answer()).status == 200
            else:  # the rest of each request is read as well
                for client in crowd[:-1]:
                    await client.send(b'{"model":')
                    assert (await client.answer()).status == 400

    run_gateway(scenario)


def test_the_loop_of_the_server_accepts_one_connection_at_a_turn() -> None:
    """What `Gateway` relies on for plain HTTP, where it accepts nothing itself."""
    turn, accepted = 0, Counter[int]()

    class Counts(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted[turn] += 1
            transport.close()

    async def turns() -> None:
        nonlocal turn
        while accepted.total() < 100:
            await asyncio.sleep(0)
            turn += 1

    async def scenario() -> None:
        server = await asyncio.get_running_loop().create_server(Counts, "127.0.0.1", 0, backlog=4_096)
        crowd = [socket.create_connection(server.sockets[0].getsockname()[:2]) for _ in range(100)]
        async with asyncio.timeout(60):
            await turns()
        for one in crowd:
            one.close()
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
    assert max(accepted.values()) <= 2


def test_what_a_transport_had_read_already_is_read_with_the_packet_before_it(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as client:
            await setup.until(lambda: len(setup.clients) == 1)
            (connection,), packet = setup.clients, post(completion(), headers="x-request-id: a\r\n")
            pacer = connection._shared.pacer
            assert pacer is not None
            while pacer.may_read():
                pass
            for at in range(0, len(packet), 50):
                connection.data_received(packet[at : at + 50])
            assert setup.dispatcher.counts.arrived == 0
            assert (await client.answer()).texts == "t0 t1 t2 "

    run_gateway(scenario)
