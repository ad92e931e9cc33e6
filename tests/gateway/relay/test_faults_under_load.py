"""Every fault of a replica under load, its outcome counted on both sides: nothing lost, nothing answered twice."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from headway.gateway.settings import QueueSettings, ReplicaSettings
from tests.support.counted_clients import Books
from tests.support.gateway_setup import QUICK, RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import (
    Call,
    Script,
    answers,
    dies_at_once,
    echoes,
    hangs,
    waits_for,
)

ALL = 48


@pytest.mark.parametrize(
    "fault", [dies_at_once, hangs, answers(500, {}), answers(429, {})], ids=["closes", "hangs", "500", "429"]
)
def test_a_fault_before_the_first_byte_costs_nobody_an_answer(run_gateway: RunGateway, fault: Script) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual, setup.replicas[1].usual = fault, echoes(gap=0.002)
        books = Books(setup)
        await asyncio.gather(*(books.ask() for _ in range(ALL)))
        books.agree()
        assert books.ended == {"whole": ALL}
        # One more than calls: taken from an ejected replica before that had read it.
        assert setup.dispatcher.counts.retried >= len(setup.replicas[0].calls) > 0

    run_gateway(scenario, replicas=2, seats=4, health=replace(QUICK, first_byte_seconds=0.4))


@pytest.mark.parametrize("end", [b"", b"zz\r\nnot a chunk\r\n"], ids=["dies", "breaks-framing"])
def test_a_fault_after_the_first_byte_is_told_to_those_and_only_those(run_gateway: RunGateway, end: bytes) -> None:
    async def scenario(setup: Setup) -> None:
        async def broken(call: Call) -> None:
            nonlocal faults
            faults += 1
            mark = call.json()["prompt"]
            await call.head()
            await call.event({"choices": [{"text": f"{mark}.0 "}]})
            await asyncio.sleep(0.03)  # a reset would overtake what was sent a moment ago
            await call.send(end)
            call.writer.close()

        async def one_in_three(call: Call) -> None:
            await (broken if len(setup.replicas[0].calls) % 3 == 1 else echoes(gap=0.002))(call)

        faults = 0
        setup.replicas[0].usual, setup.replicas[1].usual = one_in_three, echoes(gap=0.002)
        books = Books(setup)
        await asyncio.gather(*(books.ask() for _ in range(ALL)))
        books.agree()
        assert books.ended == {"whole": ALL - faults, "broken": faults}
        assert faults > 0
        assert setup.dispatcher.counts.retried == 0

    run_gateway(scenario, replicas=2, seats=4, health=replace(QUICK, failures_to_eject=1_000))


# A replica that is a process of its own


@asynccontextmanager
async def process(port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A replica that streams slowly; gives its process and port. It must have been killed by the end."""
    line = (sys.executable, "-m", "tests.support.replica_process", str(port))
    made = await asyncio.create_subprocess_exec(*line, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3])
    assert made.stdout is not None
    try:
        yield made, int(await made.stdout.readline())
    finally:
        if made.returncode is None:
            made.kill()
        await made.wait()


def with_process(setup: Setup, port: int, seats: int = 4) -> None:
    """Put the process beside the scripted replica, and wait until both are up."""
    (scripted,) = setup.settings.replica
    rogue = ReplicaSettings(url=f"http://127.0.0.1:{port}", name="process", max_requests=seats)
    setup.gateway.reload(replace(setup.settings, replica=(replace(scripted, max_requests=seats), rogue)))


