"""Large bodies: others are served while one is read and sent, and it is freed when its answer begins."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from typing import Any

import pytest

from headway.gateway.queueing.request_state import ArrivedRequest
from headway.gateway.settings import TenantSettings
from headway.gateway.wire.limits import WireLimits
from headway.gateway.wire.stepped_answer import SteppedAnswer
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Call, answers, streams

MIB = 1 << 20
LONG = "hello there, " * (4 * MIB // 13)


def test_a_large_body_arrives_whole_with_our_fields(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for more in ({}, {"stream_options": {"chunk": 1}}, {"stream_options": None, "a": "b" * MIB}):
            answer = await setup.ask(completion(prompt=LONG, **more))
            assert answer.texts == "t0 t1 t2 "
            sent = setup.replicas[0].calls.pop().json()
            options = more.get("stream_options") or {}
            wanted = completion(prompt=LONG, **more) | {"stream_options": {**options, "include_usage": True}}  # type: ignore[dict-item]
            assert sent == wanted
            assert b"usage" not in answer.body

    run_gateway(scenario)


def test_what_its_key_does_not_allow_is_taken_out_of_a_large_body_too(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "a-key-of-eight")

    async def scenario(setup: Setup) -> None:
        asked = completion(prompt=LONG, priority=-9, vllm_xargs={"headway_rank": 1, "mine": 2})
        assert (await setup.ask(asked, headers="authorization: Bearer a-key-of-eight\r\n")).status == 200
        sent = setup.replicas[0].calls.pop().json()
        assert sent["priority"] == 0
        assert sent["prompt"] == LONG
        assert sent["vllm_xargs"] == {"mine": 2}

    run_gateway(scenario, tenant=(TenantSettings(name="t", key_env="KEY"),))


def test_too_many_values_are_refused_and_counted(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        dense = b'{"model":"m","stream":true,"stream_options":{},' + b'"a":1,' * 100_000 + b'"prompt":"x"}'
        answer = await setup.ask(dense)
        assert (answer.status, answer.reason) == (413, "malformed")
        assert "wire.body_values" in answer.json()["error"]["message"]
        cut = await setup.ask(b'{"prompt":"' + b"x" * MIB)
        assert cut.status == 400
        setup.replicas[0].next.append(answers())
        octets = "content-type: application/octet-stream\r\n"
        file = await setup.ask(b"[" + b"{}," * 200_000, path="/v1/files", headers=octets)
        assert file.status == 200
        assert (
            b'headway_rejected_requests_total{status="413",reason="malformed"} 1.0'
            in (await setup.get("/metrics")).body
        )

    run_gateway(scenario, wire=WireLimits(body_values=100_000))


def test_other_clients_have_turns_while_a_body_is_read_and_sent(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No clock: a turn of the loop is counted between any two steps."""
    turns, seen = 0, []
    step = SteppedAnswer.step

    def noted(self: Any) -> bool:
        seen.append(turns)
        return step(self)

    monkeypatch.setattr(SteppedAnswer, "step", noted)

    async def scenario(setup: Setup) -> None:
        nonlocal turns
        asking = asyncio.gather(*(setup.ask(completion(prompt=LONG)) for _ in range(4)))
        while not asking.done():
            turns += 1
            await asyncio.sleep(0)
        assert [answer.status for answer in await asking] == [200] * 4
        assert len(seen) > 4 * 8
        assert len(set(seen)) == len(seen), "two steps at one turn"

    run_gateway(scenario)


def test_a_client_that_leaves_while_its_body_is_read_is_no_request(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(setup: Setup) -> None:
        begun = asyncio.Event()
        monkeypatch.setattr(SteppedAnswer, "step", lambda self: begun.set() or True)  # it takes for ever
        async with RawClient(setup.port) as client:
            await client.send(post(completion(prompt=LONG)))
            await begun.wait()
        monkeypatch.undo()
        await setup.until(lambda: not setup.clients)
        assert setup.dispatcher.counts.arrived == 0
        assert (await setup.ask()).status == 200

    run_gateway(scenario)


def test_a_step_that_raises_ends_its_request_alone(run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(setup: Setup) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("headway.gateway.api_routes.LargeBody.steps", lambda self, count: iter([1 // 0]))
            assert (await setup.ask(completion(prompt=LONG))).status == 500
        assert setup.dispatcher.errors.by_place["routes"] == 1
        assert (await setup.ask(completion(prompt=LONG))).status == 200

    run_gateway(scenario)


def test_a_replica_that_answers_before_it_has_read_the_body(run_gateway: RunGateway) -> None:
    """Its connection carries no other request: the rest of the body would be taken for one."""

    async def scenario(setup: Setup) -> None:
        replica = setup.replicas[0]
        early: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            early.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 413 X\r\ncontent-length: 2\r\n\r\n{}")
            await reader.read()
            writer.close()

        await replica.stop()
        server = await asyncio.start_server(serve, "127.0.0.1", replica.port)
        try:
            assert (await setup.ask(completion(prompt=LONG))).status == 413
        finally:
            server.close()
        await replica.start()
        await setup.until(lambda: all(one.is_up for one in setup.dispatcher.replicas))
        assert (await setup.ask()).texts == "t0 t1 t2 "
        assert sum(head.startswith(b"POST") for head in early) == 1

    run_gateway(scenario)


def test_a_body_is_freed_when_its_answer_begins(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        goes_on = asyncio.Event()

        async def answers_slowly(call: Call) -> None:
            call.body = b'{"stream_options":{}}'  # the replica's own copy
            await call.head()
            await call.event({"choices": [{"index": 0, "text": "t0 "}]})
            await goes_on.wait()
            await streams(1)(call)

        for body_bytes in (2_000, 100_000, 8 * MIB):
            for path, field in (("/v1/completions", "prompt"), ("/v1/files", "x")):
                setup.replicas[0].next.append(answers_slowly)
                sent = post({"model": "m", "stream": True, field: "x" * body_bytes}, path)
                tracemalloc.start()
                async with RawClient(setup.port) as client:
                    await client.send(sent)
                    del sent
                    await client.head()
                    await setup.until(lambda: not setup.gateway.body_bytes)
                    (relay,) = setup.dispatcher.relays.values()
                    arrived: ArrivedRequest = relay.request.arrived
                    assert arrived.http.body == b""
                    gc.collect()
                    ours = tracemalloc.Filter(True, "*/headway/gateway/*")  # the replica and the client keep copies
                    taken = tracemalloc.take_snapshot().filter_traces([ours])
                    tracemalloc.stop()
                    held = sum(trace.size for trace in taken.traces)
                    assert held < 500_000, f"{held:,} bytes are held after the first of an answer to {body_bytes:,}"
                    goes_on.set()
                    await setup.until(lambda: not setup.dispatcher.counts.inside)
                goes_on.clear()

    run_gateway(scenario)
