"""Every replica gone, or the only one left has failed this request: an answer within the grace, never silence."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from headway.gateway.settings import QueueSettings, TenantSettings
from tests.support.gateway_setup import QUICK, RunGateway, Setup, completion
from tests.support.scripted_replica import ScriptedReplica, dies_at_once, hangs, streams, waits_for

PATIENT = replace(QUICK, no_replica_seconds=30.0)
HASTY = replace(QUICK, no_replica_seconds=0.5)


def test_who_waits_when_all_replicas_die_is_told_after_the_grace(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = hangs
        asking = [asyncio.ensure_future(setup.ask()) for _ in range(5)]
        await setup.until(lambda: setup.replicas[0].inside == 1)
        await setup.replicas[0].stop()
        began = time.monotonic()
        found = await asyncio.gather(*asking)
        assert time.monotonic() - began < 10
        told = [(answer.status, answer.reason) for answer in found]
        # Who ran, and perhaps the one sent next, before anybody knew.
        assert 1 <= told.count((502, "replica-failed")) <= 2
        assert told.count((503, "no-replica")) >= 3
        assert all("retry-after" in answer.headers for answer in found if answer.status == 503)

    run_gateway(scenario, seats=1, health=HASTY)


def test_a_replica_that_comes_back_within_the_grace_is_used(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        asking = [asyncio.ensure_future(setup.ask()) for _ in range(5)]
        await setup.until(lambda: setup.replicas[0].inside == 1)
        await setup.replicas[0].stop()
        await setup.until(lambda: not setup.dispatcher.replicas[0].is_up)
        for _ in range(3):
            setup.dispatcher.sweep(time.monotonic())
        gate.set()
        await setup.replicas[0].start()
        found = [answer.status for answer in await asyncio.gather(*asking)]
        assert found.count(200) >= 3
        assert found.count(200) + found.count(502) == 5

    run_gateway(scenario, seats=1, health=PATIENT)


def test_newcomers_of_an_outage_are_answered_by_the_replica_that_comes(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        assert (await setup.get("/ready")).status == 200
        await setup.replicas[0].stop()
        await setup.until(lambda: not setup.dispatcher.replicas[0].is_up)
        assert (await setup.get("/ready")).json() == {
            "ready": True,
            "replicas_up": 0,
            "replicas_drained": 0,
            "draining": False,
        }
        asking = [asyncio.ensure_future(setup.ask(completion(prompt=f"number {number}"))) for number in range(5)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 5)
        await setup.replicas[0].start()
        assert [answer.status for answer in await asyncio.gather(*asking)] == [200] * 5
        prompts = [call.json()["prompt"] for call in setup.replicas[0].calls if call.path == "/v1/completions"]
        assert prompts == [f"number {number}" for number in range(5)]

    run_gateway(scenario, seats=1, health=replace(PATIENT, ready_without_replica=True))


def test_nobody_is_kept_behind_one_who_can_go_nowhere(run_gateway: RunGateway) -> None:
    """It failed on the first replica and waits for the second, which dies: the first is free for those behind it."""

    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        for one in setup.replicas:
            one.usual = waits_for(gate, streams())
        busy = asyncio.ensure_future(setup.ask())
        await setup.until(lambda: any(one.inside for one in setup.replicas))
        second, first = sorted(setup.replicas, key=lambda one: one.inside, reverse=True)
        first.usual = streams()
        first.next.append(dies_at_once)
        failed = asyncio.ensure_future(setup.ask())
        await setup.until(lambda: setup.dispatcher.counts.retried == 1)
        assert second._server is not None
        second._server.close()  # deaf to newcomers, and still busy with one
        answer = await failed
        assert (answer.status, answer.reason) == (503, "no-replica")
        assert "failed, and no other is up" in answer.json()["error"]["message"]
        assert (await setup.ask()).status == 200
        gate.set()
        assert (await busy).status == 200

    run_gateway(scenario, replicas=2, seats=1, health=PATIENT, metrics="vllm:num_requests_waiting 0\n")


def test_a_model_whose_only_replica_is_down_is_not_waited_for(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        other = await ScriptedReplica(models=("other",)).start()
        settings = setup.settings.replica[0]
        setup.gateway.reload(replace(setup.settings, replica=(settings, replace(settings, url=other.url, name="o"))))
        await setup.until(lambda: all(replica.is_up for replica in setup.dispatcher.replicas))
        await other.stop()
        await setup.until(lambda: not setup.dispatcher.replicas[1].is_up)
        answer = await setup.ask(completion(model="other"))
        assert (answer.status, answer.reason) == (503, "no-replica")
        assert "no healthy replica serves the model 'other'" in answer.json()["error"]["message"]
        assert (await setup.ask(completion(model="nobody's"))).status == 404
        assert (await setup.ask()).status == 200

    run_gateway(scenario, health=PATIENT, queue=QueueSettings(no_replica_max_requests=0))


def test_a_key_has_bounds_of_its_own_whatever_fairness_ids_it_names(run_gateway: RunGateway, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("TEAM_KEY", "team-key-1")
    monkeypatch.setenv("OTHER_KEY", "other-key-1")
    tenants = tuple(
        TenantSettings(name=name, key_env=f"{name.upper()}_KEY", may=("fairness-id",)) for name in ("team", "other")
    )

    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())

        def ask(name: str, prompt: str, fairness: str = "") -> asyncio.Future:  # type: ignore[type-arg]
            headers = f"authorization: Bearer {name}-key-1\r\nx-llm-d-inference-fairness-id: {fairness}\r\n"
            return asyncio.ensure_future(setup.ask(completion(prompt=prompt), headers=headers))

        asking = [ask("team", "x" * 400, f"user-{number}") for number in range(3)]  # one runs, two wait
        await setup.until(lambda: setup.dispatcher.counts.inside == 3)
        answer = await ask("team", "x" * 2_900, "user-9")  # bytes enough are left, which the head would tell
        assert (answer.status, answer.reason) == (429, "tenant-queue-full")
        assert "prompt tokens" in answer.json()["error"]["message"]
        answer = await ask("team", "\\n" * 1_100, "user-10")  # few tokens more, many bytes
        assert "bytes" in answer.json()["error"]["message"]
        asking.append(ask("other", "x" * 4_000))
        await setup.until(lambda: setup.dispatcher.counts.inside == 4)
        gate.set()
        assert {one.status for one in await asyncio.gather(*asking)} == {200}

    bounds = QueueSettings(tenant_max_tokens=800, tenant_max_bytes=4_000)
    run_gateway(scenario, seats=1, queue=bounds, tenant=tenants)
