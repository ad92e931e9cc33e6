"""The pods of an `InferencePool`, followed on an API server over real HTTP that breaks, forgets and restarts."""

from __future__ import annotations

import asyncio
import random
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from headway.gateway.discovery import kubernetes_api, object_watch
from headway.gateway.discovery.pool_source import PoolSource
from headway.gateway.discovery.replica_source import Findings, SourceReport

pytest.importorskip("kubernetes_asyncio", reason="the extra `kubernetes` is not installed")
from tests.support.kubernetes_server import PODS, POOLS, TOKEN, KubernetesServer, inference_pool, pod


@dataclass
class Followed:
    """A source that is followed, and all that it told."""

    server: KubernetesServer
    told: list[Findings] = field(default_factory=list)
    report: SourceReport = field(default_factory=lambda: SourceReport("inference_pool default/engines"))

    @property
    def now(self) -> dict[str, str]:
        """Name -> host:port of what was told last."""
        found = self.told[-1].replicas if self.told else ()
        return {one.name: f"{one.host}:{one.port}" for one in found}

    async def until(self, fact: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not fact():
                await asyncio.sleep(0.01)

    async def until_now(self, **wanted: str) -> None:
        names = {name.replace("_", "-"): address for name, address in wanted.items()}
        try:
            await self.until(lambda: self.told and self.now == names)
        except TimeoutError:
            raise AssertionError(f"{self.now} is not {names}") from None


@asynccontextmanager
async def following(
    tmp_path: Path, server: KubernetesServer | None = None, kubeconfig: str | None = None
) -> AsyncIterator[Followed]:
    """A pool `engines` with the pods a and b, and a source that follows it."""
    server = server or await KubernetesServer().start()
    server.objects.setdefault(PODS, {})
    server.objects.setdefault(POOLS, {})
    await server.put(POOLS, inference_pool())
    await server.put(PODS, pod("a", "10.0.0.1"))
    await server.put(PODS, pod("b", "10.0.0.2"))
    followed = Followed(server)
    source = PoolSource("default/engines", server.kubeconfig(tmp_path) if kubeconfig is None else kubeconfig or None)
    task = asyncio.create_task(source.follow(followed.told.append, followed.report))
    try:
        await followed.until_now(a="10.0.0.1:8000", b="10.0.0.2:8000")
        yield followed
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await server.stop()
        await asyncio.sleep(0.05)


def test_pods_come_change_and_go_with_the_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with following(tmp_path) as followed:
            server = followed.server
            await server.put(PODS, pod("c", "10.0.0.3", ready=False))
            await server.put(PODS, pod("d", ""))  # it has no address yet
            await server.put(PODS, pod("other", "10.0.0.9", app="else"))
            await server.put(PODS, pod("c", "10.0.0.3"))
            await followed.until_now(a="10.0.0.1:8000", b="10.0.0.2:8000", c="10.0.0.3:8000")
            await server.put(PODS, pod("a", "10.0.0.1", ready=False))
            await followed.until_now(b="10.0.0.2:8000", c="10.0.0.3:8000")
            assert followed.told[-1].why_gone["http://10.0.0.1:8000"] == "pod a is not ready"
            await server.put(PODS, pod("b", "10.0.0.2", terminating=True))
            await followed.until_now(c="10.0.0.3:8000")
            assert followed.told[-1].why_gone["http://10.0.0.2:8000"] == "pod b is terminating"
            await server.put(PODS, pod("c", "10.0.0.33"))
            await followed.until_now(c="10.0.0.33:8000")
            assert followed.told[-1].why_gone["http://10.0.0.3:8000"] == "pod c has another address"
            await server.delete(PODS, "c")
            await followed.until_now()
            assert followed.told[-1].why_gone["http://10.0.0.33:8000"] == "pod c is gone"
            await server.put(PODS, pod("a", "10.0.0.1", app="else"))  # its label changed
            await server.put(PODS, pod("b", "10.0.0.2"))
            await followed.until_now(b="10.0.0.2:8000")

    asyncio.run(scenario())


def test_other_ports_and_labels_of_the_pool_are_followed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with following(tmp_path) as followed:
            server = followed.server
            await server.put(POOLS, inference_pool(ports=(8000, 8001)))
            await followed.until(lambda: len(followed.now) == 4)
            assert followed.now["a:8001"] == "10.0.0.1:8001"
            await server.put(PODS, pod("x", "10.0.1.1", app="other"))
            await server.put(POOLS, inference_pool(app="other"))
            await followed.until_now(x="10.0.1.1:8000")
            await server.delete(PODS, "x")
            await followed.until_now()
            await server.put(POOLS, inference_pool())
            await followed.until_now(a="10.0.0.1:8000", b="10.0.0.2:8000")
            await server.delete(POOLS, "engines")
            await followed.until_now()
            assert followed.report.fault == "there is no InferencePool default/engines"
            await server.put(POOLS, inference_pool())
            await followed.until_now(a="10.0.0.1:8000", b="10.0.0.2:8000")
            assert not followed.report.fault

    asyncio.run(scenario())


def test_a_pool_without_labels_selects_no_pod_of_its_namespace(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with following(tmp_path) as followed:
            pool = inference_pool()
            pool["spec"]["selector"]["matchLabels"] = {}
            await followed.server.put(POOLS, pool)
            await followed.until_now()
            assert "has no matchLabels" in followed.report.fault

    asyncio.run(scenario())


def test_a_version_that_is_gone_is_listed_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with following(tmp_path) as followed:
            server = followed.server
            lists = sum("watch" not in one for one in server.asked)
            server.objects[PODS].pop("a")  # a change that no watch tells
            server.forget_versions()
            await followed.until_now(b="10.0.0.2:8000")
            assert sum("watch" not in one for one in server.asked) > lists
            await server.put(PODS, pod("c", "10.0.0.3"))
            await followed.until_now(b="10.0.0.2:8000", c="10.0.0.3:8000")

    asyncio.run(scenario())


def test_an_end_of_a_watch_goes_on_from_its_version_and_lists_nothing_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with following(tmp_path) as followed:
            server = followed.server
            await followed.until(lambda: server.watches == 2)
            lists = sum("watch" not in one for one in server.asked)
            for number in range(3):
                server.end_watches()
                await server.put(PODS, pod("a", f"10.0.0.{10 + number}"))  # while none watches
                await followed.until_now(a=f"10.0.0.{10 + number}:8000", b="10.0.0.2:8000")
            assert sum("watch" not in one for one in server.asked) == lists

    asyncio.run(scenario())


def test_bookmarks_keep_a_quiet_watch_from_growing_old(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with following(tmp_path) as followed:
            server = followed.server
            await followed.until(lambda: server.watches == 2)
            for number in range(5):  # objects of others, of which this watch hears nothing
                await server.put("/api/v1/namespaces/default/configmaps", {"metadata": {"name": f"c{number}"}})
            await asyncio.sleep(3 * server.bookmarks_seconds)
            server.forgets_below = server._version  # all before is too old
            lists, told = sum("watch" not in one for one in server.asked), len(followed.told)
            server.end_watches()
            await followed.until(lambda: server.watches == 2)
            await server.put(PODS, pod("c", "10.0.0.3"))
            await followed.until(lambda: len(followed.told) > told)
            assert len(followed.now) == 3
            assert sum("watch" not in one for one in server.asked) == lists

    asyncio.run(scenario())


def test_a_server_that_ends_each_watch_at_once_is_not_flooded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with following(tmp_path) as followed:
            server = followed.server
            server.ends_watches = True
            server.end_watches()
            before = len(server.asked)
            await asyncio.sleep(1.5)
            assert 2 <= len(server.asked) - before <= 40, "two watches, each at most ten times a second"
            await server.put(PODS, pod("c", "10.0.0.3"))
            await followed.until(lambda: len(followed.now) == 3)

    asyncio.run(scenario())


# A connection of aiohttp that is given up as it is made leaves its socket to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_the_list_ends_as_the_cluster_is(tmp_path: Path, seed: int) -> None:
    """Pods come, change and go; watches end, versions are forgotten, the server is gone: the list follows."""
    chance = random.Random(seed)

    async def disturb(server: KubernetesServer) -> None:
        name = f"p{chance.randrange(6)}"
        match chance.randrange(9):
            case 0 if name in server.objects[PODS]:
                await server.delete(PODS, name)
            case 1:
                server.end_watches()
            case 2:
                server.forget_versions()
                await server.put(PODS, pod(name, f"10.1.0.{chance.randrange(9)}"))
            case 3:
                await server.stop()
                if server.objects[PODS] and chance.random() < 0.5:  # a change that no watch tells
                    server.objects[PODS].pop(chance.choice(sorted(server.objects[PODS])))
                    server.forget_versions()
                await asyncio.sleep(0.05)
                await server.start()
            case 4:
                await server.put(POOLS, inference_pool(ports=(8000 + chance.randrange(2),)))
            case kind:
                change = {"ready": kind != 5, "terminating": kind == 6}
                await server.put(PODS, pod(name, chance.choice(["", f"10.0.0.{chance.randrange(9)}"]), **change))

    async def scenario() -> None:
        async with following(tmp_path) as followed:
            server = followed.server
            for _ in range(40):
                await disturb(server)
                await asyncio.sleep(chance.choice([0.0, 0.0, 0.02]))
            (port,) = (one["number"] for one in server.objects[POOLS]["engines"]["spec"]["targetPorts"])

            def is_there(one: dict[str, Any]) -> bool:
                ready = any(c["type"] == "Ready" and c["status"] == "True" for c in one["status"]["conditions"])
                return ready and "deletionTimestamp" not in one["metadata"] and "podIP" in one["status"]

            pods = server.objects[PODS].values()
            there = {one["metadata"]["name"]: f"{one['status']['podIP']}:{port}" for one in pods if is_there(one)}
            try:
                await followed.until(lambda: followed.now == there)
            except TimeoutError:
                raise AssertionError(f"{followed.now} is not {there}") from None

    asyncio.run(scenario())


def test_an_outage_leaves_the_list_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with following(tmp_path) as followed:
            server, told = followed.server, len(followed.told)
            await server.stop()
            await followed.until(lambda: followed.report.faults >= 4)
            assert "cannot be reached" in followed.report.fault
            assert len(followed.told) == told
            server.objects[PODS].pop("a")
            server.forgets_below = 10**6  # it restarts with no memory of versions
            server._version = 10**6
            await server.start()
            await followed.until_now(b="10.0.0.2:8000")
            await followed.until(lambda: not followed.report.fault)

    asyncio.run(scenario())
    said = [one.getMessage() for one in caplog.records if "cannot be reached" in one.getMessage()]
    assert 1 <= len(said) <= 4, "not a line for each try"


def test_long_lists_come_in_pages_also_when_a_page_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_watch, "_PAGE", "3")

    async def scenario() -> None:
        server = await KubernetesServer().start()
        for number in range(10):
            await server.put(PODS, pod(f"p{number}", f"10.0.2.{number}", app="many"))
        async with following(tmp_path, server) as followed:
            server.lists_gone = 1
            await server.put(POOLS, inference_pool(app="many"))
            await followed.until(lambda: len(followed.now) == 10)
            assert server.lists_gone == 0

    asyncio.run(scenario())


def test_a_refusal_names_its_status_and_a_new_token_is_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with following(tmp_path) as followed:
            server = followed.server
            server.tokens = {"another"}
            server.end_watches()
            await followed.until(lambda: "status 401" in followed.report.fault)
            assert len(followed.now) == 2
            server.kubeconfig(tmp_path, "another")
            await server.put(PODS, pod("c", "10.0.0.3"))
            await followed.until_now(a="10.0.0.1:8000", b="10.0.0.2:8000", c="10.0.0.3:8000")

    asyncio.run(scenario())


def test_the_service_account_of_a_pod_is_used_and_its_token_rotates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    extensions = ("subjectAltName=IP:127.0.0.1", "keyUsage=critical,digitalSignature,keyCertSign")
    names = ["-subj", "/CN=127.0.0.1", *(part for one in extensions for part in ("-addext", one))]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "ca.crt")]
    subprocess.run([*made, *names, *files], check=True, capture_output=True)
    (tmp_path / "token").write_text(TOKEN, encoding="utf-8")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "ca.crt", tmp_path / "key.pem")
    monkeypatch.setattr(kubernetes_api, "SERVICE_ACCOUNT", str(tmp_path))

    async def scenario() -> None:
        server = await KubernetesServer(tls).start()
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        async with following(tmp_path, server, kubeconfig="") as followed:
            (tmp_path / "token").write_text("rotated", encoding="utf-8")
            server.tokens = {"rotated"}
            server.end_watches()
            await server.put(PODS, pod("c", "10.0.0.3"))
            await followed.until_now(a="10.0.0.1:8000", b="10.0.0.2:8000", c="10.0.0.3:8000")

    asyncio.run(scenario())


def test_no_way_to_a_server_is_one_sentence(tmp_path: Path) -> None:
    async def scenario() -> str:
        report = SourceReport("inference_pool default/engines")
        source = PoolSource("default/engines", str(tmp_path / "none"))
        task = asyncio.create_task(source.follow(lambda findings: None, report))
        async with asyncio.timeout(10):
            while not report.fault:
                await asyncio.sleep(0.01)
        task.cancel()
        return report.fault

    fault = asyncio.run(scenario())
    assert "tells no way to the API server" in fault
    assert str(tmp_path / "none") in fault
