"""Replicas that die, hang, lie and flap; clients that leave at every stage: each ends once, and nothing is lost."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import pytest

from headway.gateway.queueing.counts import Outcome
from headway.gateway.relay import exchange
from headway.gateway.settings import QueueSettings
from headway.gateway.wire import upstream_pool
from tests.support.gateway_setup import QUICK, RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import (
    Call,
    Script,
    answers,
    breaks_framing,
    dies_at_once,
    dies_mid_stream,
    hangs,
    streams,
    waits_for,
)


def ended(setup: Setup) -> dict[str, int]:
    return {str(outcome): number for outcome, number in setup.dispatcher.counts.ended.items()}


def prefer(setup: Setup, script: Script) -> None:
    """Whoever is asked first does this; the retry finds a healthy one."""
    first = {"done": False}

    async def once(call: object) -> None:
        usual = streams() if first["done"] else script
        first["done"] = True
        await usual(call)  # type: ignore[arg-type]

    for replica in setup.replicas:
        replica.usual = once


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (dies_at_once, "no-answer"),
        (answers(500, {}), "error"),
        (answers(503, {}), "refused"),
        (answers(429, {}), "refused"),
    ],
)
def test_who_produced_nothing_is_tried_elsewhere_once(run_gateway: RunGateway, fault: Script, reason: str) -> None:
    async def scenario(setup: Setup) -> None:
        prefer(setup, fault)
        answer = await setup.ask()
        assert (answer.status, answer.texts) == (200, "t0 t1 t2 ")
        page = (await setup.get("/metrics")).body.decode()
        counted = re.findall(r'^headway_request_retries_total\{reason="(.*)"\} (.*)$', page, re.MULTILINE)
        assert {name for name, number in counted if float(number)} == {reason}
        assert setup.dispatcher.counts.retried == 1
        assert sum(len(replica.calls) for replica in setup.replicas) == 2
        assert all(len(replica.calls) == 1 for replica in setup.replicas)

    run_gateway(scenario, replicas=2)


@pytest.mark.parametrize("stale_seconds", [0.0, 60.0])
def test_no_request_is_executed_more_than_twice(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch, stale_seconds: float
) -> None:
    """A kept connection that breaks without an answer was stale, or the request broke it: both count as executions."""
    monkeypatch.setattr(exchange, "STALE_SECONDS", stale_seconds)
    monkeypatch.setattr(upstream_pool, "SETTLE_SECONDS", 0.0)

    async def scenario(setup: Setup) -> None:
        await asyncio.gather(*[setup.ask() for _ in range(8)])
        for replica in setup.replicas:
            replica.usual = dies_at_once
            replica.calls.clear()
        refused = await setup.ask()
        assert (refused.status, refused.reason) == (502, "replica-failed")
        executed = [len(replica.calls) for replica in setup.replicas]
        assert sum(executed) == 2
        assert max(executed) == (2 if stale_seconds else 1)  # a failure is tried elsewhere

    run_gateway(scenario, replicas=2)


def test_with_nowhere_else_the_client_is_told(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].next += [dies_at_once, answers(500, {"error": {"message": "mine"}})]
        first = await setup.ask()
        assert (first.status, first.reason) == (502, "replica-failed")
        assert first.json()["error"]["type"] == "server_error"
        second = await setup.ask()
        assert (second.status, second.json()["error"]["message"]) == (500, "mine")
        assert ended(setup) == {"failed": 2}

    run_gateway(scenario)


def test_both_tries_fail(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for one in setup.replicas:
            one.usual = dies_at_once
        answer = await setup.ask()
        assert (answer.status, answer.reason) == (502, "replica-failed")
        assert [len(one.calls) for one in setup.replicas] in ([1, 1, 0], [1, 0, 1], [0, 1, 1])

    run_gateway(scenario, replicas=3)


@pytest.mark.parametrize("fault", [dies_mid_stream, breaks_framing])
def test_after_the_first_byte_nothing_is_tried_again(run_gateway: RunGateway, fault: Script) -> None:
    async def scenario(setup: Setup) -> None:
        prefer(setup, fault)
        answer = await setup.ask()
        assert answer.status == 200
        assert answer.texts.startswith("t0 ")
        assert b'"finish_reason": "error"' in answer.body
        assert b"[DONE]" not in answer.body
        assert sum(len(one.calls) for one in setup.replicas) == 1
        assert ended(setup) == {"failed": 1}

    run_gateway(scenario, replicas=2)


def test_a_json_answer_that_breaks_off_is_seen_to_be_broken(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async def half(call) -> None:  # type: ignore[no-untyped-def]
            await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
            await asyncio.sleep(0.02)
            call.writer.transport.abort()

        setup.replicas[0].next.append(half)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await setup.ask({"model": "m", "prompt": "x"})

    run_gateway(scenario)


def test_bytes_after_the_end_reach_nobody(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async def smuggles(call) -> None:  # type: ignore[no-untyped-def]
            body = b'{"a":1}'
            evil = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
            await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body + evil)

        setup.replicas[0].next.append(smuggles)
        async with RawClient(setup.port) as client:
            await client.send(post({"model": "m", "prompt": "x"}))
            assert (await client.answer()).body == b'{"a":1}'
            await client.send(post(completion()))
            assert (await client.answer()).texts == "t0 t1 t2 "

    run_gateway(scenario)


def test_a_replica_that_hangs_before_its_first_byte_is_given_up(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        prefer(setup, hangs)
        answer = await setup.ask()
        assert answer.texts == "t0 t1 t2 "
        await setup.until(lambda: not any(one.inside for one in setup.replicas))

    run_gateway(scenario, replicas=2, health=replace(QUICK, first_byte_seconds=0.3))


def test_a_stream_of_comments_alone_is_no_answer(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async def pings(call: Call) -> None:
            await call.head()
            while True:
                await call.chunk(b": still here\n\n")
                await asyncio.sleep(0.02)

        setup.replicas[0].usual = pings
        answer = await setup.ask()
        assert answer.body.startswith(b": still here\n\n")
        assert b"the replica did not answer within 0.3 s" in answer.body
        assert setup.dispatcher.counts.ended["failed"] == 1

    run_gateway(scenario, health=replace(QUICK, first_byte_seconds=0.3))


def test_a_replica_that_falls_silent_is_given_up(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async def stops(call) -> None:  # type: ignore[no-untyped-def]
            await call.head()
            await call.event({"choices": [{"text": "a"}]})
            await call.left.wait()

        setup.replicas[0].next.append(stops)
        answer = await setup.ask()
        assert b'"code": "replica_timeout"' in answer.body
        await setup.until(lambda: not setup.replicas[0].inside)

    run_gateway(scenario, health=replace(QUICK, silent_seconds=0.3))


def test_a_dead_replica_is_ejected_probed_and_brought_back(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        dead, alive = setup.replicas
        await dead.stop()
        for _ in range(6):
            assert (await setup.ask()).status == 200
        await setup.until(lambda: setup.dispatcher.replicas[0].state.health == "ejected")
        assert len(alive.calls) == 6
        await dead.start()
        await setup.until(lambda: setup.dispatcher.replicas[0].is_up)
        await asyncio.gather(*(setup.ask() for _ in range(6)))
        assert dead.calls

    run_gateway(scenario, replicas=2)


def test_with_no_replica_alive_everybody_is_told_when_to_come_back(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        await setup.replicas[0].stop()
        await setup.until(lambda: not setup.dispatcher.replicas[0].is_up)
        answer = await setup.ask()
        assert (answer.status, answer.reason) == (503, "no-replica")
        assert answer.json()["error"]["code"] == "server_is_overloaded"
        assert answer.json()["error"]["type"] == "service_unavailable_error"
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert (await setup.get("/ready")).status == 503
        assert (await setup.get("/health")).status == 200

    run_gateway(scenario, health=replace(QUICK, no_replica_seconds=0.3))


def test_flapping_loses_nobody(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for one in setup.replicas:
            one.usual = streams(4, gap=0.005)
        asking = [asyncio.ensure_future(setup.ask()) for _ in range(60)]
        for _ in range(4):
            await asyncio.sleep(0.05)
            await setup.replicas[0].stop()
            await asyncio.sleep(0.05)
            await setup.replicas[0].start()
        found = await asyncio.gather(*asking)
        assert len(found) == 60
        assert all(answer.status in (200, 502, 503) for answer in found)
        assert sum(ended(setup).values()) == 60

    run_gateway(scenario, replicas=2, seats=4)


# Clients


def test_a_client_that_leaves_the_queue_frees_its_place(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        first = asyncio.ensure_future(setup.ask())
        await setup.until(lambda: setup.replicas[0].inside == 1)
        async with RawClient(setup.port) as waiting:
            await waiting.send(post(completion()))
            await setup.until(lambda: setup.dispatcher.counts.inside == 2)
        await setup.until(lambda: setup.dispatcher.counts.ended[Outcome.CANCELLED] == 1)
        gate.set()
        assert (await first).status == 200
        assert len(setup.replicas[0].calls) == 1

    run_gateway(scenario, seats=1)


@pytest.mark.parametrize("script", [hangs, streams(1_000, gap=0.005)], ids=["before-first-byte", "mid-stream"])
def test_a_client_that_leaves_stops_its_replica_at_once(run_gateway: RunGateway, script: Script) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = script
        async with RawClient(setup.port) as client:
            await client.send(post(completion()))
            await setup.until(lambda: setup.replicas[0].inside == 1)
            await asyncio.sleep(0.05)
        await setup.until(lambda: setup.replicas[0].inside == 0, 2.0)
        assert setup.replicas[0].calls[0].left.is_set()
        assert ended(setup) == {"cancelled": 1}

    run_gateway(scenario)


def test_a_client_that_closes_its_sending_side_has_left(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = hangs
        async with RawClient(setup.port) as client:
            await client.send(post(completion()))
            await setup.until(lambda: setup.replicas[0].inside == 1)
            client.writer.write_eof()
            await setup.until(lambda: setup.replicas[0].inside == 0, 2.0)
        assert ended(setup) == {"cancelled": 1}

    run_gateway(scenario)


def test_clients_leaving_at_random_moments_lose_nothing(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for one in setup.replicas:
            one.usual = streams(10, gap=0.003)

        async def comes_and_goes(number: int) -> None:
            async with RawClient(setup.port) as client:
                await client.send(post(completion())[: 40 if number % 7 == 0 else None])
                await asyncio.sleep(0.001 * (number * 13 % 60))

        await asyncio.gather(*(comes_and_goes(number) for number in range(120)))
        await setup.until(lambda: not setup.dispatcher.counts.inside)
        assert sum(ended(setup).values()) == setup.dispatcher.counts.arrived
        assert (await setup.ask()).status == 200

    run_gateway(scenario, replicas=2, seats=5)


# Overflow


def test_overflow_is_refused_with_when_to_come_back(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        asking = [asyncio.ensure_future(setup.ask()) for _ in range(4)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 4)
        refused = await setup.ask()
        assert (refused.status, refused.reason) == (429, "queue-full")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) * 1000 >= int(refused.headers["retry-after-ms"]) > 0
        gate.set()
        assert [answer.status for answer in await asyncio.gather(*asking)] == [200] * 4

    run_gateway(scenario, seats=1, queue=QueueSettings(max_requests=3))


def test_who_waits_too_long_is_told(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        first = asyncio.ensure_future(setup.ask())
        await setup.until(lambda: setup.replicas[0].inside == 1)
        late = await setup.ask()
        assert (late.status, late.reason) == (429, "queue-timeout")
        gate.set()
        assert (await first).status == 200

    run_gateway(scenario, seats=1, queue=QueueSettings(timeout_seconds=0.3))


def test_bounds_of_tokens_bytes_and_tenants(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        asking = [asyncio.ensure_future(setup.ask(headers="x-llm-d-inference-fairness-id: a\r\n")) for _ in range(3)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 3)
        own = await setup.ask(headers="x-llm-d-inference-fairness-id: a\r\n")
        assert (own.status, own.reason) == (429, "tenant-queue-full")
        large = await setup.ask(completion(prompt="x" * 9_000), headers="x-llm-d-inference-fairness-id: b\r\n")
        assert (large.status, large.reason) == (429, "queue-full")
        other = asyncio.ensure_future(setup.ask(headers="x-llm-d-inference-fairness-id: b\r\n"))
        await setup.until(lambda: setup.dispatcher.counts.inside == 4)
        gate.set()
        assert {answer.status for answer in await asyncio.gather(other, *asking)} == {200}

    run_gateway(scenario, seats=1, queue=QueueSettings(tenant_max_requests=2, max_tokens=2_000))
