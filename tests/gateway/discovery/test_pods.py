"""Pods that come, vanish, flap and change their address while requests wait and stream, also behind the real Envoy."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from headway.gateway.settings import ReplicaSourceSettings
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Script, ScriptedReplica, echoes, waits_for
from tests.support.serve_process import fetched, serving_beside

pytest.importorskip("kubernetes_asyncio", reason="the extra `kubernetes` is not installed")
from tests.support.kubernetes_server import PODS, POOLS, KubernetesServer, inference_pool, pod


@dataclass
class Cluster:
    """An API server, and engines that listen at the addresses of pods: of the loopback, all at one port."""

    server: KubernetesServer
    kubeconfig: str
    stack: AsyncExitStack
    port: int = 0

    async def engine(self, number: int, usual: Script | None = None) -> ScriptedReplica:
        engine = ScriptedReplica(usual or echoes(2))
        engine.host, engine.port = f"127.0.0.{number}", self.port
        await engine.start()
        self.stack.push_async_callback(engine.stop)
        if not self.port:
            self.port = engine.port
            await self.server.put(POOLS, inference_pool(ports=(self.port,)))
        return engine

    @property
    def source(self) -> ReplicaSourceSettings:
        return ReplicaSourceSettings(
            inference_pool="default/engines", kubeconfig=self.kubeconfig, each={"max_requests": 1}
        )


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        server = await KubernetesServer().start()
        stack.push_async_callback(server.stop)
        server.objects |= {PODS: {}, POOLS: {}}
        yield Cluster(server, server.kubeconfig(folder), stack)


def up(setup: Setup) -> list[str]:
    return sorted(one.name for one in setup.dispatcher.replicas if one.is_up)


def follow(setup: Setup, made: Cluster) -> None:
    setup.gateway.reload(replace(setup.settings, replica_source=(made.source,)))


def test_pods_vanish_flap_and_change_address_while_requests_wait_and_stream(
    run_gateway: RunGateway, tmp_path: Path
) -> None:
    async def scenario(setup: Setup) -> None:
        async with cluster(tmp_path) as made:
            gate = asyncio.Event()
            first = await made.engine(11, waits_for(gate, echoes(3)))
            await made.server.put(PODS, pod("a", first.host))
            follow(setup, made)
            await setup.until(lambda: up(setup) == ["a"])
            streaming = asyncio.create_task(setup.ask(completion(prompt="s")))
            await setup.until(lambda: first.inside == 1)
            waiting = [asyncio.create_task(setup.ask(completion(prompt=f"w{number}"))) for number in range(4)]
            await setup.until(lambda: setup.dispatcher.counts.inside == 5)
            for ready in (False, True, False, True):  # it flaps; its stream goes on, and holds its place
                await made.server.put(PODS, pod("a", first.host, ready=ready))
                await setup.until(lambda wanted=ready: bool(up(setup)) is wanted)
            assert first.most_inside == 1
            second = await made.engine(12)
            await made.server.put(PODS, pod("b", second.host))  # what waits goes there
            assert [(await one).status for one in waiting] == [200] * 4
            assert len(second.calls) == 4
            moved = await made.engine(13)
            await made.server.put(PODS, pod("b", moved.host))  # the same pod at another address
            await setup.until(lambda: any(one.pool.host == moved.host for one in setup.dispatcher.replicas))
            await setup.until(lambda: up(setup) == ["a", "b"])
            await made.server.delete(PODS, "a")  # it vanishes while it streams
            await setup.until(lambda: up(setup) == ["b"])
            assert (await setup.ask(completion(prompt="x"))).status == 200
            assert len(moved.calls) == 1
            gate.set()
            assert (await streaming).texts == "s.0 s.1 s.2 "
            assert len(first.calls) == 1

    run_gateway(scenario, replicas=0)


def test_a_pod_whose_engine_dies_gives_up_what_has_no_answer_yet(run_gateway: RunGateway, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        async with cluster(tmp_path) as made:
            first, second = await made.engine(11, waits_for(asyncio.Event(), echoes(1))), await made.engine(12)
            await made.server.put(PODS, pod("a", first.host))
            follow(setup, made)
            await setup.until(lambda: up(setup) == ["a"])
            asked = asyncio.create_task(setup.ask(completion(prompt="q")))
            await setup.until(lambda: first.inside == 1)
            await made.server.put(PODS, pod("a", first.host, terminating=True))
            await made.server.put(PODS, pod("b", second.host))
            await setup.until(lambda: up(setup) == ["b"])
            assert not asked.done()
            first.cut()  # the grace period is over
            assert (await asked).texts == "q.0 q.1 "
            assert (len(first.calls), len(second.calls)) == (1, 1)

    run_gateway(scenario, replicas=0)


def test_the_api_server_may_be_gone_and_forget(run_gateway: RunGateway, tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        async with cluster(tmp_path) as made:
            first, second = await made.engine(11), await made.engine(12)
            for name, one in (("a", first), ("b", second)):
                await made.server.put(PODS, pod(name, one.host))
            follow(setup, made)
            await setup.until(lambda: up(setup) == ["a", "b"])
            await made.server.stop()
            report = setup.gateway._register.sources[0].report
            await setup.until(lambda: report.faults >= 3)
            answers = [await setup.ask(completion(prompt=f"{number}")) for number in range(4)]
            assert [one.status for one in answers] == [200] * 4
            page = (await setup.get("/metrics")).body.decode()
            assert 'headway_replica_source_up{source="inference_pool default/engines"} 0' in page
            made.server.objects[PODS].pop("a")
            made.server._version = made.server.forgets_below = 10**6  # it comes back without its history
            await made.server.start()
            await setup.until(lambda: up(setup) == ["b"])

    run_gateway(scenario, replicas=0)


async def asked(url: str, prompt: str) -> tuple[int, str]:
    async with RawClient(int(url.rpartition(":")[2])) as client:
        await client.send(post(completion(prompt=prompt)))
        answer = await client.answer()
        return answer.status, answer.texts


async def until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not fact():
            await asyncio.sleep(0.02)


def test_a_process_follows_a_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as made:
            monkeypatch.setenv("KUBECONFIG", made.kubeconfig)
            engine = await made.engine(11)
            await made.server.put(PODS, pod("a", engine.host))
            async with serving_beside("--pool", "default/engines") as (process, url):
                assert await asked(url, "p") == (200, "p.0 p.1 ")
                other = await made.engine(12)
                await made.server.put(PODS, pod("b", other.host))
                await made.server.delete(PODS, "a")
                async with asyncio.timeout(60):
                    while not other.calls:
                        assert await asked(url, "q") == (200, "q.0 q.1 ")
                state = json.loads(await asyncio.to_thread(fetched, url + "/headway/state"))
                assert [(one["name"], one["source"]) for one in state["replicas"]] == [
                    ("b", "inference_pool default/engines")
                ]
                process.send_signal(signal.SIGINT)
                assert await asyncio.to_thread(process.wait, 30) == 0

    asyncio.run(scenario())
