"""Second tries: a moment later, within the request's time, and bounded where they cost a second execution."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from headway.gateway.settings import QueueSettings, RequestSettings
from tests.support.gateway_setup import QUICK, RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Call, answers, dies_at_once, hangs, streams, waits_for

TIMES = {"queued": "queue", "at the replica": "replica", "in the middle of a stream": "stream"}


def test_a_second_try_waits_a_moment_and_one_whose_client_left_does_not_begin(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for replica in setup.replicas:
            replica.usual = dies_at_once
        async with RawClient(setup.port) as client:
            await client.send(post(completion()))
            await setup.until(lambda: setup.dispatcher.counts.retried == 1)
            (relay,) = setup.dispatcher.relays.values()
            assert str(relay.request.stage) == "held"
            assert not any(replica.ledger.requests for replica in setup.dispatcher.replicas), "its place is free"
        await setup.until(lambda: not setup.dispatcher.counts.inside)
        assert sum(len(replica.calls) for replica in setup.replicas) == 1

    run_gateway(scenario, replicas=2, requests=RequestSettings(backoff_seconds=30.0))


def test_second_tries_after_an_error_wait_for_one_another_and_moves_from_a_dead_replica_do_not(
    run_gateway: RunGateway,
) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        first, second = setup.replicas
        first.usual = answers(500, {"error": "first"})
        second.usual = waits_for(gate, streams())
        asking = [asyncio.ensure_future(setup.ask()) for _ in range(8)]
        await setup.until(lambda: len(first.calls) > 1 and held(setup) + second.inside == 8)
        retries = setup.dispatcher.retries
        assert retries.delayed == held(setup) == len(first.calls) - 1
        assert (len(retries._under_way), len(retries._waiting)) == (1, held(setup))
        first.usual = hangs
        moved = [asyncio.ensure_future(setup.ask()) for _ in range(4)]
        await setup.until(lambda: first.inside + second.inside == 12 - held(setup))
        assert first.inside > 1
        first.cut()
        await setup.until(lambda: second.inside == 12 - held(setup))
        gate.set()
        assert {answer.status for answer in await asyncio.gather(*asking, *moved)} == {200}
        text = (await setup.get("/metrics")).body.decode()
        assert f"headway_request_retries_delayed_total {retries.delayed}" in text
        assert not retries._under_way

    never = replace(QUICK, failures_to_eject=1_000, failing_share=1.0)
    bounds = RequestSettings(retry_share=0.0, retries_min=1, backoff_seconds=0.0)
    run_gateway(scenario, replicas=2, seats=32, requests=bounds, health=never)


def held(setup: Setup) -> int:
    return sum(str(relay.request.stage) == "held" for relay in setup.dispatcher.relays.values())


@pytest.mark.parametrize(("retries_min", "status", "reason"), [(1, 502, "replica-failed"), (0, 500, "")])
def test_one_that_waits_too_long_for_others_fails_and_without_places_the_error_is_passed_on(
    run_gateway: RunGateway, retries_min: int, status: int, reason: str
) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        for replica in setup.replicas:
            replica.next.append(answers(500, {"error": "first"}))
            replica.usual = waits_for(gate, streams())
        asking = [asyncio.ensure_future(setup.ask()) for _ in range(2)]
        await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        (ended,) = [one.result() for one in asking if one.done()] if retries_min else [asking[0].result()]
        assert (ended.status, ended.reason) == (status, reason)
        gate.set()
        await asyncio.gather(*asking)

    bounds = RequestSettings(retry_share=0.0, retries_min=retries_min, backoff_seconds=0.0)
    run_gateway(scenario, replicas=2, requests=bounds, health=replace(QUICK, no_replica_seconds=0.5))


@pytest.mark.parametrize("where", TIMES.values(), ids=TIMES.keys())
@pytest.mark.parametrize("header", [False, True])
def test_a_request_ends_when_its_time_is_over_wherever_it_stands(
    run_gateway: RunGateway, where: str, header: bool
) -> None:
    async def begins(call: Call) -> None:
        await call.head()
        await call.event({"choices": [{"index": 0, "text": "t", "finish_reason": None}]})
        await call.left.wait()

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = begins if where == "stream" else hangs
        headers = "x-headway-timeout-seconds: 0.2\r\n" if header else ""
        if where == "queue":
            async with RawClient(setup.port) as holder:
                await holder.send(post(completion(), headers="x-headway-timeout-seconds: 0.3\r\n"))
                await setup.until(lambda: setup.replicas[0].calls)
                answer = await setup.ask(headers=headers)
        else:
            answer = await setup.ask(headers=headers)
        sentence = f"the request was not answered within {0.2 if header else 0.5:g} s"
        if where == "stream":
            events = [json.loads(line[6:]) for line in answer.body.decode().splitlines() if line.startswith("data: {")]
            assert (answer.status, answer.whole, events[-1]["error"]["code"]) == (200, True, "request_timeout")
            assert sentence in events[-1]["error"]["message"]
        else:
            assert (answer.status, answer.reason) == (504, "request-timeout")
            assert answer.headers["x-should-retry"] == "false"
            assert sentence in answer.json()["error"]["message"]
        text = (await setup.get("/metrics")).body.decode()
        assert 'reason="request-timeout"' in text
        assert not setup.dispatcher.replicas[0].state.failures, "that is no fault of the replica"
        await setup.until(lambda: not setup.replicas[0].inside)

    bounds = RequestSettings(timeout_seconds=0.5)
    run_gateway(scenario, seats=1, requests=bounds, queue=QueueSettings())


def test_no_second_try_begins_after_the_request_s_time(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for replica in setup.replicas:
            replica.usual = dies_at_once
        answer = await setup.ask(headers="x-headway-timeout-seconds: 40\r\n")
        assert (answer.status, answer.reason) == (502, "replica-failed")
        assert sum(len(replica.calls) for replica in setup.replicas) == 1

    run_gateway(scenario, replicas=2, requests=RequestSettings(backoff_seconds=30.0))
