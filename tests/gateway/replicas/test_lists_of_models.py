"""Lists of models that are lacking: no replica is up yet, or one keeps its list for a key."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from tests.support.gateway_setup import QUICK, RunGateway, Setup
from tests.support.scripted_replica import answers, waits_for

FREQUENT = replace(QUICK, models_seconds=0.05)


def test_without_a_healthy_replica_there_is_no_list_rather_than_an_empty_one(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        assert [model["id"] for model in (await setup.get("/v1/models")).json()["data"]] == ["m"]
        setup.replicas[0].instead = dict.fromkeys(("/v1/models", "/health"), answers(500, {}))
        await setup.until(lambda: not setup.dispatcher.replicas[0].is_up)
        answer = await setup.get("/v1/models")
        assert (answer.status, answer.reason) == (503, "no-replica")
        assert 0 < int(answer.headers["retry-after"]) <= 6
        assert answer.json()["error"]["message"] == "no replica is healthy, so no model is known; try again"

    run_gateway(scenario, health=FREQUENT)


@pytest.mark.parametrize("status", [401, 403])
def test_a_list_that_is_kept_for_a_key_is_said_once_in_the_log_and_on_the_page(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    sentence = f"its /v1/models wants a key (status {status}); set `api_key_env` to a variable that holds its key"

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].instead["/v1/models"] = answers(status, {})
        (replica,) = setup.dispatcher.replicas
        await setup.until(lambda: replica.state.models_withheld)
        await asyncio.sleep(0.2)  # some more probes
        assert (await setup.get("/headway/state")).json()["replicas"][0]["models_withheld"] == sentence
        assert [record.getMessage() for record in caplog.records].count(f"replica r0 lists no models: {sentence}") == 1
        assert replica.is_up
        del setup.replicas[0].instead["/v1/models"]
        await setup.until(lambda: not replica.state.models_withheld)

    with caplog.at_level(logging.WARNING, "headway.gateway"):
        run_gateway(scenario, health=FREQUENT)


def test_an_empty_list_is_said_once_in_the_log_and_on_the_page(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture
) -> None:
    sentence = "its /v1/models is an empty list; if that takes a key, set `api_key_env` to a variable that holds it"

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].instead["/v1/models"] = answers(200, {"object": "list", "data": []})
        (replica,) = setup.dispatcher.replicas
        await setup.until(lambda: replica.state.models_withheld == sentence)
        await asyncio.sleep(0.2)  # some more probes
        assert [record.getMessage() for record in caplog.records].count(f"replica r0 lists no models: {sentence}") == 1
        assert (await setup.ask()).status == 200, "it is believed to have any"

    with caplog.at_level(logging.WARNING, "headway.gateway"):
        run_gateway(scenario, health=FREQUENT)


def test_what_came_before_the_first_list_counts_under_its_model(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        (replica,) = setup.dispatcher.replicas
        known, replica.state.models = replica.state.models, None
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, answers())
        asking = [asyncio.ensure_future(setup.ask({"model": name, "prompt": "x"})) for name in ("m", "invented")]
        await setup.until(lambda: len(setup.replicas[0].calls) == 2)
        assert [key.model for key in setup.dispatcher.queues] == [""]
        replica.state.models = known
        gate.set()
        await asyncio.gather(*asking)
        text = (await setup.get("/metrics")).body.decode()
        counted = [line for line in text.splitlines() if line.startswith("headway_flow_control_requests_total{")]
        assert sorted(line.partition('model_name="')[2].partition('"')[0] for line in counted) == ["", "m"]

    run_gateway(scenario)
