"""A lease at an API server of Kubernetes: what is written there, conflicts, and its absence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

pytest.importorskip("kubernetes_asyncio", reason="the extra `kubernetes` is not installed")
from headway.gateway.discovery.kubernetes_api import KubernetesApi
from headway.gateway.leadership.lease import Lease, LeaseFault, SeenLease
from headway.gateway.leadership.lease_object import ApiLeaseStore
from tests.support.kubernetes_server import KubernetesServer

LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
SECONDS = 6.0


def run(scenario: Callable[[KubernetesServer, Callable[[], ApiLeaseStore]], Awaitable[None]], folder: Path) -> None:
    async def whole() -> None:
        server = KubernetesServer()
        server.objects[LEASES] = {}
        await server.start()
        stores: list[ApiLeaseStore] = []

        def store() -> ApiLeaseStore:
            stores.append(ApiLeaseStore("default/headway", SECONDS, KubernetesApi(server.kubeconfig(folder))))
            return stores[-1]

        try:
            await scenario(server, store)
        finally:
            for one in stores:
                await one.close()
            await server.stop()

    asyncio.run(whole())


def test_it_is_made_renewed_given_up_and_taken(tmp_path: Path) -> None:
    async def scenario(server: KubernetesServer, store: Callable[[], ApiLeaseStore]) -> None:
        now = [0.0]
        first = Lease(store(), SECONDS, name="a", clock=lambda: now[0])
        second = Lease(store(), SECONDS, name="b", clock=lambda: now[0])
        await first.look()
        await second.look()
        assert (first.is_held, second.is_held) == (True, False)
        made = server.objects[LEASES]["headway"]["spec"]
        assert (made["holderIdentity"], made["leaseDurationSeconds"], made["leaseTransitions"]) == ("a", 6, 1)
        assert made["acquireTime"] == made["renewTime"]
        await first.look()
        renewed = server.objects[LEASES]["headway"]["spec"]
        assert (renewed["acquireTime"], renewed["leaseTransitions"]) == (made["acquireTime"], 1)
        assert renewed["renewTime"] > made["renewTime"]
        await first.leave()
        assert server.objects[LEASES]["headway"]["spec"]["holderIdentity"] == ""
        await second.look()
        assert second.is_held
        assert server.objects[LEASES]["headway"]["spec"]["leaseTransitions"] == 3

    run(scenario, tmp_path)


def test_of_two_that_write_at_once_one_wins(tmp_path: Path) -> None:
    async def scenario(server: KubernetesServer, store: Callable[[], ApiLeaseStore]) -> None:
        stores = [store() for _ in range(4)]
        for _ in range(5):
            seen = [await one.read() for one in stores]
            assert len(set(seen)) == 1
            wins = await asyncio.gather(
                *(one.write(f"g{place}", SECONDS, seen[0].version) for place, one in enumerate(stores))
            )
            assert sum(wins) == 1
            assert (await stores[0].read()).holder == f"g{wins.index(True)}"

    run(scenario, tmp_path)


def test_an_object_of_others_and_one_that_is_deleted(tmp_path: Path) -> None:
    async def scenario(server: KubernetesServer, store: Callable[[], ApiLeaseStore]) -> None:
        one = store()
        await server.put(LEASES, {"metadata": {"name": "headway"}})
        empty = await one.read()
        assert (empty.holder, empty.seconds) == ("", SECONDS)
        assert await one.write("a", SECONDS, empty.version)
        version = (await one.read()).version
        await server.delete(LEASES, "headway")
        assert not await one.write("a", SECONDS, version)
        assert await one.read() == SeenLease("", SECONDS, "")

    run(scenario, tmp_path)


def test_a_server_that_is_gone_ends_the_lease_and_one_that_refuses_says_why(tmp_path: Path) -> None:
    async def scenario(server: KubernetesServer, store: Callable[[], ApiLeaseStore]) -> None:
        now = [0.0]
        lease, other = Lease(store(), SECONDS, name="a", clock=lambda: now[0]), store()
        await lease.look()
        assert lease.is_held
        server.tokens.clear()
        with pytest.raises(LeaseFault, match="status 401: Unauthorized"):
            await other.read()
        await server.stop()
        now[0] += SECONDS
        await lease.look()
        assert not lease.is_held
        with pytest.raises(LeaseFault, match="the API server cannot be reached"):
            await other.write("b", SECONDS, "1")

    run(scenario, tmp_path)
