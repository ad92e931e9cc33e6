"""Keep-alives: a waiting stream is kept open, and what follows it is an event of its API. Off, nothing changes."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from headway.gateway.relay import keep_alives
from headway.gateway.settings import HealthSettings, QueueSettings
from tests.support.gateway_setup import QUICK, Answer, RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Call, Script, answers, dies_at_once, hangs, streams, text, waits_for

ON = QueueSettings(keep_alive_seconds=0.3)  # below what a configuration may say, for quick tests
COMMENT = b": keep-alive\n\n"
EMPTY_COMMENT = b":\n\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
SHAPES = [(CHAT, COMMENT), (RESPONSES, COMMENT), (MESSAGES, PING), ("/v1/completions", COMMENT)]


def asked(**fields: object) -> dict[str, object]:
    return completion(messages=[{"role": "user", "content": "hi"}], input="hi", max_tokens=9, **fields)


def last_event(answer: Answer) -> Any:
    return json.loads(answer.body.rsplit(b"data: ", 1)[1])


@pytest.mark.parametrize(("path", "keep_alive"), SHAPES)
def test_a_stream_that_waits_is_kept_open_and_then_gets_its_answer(
    run_gateway: RunGateway, path: str, keep_alive: bytes
) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        stream = waits_for(gate, streams(2))
        setup.replicas[0].usual = stream
        asking = [asyncio.create_task(setup.ask(asked(), path)) for _ in range(2)]  # one at the replica, one queued
        await setup.until(lambda: setup.gateway.dispatcher.counts.keep_alives >= 4)
        gate.set()
        for answer in await asyncio.gather(*asking):
            assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            assert answer.headers["x-accel-buffering"] == "no"
            kept, _, rest = answer.body.partition(b'data: {"id"')
            if keep_alive == COMMENT:
                assert kept.endswith(EMPTY_COMMENT), "in the packet of the first event"
                kept = kept.removesuffix(EMPTY_COMMENT)
            assert kept == keep_alive * (len(kept) // len(keep_alive))
            assert kept
            assert answer.body.endswith(b"data: [DONE]\n\n")
            assert keep_alive not in rest
        for story in setup.gateway.site.history.requests:  # the bytes of keep-alives are no first token
            assert story["first_byte_seconds"] > 0.3

    run_gateway(scenario, seats=1, queue=ON)


def test_a_client_that_strips_each_packet_gets_every_event(run_gateway: RunGateway) -> None:
    """As `vllm bench serve` 0.32 reads: what it takes off a comment's packet is what ends the comment."""

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = ends(streams(3))
        read = b""
        async with RawClient(setup.port) as client:
            await client.send(post(completion()))
            await client.head()
            while size := int(await client.reader.readuntil(b"\r\n"), 16):
                read += (await client.reader.readexactly(size + 2)).strip()
        comments, *events = read.split(b"data: ")
        assert comments == b": keep-alive" * (len(comments) // 12) + EMPTY_COMMENT
        assert len(events) == 4

    run_gateway(scenario, queue=ON)


def ends(then: Script) -> Script:
    """Silent until a keep-alive has gone to every path."""

    async def script(call: Call) -> None:
        await asyncio.sleep(0.9)
        await then(call)

    return script


async def _breaks_off_an_error(call: Call) -> None:
    await call.send(b'HTTP/1.1 400 X\r\ncontent-type: application/json\r\ncontent-length: 90\r\n\r\n{"error":')
    call.writer.close()


@pytest.mark.parametrize(
    ("script", "seats", "kind", "message"),
    [
        (hangs, 1, "rate_limit_error", "waited in the queue"),
        (ends(dies_at_once), 9, "api_error", "failed"),
        (ends(answers(400, {"error": {"message": "context is 9"}})), 9, "invalid_request_error", "context is 9"),
        (ends(_breaks_off_an_error), 9, "invalid_request_error", "the replica answered with status 400"),
        (ends(answers(200, {"choices": []})), 9, "api_error", "without the stream"),
    ],
)
def test_what_goes_wrong_after_a_keep_alive_is_an_event(
    run_gateway: RunGateway, script: Script, seats: int, kind: str, message: str
) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = script
        first = asyncio.create_task(setup.ask()) if seats == 1 else None  # it takes the one place
        await setup.until(lambda: first is None or setup.replicas[0].calls)
        found = await asyncio.gather(*[setup.ask(asked(), path) for path, _ in SHAPES])
        for (path, keep_alive), answer in zip(SHAPES, found, strict=True):
            assert (answer.status, answer.whole) == (200, True)
            assert answer.body.startswith(keep_alive)
            told = last_event(answer)
            if path == MESSAGES:
                assert (told["type"], told["error"]["type"]) == ("error", kind)
                assert message in told["error"]["message"]
            elif path == RESPONSES:
                assert (told["type"], told["response"]["status"]) == ("response.failed", "failed")
                is_limit = told["response"]["error"]["code"] == "rate_limit_exceeded"
                assert is_limit == (kind == "rate_limit_error")
                assert message in told["response"]["error"]["message"]
            else:
                assert message in told["error"]["message"]
                assert told["choices"][0]["finish_reason"] == "error"
        if first is not None:
            first.cancel()

    run_gateway(scenario, seats=seats, queue=replace(ON, timeout_seconds=1.0))


def test_a_kept_open_client_is_told_its_model_and_its_tier(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = ends(streams(1))
        answer = await setup.ask(completion(model="other", service_tier="flex"))
        assert answer.body.startswith(COMMENT)
        told = answer.headers["x-headway-model"], answer.headers["x-headway-service-tier"]
        assert told == ("m", "flex"), "it runs in what online requests leave"

    run_gateway(scenario, queue=ON, aliases={"other": "m"})


def test_a_request_is_still_tried_again_after_a_keep_alive(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        for one in setup.replicas:
            one.usual = streams(2)
            one.next.append(waits_for(gate, dies_at_once))
        asking = asyncio.create_task(setup.ask())
        await setup.until(lambda: setup.gateway.dispatcher.counts.keep_alives)
        next(one for one in setup.replicas if not one.calls).next.clear()
        gate.set()
        answer = await asking
        assert (answer.texts, setup.dispatcher.counts.retried) == ("t0 t1 ", 1)

    run_gateway(scenario, replicas=2, queue=ON)


def test_a_replica_that_has_sent_its_head_only_is_in_prefill(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()

        async def prefills(call: Call) -> None:
            await call.head(extra="x-engine: 1\r\n")
            await call.chunk(b": its own\n\n")
            await gate.wait()
            await call.event(text("a"))
            await call.chunk(b"data: [DONE]\n\n")
            await call.send(b"0\r\n\r\n")

        setup.replicas[0].usual = prefills
        asking = asyncio.create_task(setup.ask())
        await setup.until(lambda: setup.gateway.dispatcher.counts.keep_alives >= 2)
        gate.set()
        answer = await asking
        assert answer.headers["x-engine"] == "1"  # no head was sent before the replica's
        assert answer.body.startswith(b": its own\n\n" + COMMENT * 2)
        assert answer.texts == "a"

    run_gateway(scenario, queue=ON)


def test_a_client_that_does_not_read_is_not_written_to(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = hangs
        async with RawClient(setup.port) as client:
            await client.send(post(completion()))
            await setup.until(lambda: setup.gateway.dispatcher.counts.keep_alives >= 1)
            exchange = next(iter(setup.dispatcher.relays.values()))
            connection = next(iter(setup.clients))
            connection._transport.write(b"x" * (16 << 20))  # more than the system's buffers take
            assert connection.has_unsent
            size = connection._transport.get_write_buffer_size()
            assert exchange.keep_alive() is False
            assert connection._transport.get_write_buffer_size() == size

    run_gateway(scenario, queue=ON)


def test_many_that_are_due_at_once_do_not_hold_the_loop(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = hangs
        async with AsyncExitStack() as stack:
            for _ in range(300):
                client = await stack.enter_async_context(RawClient(setup.port))
                client.writer.write(post(completion()))
            await setup.until(lambda: setup.dispatcher.counts.inside == 300)
            await setup.until(lambda: setup.gateway.dispatcher.counts.keep_alives >= 600)
            assert len(setup.gateway.api.keep_alives._waiting) == 300

    run_gateway(scenario, seats=1, queue=ON)


def test_entries_of_requests_that_ended_do_not_add_up(run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_alives, "_FEW", 10)

    async def scenario(setup: Setup) -> None:
        waiting = setup.gateway.api.keep_alives
        setup.replicas[0].usual = hangs
        held = [asyncio.create_task(setup.ask()) for _ in range(5)]
        await setup.until(lambda: setup.replicas[0].inside == 5)
        setup.replicas[0].usual = streams()
        for _ in range(60):
            assert (await setup.ask()).status == 200
            assert len(waiting._waiting) <= 13
        assert sum(entry() is not None for _, entry in waiting._waiting) >= 5
        for one in held:
            one.cancel()

    run_gateway(scenario, seats=100, queue=QueueSettings(keep_alive_seconds=300.0))


def masked(answer: Answer) -> tuple[int, list[tuple[str, str]], bytes]:
    """An answer without what differs between any two runs."""
    varying = {"x-headway-queue-ms", "x-request-id", "retry-after-ms", "retry-after"}
    body = re.sub(rb"127\.0\.0\.1:\d+|hw-[0-9a-f]+-\d+", b"?", answer.body)
    return answer.status, [pair for pair in answer.headers.items() if pair[0] not in varying], body


@pytest.mark.parametrize("script", [streams(2), answers(), answers(400, {"error": "no"}), dies_at_once])
def test_whoever_asks_without_a_stream_or_with_the_option_off_gets_the_same_bytes(
    run_gateway: RunGateway, script: Script
) -> None:
    found: dict[tuple[float, bool], object] = {}

    async def slowly(call: Call) -> None:
        await asyncio.sleep(0.7)
        await script(call)

    # A stream is answered at once, so the interval is long; without a stream it is short, and the answer slow.
    for seconds, is_stream in ((0.0, False), (0.3, False), (0.0, True), (300.0, True)):

        async def scenario(setup: Setup, seconds: float = seconds, is_stream: bool = is_stream) -> None:
            setup.replicas[0].usual = script if is_stream else slowly
            asking = [setup.ask(asked(stream=is_stream), path) for path, _ in SHAPES]
            found[seconds, is_stream] = [masked(answer) for answer in await asyncio.gather(*asking)]
            assert setup.gateway.dispatcher.counts.keep_alives == 0

        run_gateway(
            scenario, queue=QueueSettings(keep_alive_seconds=seconds), health=replace(QUICK, failures_to_eject=99)
        )
    assert found[0.0, False] == found[0.3, False]
    assert found[0.0, True] == found[300.0, True]


def test_a_reload_counts_for_streams_that_wait_already(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = hangs
        asking = asyncio.create_task(setup.ask())
        await setup.until(lambda: setup.replicas[0].calls)
        setup.gateway.reload(replace(setup.settings, queue=ON))
        await setup.until(lambda: setup.gateway.dispatcher.counts.keep_alives)
        setup.gateway.reload(replace(setup.settings, queue=QueueSettings()))
        await setup.until(lambda: not setup.gateway.api.keep_alives._waiting)
        asking.cancel()

    run_gateway(scenario, queue=QueueSettings(keep_alive_seconds=300.0))


def test_a_client_of_http_1_0_is_kept_open_too(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        async with RawClient(setup.port) as client:
            await client.send(post(completion()).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
            await setup.until(lambda: setup.gateway.dispatcher.counts.keep_alives)
            gate.set()
            answer = await client.answer()  # to the end of the connection
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert answer.body.startswith(COMMENT)
        assert answer.texts == "t0 "

    run_gateway(scenario, queue=ON)


def test_the_body_counts_until_it_is_sent_on(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        asking = asyncio.create_task(setup.ask(completion(prompt="x" * 5_000)))
        await setup.until(lambda: setup.gateway.dispatcher.counts.keep_alives)
        assert setup.gateway.body_bytes > 5_000
        gate.set()
        await asking
        assert setup.gateway.body_bytes == 0

    run_gateway(scenario, queue=ON)


def test_a_gateway_that_stops_tells_streams_that_were_kept_open(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = hangs
        asking = asyncio.create_task(setup.ask(asked(), MESSAGES))
        await setup.until(lambda: setup.gateway.dispatcher.counts.keep_alives)
        setup.dispatcher.end_all()
        told = last_event(await asking)
        assert told["error"]["type"] == "overloaded_error"
        assert "shutting down" in told["error"]["message"]

    run_gateway(scenario, queue=ON, health=HealthSettings(drain_seconds=0.1))
