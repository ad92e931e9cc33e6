"""A pool that is empty at first: requests wait, the gauge asks for a replica, one comes, and all are answered."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from headway.gateway.settings import HealthSettings, ReplicaSourceSettings
from tests.support.gateway_setup import RunGateway, Setup, completion
from tests.support.scripted_replica import ScriptedReplica, answers
from tests.support.serve_process import HEADWAY, fetched, serving

SOON = 60.0


def until(fact: Callable[[], object]) -> None:
    end = time.monotonic() + SOON
    while not fact():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def wanted(metrics: str) -> float:
    return sum(map(float, re.findall(r"^headway_replicas_wanted\{.*\} (\S+)$", metrics, re.MULTILINE)))


def test_the_first_requests_start_the_first_replica(run_gateway: RunGateway, tmp_path: Path) -> None:
    """The same through a file that is watched, in one process; the replica is there before the file says so."""
    targets = tmp_path / "targets.json"
    targets.write_text("[]")

    async def scenario(setup: Setup) -> None:
        engine = await ScriptedReplica().start()
        engine.usual = answers()
        setup.replicas.append(engine)
        assert wanted((await setup.get("/metrics")).body.decode()) == 0
        asking = [asyncio.ensure_future(setup.ask(completion(stream=False, prompt=f"{n}"))) for n in range(4)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 4)
        assert wanted((await setup.get("/metrics")).body.decode()) == 1
        assert (await setup.get("/ready")).status == 200
        targets.write_text(json.dumps([{"targets": [engine.url.removeprefix("http://")]}]))
        assert [answer.status for answer in await asyncio.gather(*asking)] == [200] * 4
        prompts = [call.json()["prompt"] for call in engine.calls if call.method == "POST"]
        assert prompts == ["0", "1", "2", "3"]
        targets.write_text("[]")
        await setup.until(lambda: not setup.dispatcher.replicas)
        late = asyncio.ensure_future(setup.ask(completion(stream=False, prompt="4")))
        await setup.until(lambda: setup.dispatcher.counts.inside == 1)
        targets.write_text(json.dumps([{"targets": [engine.url.removeprefix("http://")]}]))
        assert (await late).status == 200

    run_gateway(
        scenario,
        replicas=0,
        health=HealthSettings(scrape_seconds=0.05, no_replica_seconds=60.0, ready_without_replica=True),
        replica_source=(ReplicaSourceSettings(file=str(targets), refresh_seconds=0.05, each={"max_requests": 1}),),
    )


def test_a_process_with_an_empty_pool_waits_for_an_engine(tmp_path: Path) -> None:
    targets, settings = tmp_path / "targets.json", tmp_path / "gateway.toml"
    targets.write_text("[]")
    settings.write_text(
        f'replica_source = [{{file = "{targets}", refresh_seconds = 0.1}}]\n'
        "health = {no_replica_seconds = 60, ready_without_replica = true}\n"
    )
    line = [*HEADWAY, "serve", "--listen", "127.0.0.1:0", "--config", str(settings)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = None
            while found is None:
                told = process.stderr.readline()
                assert told, "it ended without listening"
                found = re.search(r'"url": "(http[^"]+)"', told)
            url, answered = found[1], []
            body = {"model": "llama-3.1-8b", "prompt": "hello", "max_tokens": 2}
            asking = threading.Thread(target=lambda: answered.append(fetched(url + "/v1/completions", body)))
            asking.start()
            until(lambda: wanted(fetched(url + "/metrics")) == 1)
            assert json.loads(fetched(url + "/ready"))["ready"] is True
            with serving() as (_, engine):
                targets.write_text(json.dumps([{"targets": [engine.removeprefix("http://")]}]))
                asking.join(SOON)
            assert json.loads(answered[0])["choices"]
        finally:
            process.kill()
