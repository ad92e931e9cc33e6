"""`ordering = "auto"` in a gateway: it watches, looks in a process of its own, switches, and survives its faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from headway.gateway.gateway_twin import GatewayTwin, prefix_blocks
from headway.gateway.settings import AutoSettings, PolicySettings, Settings, StateSettings
from headway.twin.auto_steering import AutoSteering
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.look_messages import Judged, LookAnswer, LookFault, TwinLook
from headway.twin.traffic_window import SeenRequest
from tests.support.gateway_requests import gateway_request
from tests.support.gateway_setup import RunGateway, Setup, completion
from tests.support.scripted_replica import answers, streams, waits_for

AUTO = Settings(
    policies=PolicySettings(ordering="auto", prediction="histogram"),
    auto=AutoSettings(begin="configured", look_seconds=1.0, cpu_share=1.0, looks=1, window_requests=400),
)
OTHER = ChosenBundle("shortest-prompt-first", prediction="histogram")


class ScriptedLooks:
    """Answers at once that another bundle is better; keeps what it was asked."""

    is_busy = False
    cpu_seconds = pause_seconds = 0.0
    memory_bytes = 0

    def __init__(self, fault: str | None = None, other: ChosenBundle = OTHER) -> None:
        self.asked: list[tuple[TwinLook, Sequence[SeenRequest]]] = []
        self._fault = fault
        self._other = other

    def ask(self, look: TwinLook, rows: Sequence[SeenRequest]) -> None:
        self.is_busy = True
        self.asked.append((look, rows))

    def take(self) -> LookAnswer | LookFault:
        self.is_busy = False
        if self._fault is not None:
            return LookFault(self._fault)
        look, rows = self.asked[-1]
        judged = [Judged(look.current, 2.0, 4.0, 2.0), Judged(self._other, 1.0, 4.4, 1.0, 2.0, True)]
        return LookAnswer(len(rows), len(rows), 1.0, judged, None, (5, 4, 3, 2, 1), 0.0)

    def close(self) -> None:
        pass


def steering(setup: Setup) -> AutoSteering:
    found = setup.gateway.twin.steering
    assert found is not None
    return found


def scripted(setup: Setup, fault: str | None = None, other: ChosenBundle = OTHER) -> ScriptedLooks:
    looks = ScriptedLooks(fault, other)
    steering(setup)._process = looks
    return looks


async def asked(setup: Setup, requests: int) -> None:
    for number in range(requests):
        assert (await setup.ask(completion(prompt="word " * (1 + number % 300)))).status == 200


def test_auto_is_the_default_order_with_a_twin() -> None:
    assert AUTO.policies.ordering == "highest-response-ratio"
    assert AUTO.auto.on
    assert not Settings().auto.on
    assert replace(AUTO, listen="127.0.0.1:1").auto.on


def test_it_switches_says_so_and_keeps_the_choice_over_a_reload_and_a_restart(
    run_gateway: RunGateway, tmp_path: Path
) -> None:
    state = StateSettings(path=str(tmp_path / "state.json"))

    async def first(setup: Setup) -> None:
        looks = scripted(setup)
        setup.replicas[0].usual = streams(3)
        await asked(setup, 220)
        while not steering(setup).switches:
            await asyncio.sleep(0.05)
        assert setup.dispatcher.settings.policies.ordering == "shortest-prompt-first"
        (queue,) = setup.dispatcher.queues.values()
        assert type(queue.scheduler.queue.online._ordering).__name__ != "HighestResponseRatio"
        look, rows = looks.asked[0]
        assert 200 <= len(rows) <= 220
        last = rows[-1]
        assert last.output_tokens == 3
        assert last.started_at is not None
        assert last.first_token_at is not None
        assert last.arrived_at <= last.started_at <= last.first_token_at
        assert look.engine.replicas == 1
        shown = (await setup.get("/headway/state")).json()["auto"]
        assert shown["bundle"] == "shortest-prompt-first"
        sentence = "from highest-response-ratio to shortest-prompt-first: predicted mean TTFT 0.50×, p99 1.10×"
        assert any(sentence in one for one in shown["sentences"])
        assert len(shown["said_at"]) == len(shown["sentences"])
        assert shown["said_at"] == sorted(shown["said_at"])
        metrics = (await setup.get("/metrics")).body.decode()
        assert 'headway_auto_bundle{bundle="shortest-prompt-first"} 1.0' in metrics
        assert "headway_auto_switches_total 1.0" in metrics
        setup.gateway.reload(setup.settings)
        assert setup.dispatcher.settings.policies.ordering == "shortest-prompt-first"
        assert await setup.gateway.drain()
        assert json.loads((tmp_path / "state.json").read_text())["learned"]["twin"]["step_time"] == [5, 4, 3, 2, 1]

    async def second(setup: Setup) -> None:
        assert setup.dispatcher.settings.policies.ordering == "shortest-prompt-first"
        setup.gateway.reload(replace(setup.settings, policies=PolicySettings(ordering="fcfs"), auto=AutoSettings()))
        assert setup.dispatcher.settings.policies.ordering == "fcfs"
        assert (await setup.get("/headway/state")).json()["auto"] is None

    run_gateway(first, policies=AUTO.policies, auto=AUTO.auto, state=state)
    run_gateway(second, policies=AUTO.policies, auto=AUTO.auto, state=state)


def test_requests_that_wait_go_over_and_none_is_lost(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        scripted(setup)
        setup.replicas[0].usual = streams(2)
        await asked(setup, 205)
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams(2))
        waiting = [asyncio.create_task(setup.ask(completion(prompt="word " * 50))) for _ in range(40)]
        while not steering(setup).switches:
            await asyncio.sleep(0.05)
        assert setup.dispatcher.served_queues.is_switching
        gate.set()
        assert {(await one).status for one in waiting} == {200}
        assert not setup.dispatcher.served_queues.is_switching
        assert setup.dispatcher.counts.inside == 0

    run_gateway(scenario, policies=AUTO.policies, auto=AUTO.auto, seats=2)


def test_a_fault_of_the_twin_changes_nothing_and_is_said(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        scripted(setup, "its process ended by itself")
        setup.replicas[0].usual = streams(1)
        await asked(setup, 201)
        while not steering(setup).faults:
            await asyncio.sleep(0.05)
        assert setup.dispatcher.settings.policies.ordering == "highest-response-ratio"
        assert "its process ended by itself; the next look is in" in steering(setup).sentences[-1]
        assert (await setup.ask()).status == 200

    run_gateway(scenario, policies=AUTO.policies, auto=AUTO.auto)


UNUSABLE = (
    ChosenBundle("an-order-that-was", prediction="histogram"),
    ChosenBundle("boost", prediction="histogram", options={"ordering": {"decay_factor": "much"}}),
    ChosenBundle("fcfs", prediction="oracle"),
    ChosenBundle("fcfs", "peak-check", prediction="histogram", options={"admission": {"unknown": 1}}),
)


@pytest.mark.parametrize("bundle", UNUSABLE, ids=str)
def test_a_bundle_that_cannot_be_built_is_not_believed(run_gateway: RunGateway, bundle: ChosenBundle) -> None:
    async def scenario(setup: Setup) -> None:
        scripted(setup, other=bundle)
        setup.replicas[0].usual = streams(1)
        await asked(setup, 201)
        while not steering(setup).faults:
            await asyncio.sleep(0.05)
        assert "a bundle of the look cannot be used" in steering(setup).sentences[-1]
        assert setup.dispatcher.settings.policies.ordering == "highest-response-ratio"
        assert (await setup.ask()).status == 200

    run_gateway(scenario, policies=AUTO.policies, auto=AUTO.auto)


@pytest.mark.parametrize("bundle", UNUSABLE, ids=str)
def test_a_state_file_with_such_a_bundle_costs_the_twin_its_choice_alone(
    run_gateway: RunGateway, tmp_path: Path, bundle: ChosenBundle
) -> None:
    path = tmp_path / "state.json"
    state = StateSettings(path=str(path))

    async def first(setup: Setup) -> None:
        setup.replicas[0].usual = streams(3)
        await asked(setup, 3)
        assert await setup.gateway.drain()

    async def second(setup: Setup) -> None:
        setup.replicas[0].usual = streams(3)
        assert (await setup.ask()).status == 200
        assert setup.dispatcher.settings.policies.ordering == "highest-response-ratio"
        assert setup.gateway._prompt_count._ratio.state(), "what else was learned is kept"

    run_gateway(first, policies=AUTO.policies, auto=AUTO.auto, state=state)
    saved = json.loads(path.read_text())
    saved["learned"]["twin"]["bundle"] = bundle.to_json()
    path.write_text(json.dumps(saved))
    run_gateway(second, policies=AUTO.policies, auto=AUTO.auto, state=state)


def test_options_of_the_configured_admission_do_not_go_to_another_one(run_gateway: RunGateway) -> None:
    configured = PolicySettings(
        ordering="auto",
        admission="peak-check",
        prediction="histogram",
        options={"admission": {"reserve": 0.1}, "routing": {}},
    )
    other = ChosenBundle("fcfs", "overflow-probability", prediction="histogram")

    async def scenario(setup: Setup) -> None:
        scripted(setup, other=other)
        setup.replicas[0].usual = streams(1)
        await asked(setup, 201)
        while not steering(setup).switches:
            await asyncio.sleep(0.05)
        policies = setup.dispatcher.settings.policies
        assert (policies.admission, dict(policies.options)) == ("overflow-probability", {"routing": {}})
        assert (await setup.ask()).status == 200

    run_gateway(scenario, policies=configured, auto=AUTO.auto)


def test_made_up_names_of_models_take_no_place_and_refused_requests_do_not_choose(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        looks = scripted(setup)
        setup.replicas[0].usual = streams(1)
        setup.replicas[0].models = ("m", "other")
        await setup.until(lambda: setup.gateway.dispatcher.replicas[0].serves("other"))
        for number in range(20):
            assert (await setup.ask(completion(model=f"made-up-{number}"))).status == 404
        setup.replicas[0].usual = answers(400)
        for _ in range(230):
            assert (await setup.ask(completion(model="other"))).status == 400
        setup.replicas[0].usual = streams(1)
        await asked(setup, 201)
        while not looks.asked:
            await asyncio.sleep(0.05)
        assert len(looks.asked[0][1]) >= 200
        assert setup.gateway.twin._model == "m"

    run_gateway(scenario, policies=AUTO.policies, auto=AUTO.auto)


def test_it_looks_at_the_model_that_is_asked_for_now_and_gives_places_to_new_ones(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        looks, twin, numbers = scripted(setup), setup.gateway.twin, iter(range(1_000_000, 2_000_000))
        models = [f"model-{number}" for number in range(9)]
        setup.replicas[0].models = ("m", *models)
        await setup.until(lambda: setup.gateway.dispatcher.replicas[0].serves(models[0]))

        def come(model: str, requests: int, prompt_tokens: int) -> None:
            for _ in range(requests):
                body = {"prompt": "x"}
                twin.arrived(gateway_request(next(numbers), body, model=model, prompt_tokens=prompt_tokens))

        async def look_at(prompt_tokens: int) -> None:
            while not looks.asked or looks.asked[-1][1][-1].prompt_tokens != prompt_tokens:
                await asyncio.sleep(0.05)

        for model in models[1:8]:
            come(model, 1, 5)
        come(models[0], 400, 10)  # as many as a window holds
        await look_at(10)
        come(models[1], 250, 20)
        await look_at(20)
        come(models[8], 250, 30)
        await look_at(30)

    run_gateway(scenario, policies=AUTO.policies, auto=AUTO.auto)


def test_the_real_process_looks_at_real_traffic(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = streams(3)
        await asked(setup, 210)
        while not steering(setup).looks:
            assert not steering(setup).faults, steering(setup).sentences
            await asyncio.sleep(0.1)
        assert steering(setup).sentences[-1].startswith("stays with highest-response-ratio")
        assert steering(setup).cpu_seconds > 0
        assert 0 < steering(setup).memory_bytes < AUTO.auto.memory_mb << 20

    run_gateway(scenario, policies=AUTO.policies, auto=AUTO.auto)


def test_it_begins_with_the_order_of_the_objective(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        while not steering(setup).sentences:
            await asyncio.sleep(0.05)
        assert setup.dispatcher.settings.policies.ordering == "priced-work"
        assert dict(setup.dispatcher.settings.policies.options["ordering"]) == {"patience": 2.0}
        setup.replicas[0].usual = streams(1)
        assert (await setup.ask()).status == 200

    run_gateway(scenario, policies=AUTO.policies, auto=replace(AUTO.auto, begin="objective"))


def test_without_auto_there_is_no_twin() -> None:
    twin = GatewayTwin(Settings(), lambda: (), lambda sentence: None)
    assert twin.steering is None
    assert twin.shown() is None
    assert list(twin.metrics()) == []
    assert twin.in_force(Settings()) == Settings()


def test_equal_prefixes_have_equal_blocks() -> None:
    hashes = list(range(100, 120))
    longer = prefix_blocks(hashes, 16_384, 4_096)
    assert len(longer) == 8
    shorter = prefix_blocks([*hashes[:6], 1, 2], 8_192, 2_048)
    assert shorter[:2] == longer[:2]
    assert shorter[3] != longer[3]
    assert prefix_blocks([], 100, 25) == prefix_blocks(hashes, 100, 0) == []
