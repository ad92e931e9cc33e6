"""The page of metrics: whole at every client, however many tenants there are and however slowly it is read."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families as parsed

from headway.gateway.settings import QueueSettings
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion

TENANTS = 300


async def ask_as(setup: Setup, number: int) -> None:
    header = f"x-llm-d-inference-fairness-id: team-{number}-{'n' * 100}\r\n"
    assert (await setup.ask(completion(), headers=header)).status == 200


def ids_of(page: bytes) -> set[str]:
    return {
        sample.labels["fairness_id"]
        for family in parsed(page.decode())
        for sample in family.samples
        if sample.name == "headway_request_duration_seconds_count"
    }


def test_a_page_of_many_tenants_is_whole_in_slices(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for number in range(TENANTS):
            await ask_as(setup, number)
        page = await setup.get("/metrics")
        assert (page.status, page.whole, page.headers["transfer-encoding"]) == (200, True, "chunked")
        assert len(await asyncio.to_thread(ids_of, page.body)) == TENANTS  # or it held the loop
        assert (await setup.get("/metrics")).body.count(b"fairness_id") == page.body.count(b"fairness_id")

    run_gateway(scenario, seats=8)


def test_series_beyond_the_bound_are_added_up(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for number in range(20):
            await ask_as(setup, number)
        page = (await setup.get("/metrics")).body.decode()
        ended = [
            sample
            for family in parsed(page)
            for sample in family.samples
            if sample.name == "headway_flow_control_requests_total"
        ]
        assert len(ended) == 6
        assert sum(sample.value for sample in ended) == 20
        assert {sample.value for sample in ended if sample.labels["fairness_id"] == "other"} == {15}

    run_gateway(scenario, metrics_series_max=5)


def test_a_scraper_that_leaves_or_does_not_read_harms_nothing(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for number in range(TENANTS):
            await ask_as(setup, number)
        async with RawClient(setup.port) as leaves:
            await leaves.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            await leaves.head()
        async with RawClient(setup.port) as slow:
            await slow.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 2)
            assert (await setup.ask()).status == 200
            for _ in range(2):
                page = await slow.answer()
                assert page.whole
                assert page.body.endswith(b"\n")

    run_gateway(scenario, seats=8)


def test_a_queue_without_requests_is_forgotten_and_made_again(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        assert (await setup.ask()).status == 200
        await setup.until(lambda: not setup.dispatcher.queues)
        assert b"headway_flow_control_queue_size{" not in (await setup.get("/metrics")).body
        await asyncio.gather(*(setup.ask() for _ in range(3)))

    run_gateway(scenario, queue=QueueSettings(idle_seconds=0.05))
