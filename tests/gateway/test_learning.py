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
from headway.gateway.settings import PolicySettings, Settings, StateSettings, TuningSettings, check

from .conftest import Play, Stage, completion
from .scripted_replica import streams

LEARNING = PolicySettings(ordering="ewsjf", prediction="histogram", options={"ordering": {"relearn_requests": 20}})
LINE = QueueKey("m", "generation")


def prediction(stage: Stage) -> float:
    """What a new request's length is believed to be, by the queue's own predictor."""
    from headway.domain.request import Request

    live = stage.gateway._learned._live[LINE]
    return float(live.policies.prediction.predict(Request(-1, 0.0, 3)).remaining_mean(0))


async def traffic(stage: Stage, requests: int = 30, tokens: int = 40) -> None:
    stage.replicas[0].usual = streams(tokens)
    for number in range(requests):
        assert (await stage.ask(completion(prompt="x" * (10 + 40 * (number % 7))))).status == 200


def test_learned_state_outlives_a_restart(play: Play, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    known: list[float] = []
    sizes: list[list[int]] = []

    async def first(stage: Stage) -> None:
        await traffic(stage)
        known.append(prediction(stage))
        assert await stage.gateway.drain()
        content = json.loads(path.read_text())
        sizes.append(content["learned"]["lines"][0]["ordering"]["state"]["window"])
        assert len(sizes[0]) == 30
        assert 1 < content["learned"]["bytes_per_token"]["m"] < 100

    async def second(stage: Stage) -> None:
        stage.replicas[0].usual = streams(1)
        assert (await stage.ask()).status == 200
        assert prediction(stage) == pytest.approx(known[0], rel=0.2)
        assert stage.gateway._learned._live[LINE].policies.ordering.state()["window"][:30] == sizes[0]

    async def other_policies(stage: Stage) -> None:
        assert (await stage.ask()).status == 200
        assert prediction(stage) == pytest.approx(known[0], rel=0.2)
        assert told == ["what was learned as ordering of m belongs to 'ewsjf', not to 'fcfs', which starts afresh"]

    kept = StateSettings(path=str(path))
    play(first, policies=LEARNING, state=kept)
    play(second, policies=LEARNING, state=kept)
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headway.gateway.gateway.log.warning", told.append)
        play(other_policies, policies=replace(LEARNING, ordering="fcfs", options={}), state=kept)


def test_it_is_saved_as_time_passes_too(play: Play, tmp_path: Path) -> None:
    path = tmp_path / "state.json"

    async def scene(stage: Stage) -> None:
        await traffic(stage, 3)
        await stage.until(path.exists)
        await stage.until(lambda: json.loads(path.read_text())["learned"]["lines"])
        assert [file.name for file in tmp_path.iterdir()] == ["state.json"]

    play(scene, policies=LEARNING, state=StateSettings(path=str(path), save_seconds=0.2))


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
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, sentence: str
) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    told: list[str] = []
    monkeypatch.setattr("headway.gateway.gateway.log.warning", told.append)

    async def scene(stage: Stage) -> None:
        assert (await stage.ask()).status == 200

    play(scene, policies=LEARNING, state=StateSettings(path=str(path)))
    assert len(told) == 1
    assert sentence in told[0]
    assert told[0].startswith(str(path))
    assert told[0].endswith("starting afresh")
    assert json.loads(path.read_text())["learned"]["lines"], "it is written anew when the gateway ends"


def test_a_reload_forgets_only_what_belonged_to_another_policy(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await traffic(stage)
        known = prediction(stage)
        stage.gateway.reload(replace(stage.settings, policies=replace(LEARNING, ordering="fcfs", options={})))
        assert prediction(stage) == pytest.approx(known)

    play(scene, policies=LEARNING)


def test_a_folder_that_is_not_there_is_told_at_the_start(tmp_path: Path) -> None:
    settings = Settings(state=StateSettings(path=str(tmp_path / "none" / "state.json")))
    with pytest.raises(ValueError, match=r"state\.path: there is no folder .*; make it first"):
        Gateway(settings)


def test_the_live_tuner_tries_values_on_the_traffic_and_says_so(
    play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []
    monkeypatch.setattr("headway.gateway.gateway.log.info", told.append)
    path = tmp_path / "state.json"

    async def scene(stage: Stage) -> None:
        stage.replicas[0].usual = streams(2)
        for _ in range(40):
            await stage.ask()
            await asyncio.sleep(0.005)
        tuner = stage.gateway._learned._live[LINE].tuner
        assert tuner is not None
        await stage.until(lambda: len(tuner.trials) >= 2)
        await stage.until(lambda: len(told) >= 2)
        assert told[0].startswith("tuning m: ")
        state = json.loads((await stage.get("/headway/state")).body)
        assert state["lines"][0]["tuned"] == pytest.approx(dict(tuner.best()))
        await stage.gateway.drain()
        assert json.loads(path.read_text())["learned"]["lines"][0]["tuned"] == pytest.approx(dict(tuner.best()))

    tuning = TuningSettings(on=True, window_seconds=0.05)
    play(scene, policies=LEARNING, tuning=tuning, state=StateSettings(path=str(path)))


@pytest.mark.parametrize("ordering", ["fcfs", "fair-share/ewsjf", "shortest-job-first-aging"])
def test_an_ordering_that_cannot_be_tuned_live_is_told(ordering: str) -> None:
    settings = Settings(policies=PolicySettings(ordering=ordering), tuning=TuningSettings(on=True))
    check(settings)
    with pytest.raises(ValueError, match=f"{ordering} has no options that can be tuned while requests wait"):
        check_tuning(settings)