def test_a_replica_killed_mid_stream_breaks_its_streams_and_no_others(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = echoes(gap=0.01)
        async with process() as (replica, port):
            with_process(setup, port)
            await setup.until(lambda: setup.dispatcher.replicas[1].is_up)
            books = Books(setup)
            asking = [asyncio.ensure_future(books.ask()) for _ in range(ALL)]
            # All four streams of the process are under way, each past its first byte.
            ledger, relays = setup.dispatcher.replicas[1].ledger, setup.dispatcher.relays

            def pieces() -> list[int]:
                return [relays[request.id].request.relayed.pieces_mark for request in ledger.running()]

            await setup.until(lambda: len(pieces()) == 4 and all(pieces()))
            replica.send_signal(signal.SIGKILL)
            await asyncio.gather(*asking)
            assert setup.dispatcher.replicas[1].state.health == "ejected"
        books.agree()
        assert books.ended == {"whole": ALL - 4, "broken": 4}

    run_gateway(scenario)


def test_a_replica_killed_while_it_hangs_costs_nobody_an_answer(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = echoes(gap=0.002)
        async with process() as (replica, port):
            with_process(setup, port)
            await setup.until(lambda: setup.dispatcher.replicas[1].is_up)
            os.kill(replica.pid, signal.SIGSTOP)  # its kernel still takes connections; nobody answers on them
            books = Books(setup)
            asking = [asyncio.ensure_future(books.ask()) for _ in range(ALL)]
            await setup.until(lambda: setup.dispatcher.replicas[1].ledger.requests == 4)
            replica.send_signal(signal.SIGKILL)
            await asyncio.gather(*asking)
        books.agree()
        assert books.ended == {"whole": ALL}
        assert setup.dispatcher.counts.retried >= 4

    run_gateway(scenario)


def test_a_process_that_flaps_loses_nobody(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = echoes(gap=0.005)
        books = Books(setup)
        asking: list[asyncio.Future[str]] = []
        port = 0
        for _ in range(3):
            async with process(port) as (_replica, port):
                if len(setup.dispatcher.replicas) == 1:
                    with_process(setup, port)
                await setup.until(lambda: setup.dispatcher.replicas[1].is_up)
                asking += [asyncio.ensure_future(books.ask()) for _ in range(16)]
                await setup.until(lambda: setup.dispatcher.replicas[1].ledger.requests)
        await asyncio.gather(*asking)
        books.agree()
        assert books.count("whole") + books.count("broken") == 48  # whoever got no byte was served by the other one
        assert setup.dispatcher.replicas[1].state.ejections >= 1

    run_gateway(scenario)


# Streams that are no good


BROKEN_EVENTS = {
    "no-json": b"data: {not json\n\n",
    "no-utf8": b"data: \xff\xfe\xfd\n\n",
    "usage-of-the-wrong-type": b'data: {"choices":[],"usage":"many"}\n\n',
    "negative-usage": b'data: {"choices":[{"text":"a"}],"usage":{"prompt_tokens":-5,"completion_tokens":-9}}\n\n',
    "no-end-of-event": b'data: {"choices":[{"text":"a"}]}',
    "no-data": b"\n\n\n\n: nothing\n\nevent: x\n\n",
    "huge-event": b'data: {"usage":"' + b"x" * 1_200_000 + b'"}\n\n',
    "nothing": b"",
}


@pytest.mark.parametrize("data", BROKEN_EVENTS.values(), ids=BROKEN_EVENTS.keys())
def test_malformed_events_pass_as_they_came_and_the_next_request_is_served(
    run_gateway: RunGateway, data: bytes
) -> None:
    end = b"\n\ndata: [DONE]\n\n"

    async def scenario(setup: Setup) -> None:
        async def malformed(call: Call) -> None:
            await call.head()
            for at in range(0, len(data), 50_001):
                await call.chunk(data[at : at + 50_001])
            await call.chunk(end)
            await call.send(b"0\r\n\r\n")

        setup.replicas[0].next.append(malformed)
        answer = await setup.ask()
        assert (answer.status, answer.whole) == (200, True)
        assert answer.body == data + end
        assert (await setup.ask()).texts == "t0 t1 t2 "
        story = setup.gateway.site.history.requests[-2]
        assert story["output_tokens"] >= 0

    run_gateway(scenario)


HEADS = {
    "switches-protocols": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    "two-lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
    "length-and-chunked": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n"
    b"2\r\n{}\r\n0\r\n\r\n",
    "a-bare-line-feed": b"HTTP/1.1 200 OK\ncontent-length: 2\n\n{}",
    "a-folded-header": b"HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 2\r\n\r\n{}",
    "a-nul": b"HTTP/1.1 200 OK\r\na: b\x00c\r\ncontent-length: 2\r\n\r\n{}",
    "no-http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a-status-of-none": b"HTTP/1.1 000 X\r\ncontent-length: 2\r\n\r\n{}",
    "an-endless-head": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 30_000,
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_a_replica_that_speaks_no_http_ends_one_request_and_no_more(run_gateway: RunGateway, head: bytes) -> None:
    async def scenario(setup: Setup) -> None:
        async def speaks(call: Call) -> None:
            await call.send(head)
            await asyncio.sleep(0.02)
            call.writer.transport.abort()

        setup.replicas[0].next.append(speaks)
        async with RawClient(setup.port) as client:
            await client.send(post({"model": "m", "prompt": "x"}))
            answer = await client.answer()
            # A body that both sides understand alike may pass; anything else is the replica's failure, told as such.
            told = (answer.status, answer.body if answer.status == 200 else answer.reason)
            assert told in ((200, b"{}"), (502, "replica-failed"))
            await client.send(post(completion()))
            assert (await client.answer()).texts == "t0 t1 t2 "
        assert sum(setup.dispatcher.counts.ended.values()) == 2

    run_gateway(scenario)


# Overflow, and clocks


def test_overflow_refuses_exactly_those_who_do_not_fit(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, echoes())
        books = Books(setup)
        asking = [asyncio.ensure_future(books.ask()) for _ in range(60)]
        await setup.until(lambda: (setup.dispatcher.counts.arrived, setup.dispatcher.counts.inside) == (60, 12))
        gate.set()
        await asyncio.gather(*asking)
        books.agree()
        assert books.ended == {"whole": 12, "refused: 429 queue-full": 48}  # 2 run, 10 wait

    run_gateway(scenario, seats=2, queue=QueueSettings(max_requests=10))


def test_a_clock_that_jumps_changes_nothing(run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    real, jumps = time.time, [86_400.0, -86_400.0, 1e9, -1e9, 0.0]

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = setup.replicas[1].usual = echoes(gap=0.01)
        books = Books(setup)
        asking = [asyncio.ensure_future(books.ask()) for _ in range(ALL)]
        for jump in jumps:
            monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
            setup.dispatcher.sweep(setup.gateway._clock())
            arrived = setup.dispatcher.counts.ended.total()
            await setup.until(lambda arrived=arrived: setup.dispatcher.counts.ended.total() > arrived)
        await asyncio.gather(*asking)
        books.agree()
        assert books.ended == {"whole": ALL}

    run_gateway(scenario, replicas=2, seats=2, queue=QueueSettings(timeout_seconds=30.0))


def test_the_gateway_decides_by_no_clock_that_can_be_set() -> None:
    source = Path(__file__).parents[3] / "src" / "headway" / "gateway"
    readers = {
        file.relative_to(source).as_posix()
        for file in source.rglob("*.py")
        if any(word in file.read_text(encoding="utf-8") for word in ("time.time(", "datetime", "utcnow"))
    }
    assert readers <= {
        "batch_api/batch_routes.py",  # OpenAI's times of files and batches
        "batch_api/batch_setup.py",
        "batch_api/open_batches.py",  # a batch expires at a time of day: it outlives the process and its clock
        "budgets/rate_limit_headers.py",
        "embedded/answer_shapes.py",
        "gateway_twin.py",  # times that people read: when a look said its sentence
        "leadership/lease_object.py",  # times that people read; gateways compare none
        "observing/logging_setup.py",  # times that people read
        "openai/error_shapes.py",
        "observing/tracing.py",
    }  # OpenAI's fields `created` and `created_at`; spans and Anthropic's resets stand on the wall clock
