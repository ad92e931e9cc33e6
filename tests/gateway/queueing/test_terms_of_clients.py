"""Terms that clients set for their own requests, through the whole gateway."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from headway.gateway.settings import (
    ModelSettings,
    PolicySettings,
    QueueSettings,
    TenantSettings,
)
from tests.support.gateway_setup import QUICK, RunGateway, Setup, completion
from tests.support.scripted_replica import dies_at_once, streams, waits_for

FREQUENT = replace(QUICK, models_seconds=0.05)

KEY = "authorization: Bearer the-key-of-a\r\n"
NOW = "x-headway-no-queue: true\r\n"


def test_tiers_order_the_queue_and_the_answer_says_which_counted(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_A", "the-key-of-a")
    tenant = TenantSettings("a", "KEY_A", may=("priority",), priority_min=-10)

    async def scenario(setup: Setup) -> None:
        (replica,) = setup.replicas
        gate = asyncio.Event()
        replica.usual = waits_for(gate, streams())
        asking = [asyncio.ensure_future(setup.ask(completion(prompt="first"), headers=KEY))]
        await setup.until(lambda: len(replica.calls) == 1)
        for number, tier in enumerate(("flex", "auto", "priority"), 2):
            body = completion(prompt=tier, service_tier=tier)
            asking.append(asyncio.ensure_future(setup.ask(body, headers=KEY)))
            await setup.until(lambda: setup.dispatcher.counts.inside == number)  # noqa: B023
        gate.set()
        answers = await asyncio.gather(*asking)
        assert [call.json()["prompt"] for call in replica.calls] == ["first", "priority", "auto", "flex"]
        told = [answer.headers.get("x-headway-service-tier") for answer in answers]
        assert told == [None, "flex", "default", "priority"]
        refused = await setup.ask(completion(service_tier="scale"), headers=KEY)
        assert (refused.status, refused.reason, len(replica.calls)) == (400, "malformed", 4)
        large = completion(service_tier=5, prompt="x" * 200_000)
        assert (
            "`service_tier` in the body is not valid"
            in (await setup.ask(large, headers=KEY)).json()["error"]["message"]
        )

    run_gateway(scenario, seats=1, tenant=(tenant,), policies=PolicySettings(ordering="priority"))


def test_a_request_that_never_waits_is_sent_at_once_or_refused(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        first = asyncio.ensure_future(setup.ask(headers=NOW))
        await setup.until(lambda: len(setup.replicas[0].calls) == 1)
        refused = await setup.ask(headers=NOW)
        assert (refused.status, refused.reason) == (429, "no-queue")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await setup.ask(headers="x-headway-no-queue: perhaps\r\n")).status == 400
        gate.set()
        assert (await first).status == 200

    run_gateway(scenario, seats=1)


@pytest.mark.parametrize("header", ["x-headway-no-queue: false", "x-headway-timeout-seconds: 9", "X-Headway-Any: a"])
def test_a_header_of_ours_that_is_sent_twice_is_refused_in_the_shape_of_the_path(
    run_gateway: RunGateway, header: str
) -> None:
    async def scenario(setup: Setup) -> None:
        shapes = {"/v1/completions": ["error"], "/v1/responses": ["error"], "/v1/messages": ["error", "type"]}
        for path, fields in shapes.items():
            refused = await setup.ask(completion(), path=path, headers=f"{header}\r\n{header.lower()}\r\n")
            assert (refused.status, refused.reason) == (400, "malformed")
            assert sorted(refused.json()) == fields
            name = header.lower().partition(":")[0]
            message = f"the header {name} is sent more than once; send it once"
            assert refused.json()["error"]["message"] == message
        once = await setup.ask(headers=f"{header}\r\naccept: a\r\naccept: b\r\n")
        assert once.status == 200

    run_gateway(scenario)


def test_nor_does_it_wait_for_its_second_try(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        held = asyncio.ensure_future(setup.ask())
        setup.replicas[0].usual = setup.replicas[1].usual = waits_for(gate, streams())
        await setup.until(lambda: setup.dispatcher.counts.inside == 1)
        await setup.until(lambda: any(one.calls for one in setup.replicas))
        other = next(one for one in setup.replicas if not one.calls)
        other.next.append(dies_at_once)
        refused = await setup.ask(headers=NOW)
        assert (refused.status, refused.reason) == (429, "no-queue")
        gate.set()
        await held

    run_gateway(scenario, replicas=2, seats=1)


def test_one_model_has_an_order_and_bounds_of_its_own(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        (replica,) = setup.replicas
        replica.models = ("m", "short")
        await setup.until(lambda: "short" in (setup.dispatcher.replicas[0].state.models or {}))
        gate = asyncio.Event()
        replica.usual = waits_for(gate, streams())
        asking = [asyncio.ensure_future(setup.ask())]
        await setup.until(lambda: len(replica.calls) == 1)
        for number, prompt in enumerate(("long " * 500, "brief"), 2):
            asking.append(asyncio.ensure_future(setup.ask(completion(model="short", prompt=prompt))))
            await setup.until(lambda: setup.dispatcher.counts.inside == number)  # noqa: B023
        refused = await setup.ask(completion(model="short"))
        assert (refused.status, refused.reason) == (429, "queue-full")
        assert "the queue of 'short' is full: its limit is 2 requests" in refused.json()["error"]["message"]
        gate.set()
        await asyncio.gather(*asking)
        assert [str(call.json()["prompt"])[:5] for call in replica.calls] == ["hello", "brief", "long "]

    own = ModelSettings(ordering="shortest-prompt-first", max_requests=2)
    queue = QueueSettings(class_ceilings={"flex": 0.5})
    run_gateway(scenario, seats=1, models={"short": own}, queue=queue, health=FREQUENT)
