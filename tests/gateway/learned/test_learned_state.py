"""What the gateway learned is there again after a restart and a reload, and a bad file is no reason not to start."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from headway.gateway.gateway import Gateway
from headway.gateway.learned.queue_tuning import check_tuning
from headway.gateway.queueing.model_queue import QueueKey
from headway.gateway.settings import (
    PolicySettings,
    Settings,
    StateSettings,
    TuningSettings,
)
from headway.gateway.settings_file import check
from tests.support.gateway_setup import RunGateway, Setup, completion
from tests.support.scripted_replica import streams

LEARNING = PolicySettings(ordering="ewsjf", prediction="histogram", options={"ordering": {"relearn_requests": 20}})
LINE = QueueKey("m", "generation")


def prediction(setup: Setup) -> float:
    """What a new request's length is believed to be, by the queue's own predictor."""
    from headway.domain.request import Request

    live = setup.gateway._learned._live[LINE]
    return float(live.learned.policies.prediction.predict(Request(-1, 0.0, 3)).remaining_mean(0))


async def traffic(setup: Setup, requests: int = 30, tokens: int = 40) -> None:
    setup.replicas[0].usual = streams(tokens)
    for number in range(requests):
        assert (await setup.ask(completion(prompt="x" * (10 + 40 * (number % 7))))).status == 200


def test_learned_state_outlives_a_restart(run_gateway: RunGateway, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    known: list[float] = []
    sizes: list[list[int]] = []

    async def first(setup: Setup) -> None:
        await traffic(setup)
        known.append(prediction(setup))
        assert await setup.gateway.drain()
        content = json.loads(path.read_text())
        sizes.append(content["learned"]["lines"][0]["ordering"]["state"]["window"])
        assert len(sizes[0]) == 30
        assert 1 < content["learned"]["bytes_per_token"]["m"] < 100

    async def second(setup: Setup) -> None:
        setup.replicas[0].usual = streams(1)
        assert (await setup.ask()).status == 200
        assert prediction(setup) == pytest.approx(known[0], rel=0.2)
        assert setup.gateway._learned._live[LINE].learned.policies.ordering.state()["window"][:30] == sizes[0]

    async def other_policies(setup: Setup) -> None:
        assert (await setup.ask()).status == 200
        assert prediction(setup) == pytest.approx(known[0], rel=0.2)
        assert told == ["what was learned for m: its ordering is 'ewsjf', not 'fcfs', which starts afresh"]

    kept = StateSettings(path=str(path))
    run_gateway(first, policies=LEARNING, state=kept)
    run_gateway(second, policies=LEARNING, state=kept)
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headway.gateway.gateway.log.warning", told.append)
        run_gateway(other_policies, policies=replace(LEARNING, ordering="fcfs", options={}), state=kept)


def test_it_is_saved_as_time_passes_too(run_gateway: RunGateway, tmp_path: Path) -> None:
    path = tmp_path / "state.json"

    async def scenario(setup: Setup) -> None:
        await traffic(setup, 3)
        await setup.until(path.exists)
        await setup.until(lambda: json.loads(path.read_text())["learned"]["lines"])
        assert [file.name for file in tmp_path.iterdir()] == ["state.json"]

    run_gateway(scenario, policies=LEARNING, state=StateSettings(path=str(path), save_seconds=0.2))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "it cannot be read"),
        ("[]", "it is not a state file of Headway"),
        ('{"format":"headway-state","version":99}', "it has version 99, and this Headway reads 1"),
        ('{"format":"headway-state","version":1,"policy":"ewsjf"}', "it belongs to the policy 'ewsjf', not to"),
        (
            '{"format":"headway-state","version":1,"policy":"gateway","problem":"","trials":[],"learned":{"lines":[1]}}',
            "a part is missing or of another kind",
        ),
    ],
)
def test_a_bad_file_is_told_of_once_and_not_a_reason_not_to_start(
    run_gateway: RunGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, sentence: str
) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    told: list[str] = []
    monkeypatch.setattr("headway.gateway.gateway.log.warning", told.append)

    async def scenario(setup: Setup) -> None:
        assert (await setup.ask()).status == 200

    run_gateway(scenario, policies=LEARNING, state=StateSettings(path=str(path)))
    assert len(told) == 1
    assert sentence in told[0]
    assert told[0].startswith(str(path))
    assert told[0].endswith("starting afresh")
    assert json.loads(path.read_text())["learned"]["lines"], "it is written anew when the gateway ends"


def test_a_reload_forgets_only_what_belonged_to_another_policy(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        await traffic(setup)
        known = prediction(setup)
        setup.gateway.reload(replace(setup.settings, policies=replace(LEARNING, ordering="fcfs", options={})))
        assert prediction(setup) == pytest.approx(known)

    run_gateway(scenario, policies=LEARNING)


def test_a_queue_that_was_forgotten_knows_what_it_had_learned(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        await traffic(setup)
        learned = prediction(setup)
        idle = replace(setup.settings.queue, idle_seconds=0.01)
        setup.gateway.reload(replace(setup.settings, queue=idle))
        await setup.until(lambda: not setup.dispatcher.queues)
        assert LINE not in setup.gateway._learned._live
        setup.gateway.reload(setup.settings)
        setup.replicas[0].next.append(streams(40))
        assert (await setup.ask()).status == 200
        assert abs(prediction(setup) - learned) < 5

    run_gateway(scenario, policies=LEARNING)


def test_a_folder_that_is_not_there_is_told_at_the_start(tmp_path: Path) -> None:
    settings = Settings(state=StateSettings(path=str(tmp_path / "none" / "state.json")))
    with pytest.raises(ValueError, match=r"state\.path: there is no folder .*; make it first"):
        Gateway(settings)


def test_the_live_tuner_tries_values_on_the_traffic_and_says_so(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []

    # How many descriptors there are depends on the machine: only lines of the tuner are kept.
    def tell(sentence: str, *_: object, **facts: object) -> None:
        told.extend([sentence] if sentence.startswith("tuning") else [])

    monkeypatch.setattr("headway.gateway.gateway.log.info", tell)
    path = tmp_path / "state.json"

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = streams(2)
        for _ in range(40):
            await setup.ask()
            await asyncio.sleep(0.005)
        tuner = setup.gateway._learned._live[LINE].tuner
        assert tuner is not None
        await setup.until(lambda: len(tuner.trials) >= 2)
        await setup.until(lambda: len(told) >= 2)
        assert told[0].startswith("tuning m: ")
        state = json.loads((await setup.get("/headway/state")).body)
        assert state["lines"][0]["tuned"] == pytest.approx(dict(tuner.best()))
        await setup.gateway.drain()
        assert json.loads(path.read_text())["learned"]["lines"][0]["tuned"] == pytest.approx(dict(tuner.best()))

    tuning = TuningSettings(on=True, window_seconds=0.05)
    run_gateway(scenario, policies=LEARNING, tuning=tuning, state=StateSettings(path=str(path)))


@pytest.mark.parametrize("ordering", ["fcfs", "fair-share/ewsjf", "shortest-job-first-aging"])
def test_an_ordering_that_cannot_be_tuned_live_is_told(ordering: str) -> None:
    settings = Settings(policies=PolicySettings(ordering=ordering), tuning=TuningSettings(on=True))
    check(settings)
    with pytest.raises(ValueError, match=f"{ordering} has no options that can be tuned while requests wait"):
        check_tuning(settings)
