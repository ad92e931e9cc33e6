"""Batches outlive the gateway: killed at any moment, each line of a file ends once in one of the two result files."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headway.gateway.batch_api.batch_store import BatchStore
from tests.support.batch_files import batch_client, batch_line, ended_batch, made_batch, result_rows, says_its_prompt
from tests.support.scripted_replica import Call, ScriptedReplica
from tests.support.serve_process import serving_beside

_CONFIG = """
[batches]
folder = {folder}
free_bytes_min = 0
waiting_max = 8
[health]
lame_duck_seconds = 0.01
[[replica]]
url = "{url}"
max_requests = 4
metrics = false
"""


@asynccontextmanager
async def replica_of(
    tmp_path: Path, asked: Counter[str], seconds: float
) -> AsyncIterator[tuple[ScriptedReplica, Path]]:
    """A replica that fails at each seventh prompt and takes its time, and a gateway's configuration for it."""

    async def script(call: Call) -> None:
        prompt = call.json()["messages"][0]["content"]
        asked[prompt] += 1
        await asyncio.sleep(seconds)
        if int(prompt) % 7 == 0:
            await call.whole(400, {"error": {"message": "no"}})
        else:
            await says_its_prompt(call)

    replica = await ScriptedReplica(script).start()
    folder = tmp_path / "batches"
    folder.mkdir()
    config = tmp_path / "gateway.toml"
    config.write_text(_CONFIG.format(folder=json.dumps(str(folder)), url=replica.url))
    try:
        yield replica, config
    finally:
        await replica.stop()


def test_a_kill_loses_no_line_and_answers_none_twice(tmp_path: Path) -> None:
    lines, chance, asked = 240, random.Random(7), Counter[str]()

    async def scenario() -> None:
        async with replica_of(tmp_path, asked, 0.02) as (_, config):
            batch_id = ""
            for start in range(4):
                async with serving_beside("--config", config) as (process, url), batch_client(url) as client:
                    if not start:
                        batch = await made_batch(client, (batch_line(f"r{n}", f"{n}") for n in range(lines)))
                        batch_id = batch.id
                    if start < 3:
                        await asyncio.sleep(chance.uniform(0.05, 0.4))
                        os.kill(process.pid, signal.SIGKILL)
                        continue
                    batch = await ended_batch(client, batch_id, 120)
                    assert batch.status == "completed"
                    answered = await result_rows(client, batch.output_file_id)
                    failed = await result_rows(client, batch.error_file_id)
                    assert sorted([*answered, *failed]) == sorted(f"r{n}" for n in range(lines))
                    assert set(failed) == {f"r{n}" for n in range(0, lines, 7)}
                    counts = batch.request_counts
                    assert (counts.total, counts.completed, counts.failed) == (lines, len(answered), len(failed))
                    for name, row in answered.items():
                        assert row["response"]["body"]["choices"][0]["message"]["content"] == name[1:]
                    # Only what was under way at a kill was sent again, and says so; no replica saw it else.
                    again = {name for name, row in (answered | failed).items() if row.get("tries", 1) > 1}
                    assert {f"r{prompt}" for prompt, times in asked.items() if times > 1} <= again
                    assert len(again) <= 3 * (8 + 4 + 16)

    asyncio.run(scenario())


def test_a_gateway_that_is_told_to_stop_finishes_what_replicas_have(tmp_path: Path) -> None:
    asked = Counter[str]()

    async def scenario() -> None:
        async with replica_of(tmp_path, asked, 0.2) as (replica, config):
            async with serving_beside("--config", config) as (process, url), batch_client(url) as client:
                batch = await made_batch(client, (batch_line(f"r{n}", f"{n}") for n in range(30)))
                async with asyncio.timeout(30):
                    while not replica.inside:
                        await asyncio.sleep(0.01)
                process.terminate()
                assert await asyncio.to_thread(process.wait, 30) == 0
            seen = sum(asked.values())
            assert seen < 30
            async with serving_beside("--config", config) as (_, url), batch_client(url) as client:
                batch = await ended_batch(client, batch.id)
                answered = await result_rows(client, batch.output_file_id)
                failed = await result_rows(client, batch.error_file_id)
                assert len(answered) + len(failed) == 30
                assert not any("tries" in row for row in (answered | failed).values())
            assert set(asked.values()) == {1}  # nothing was computed twice

    asyncio.run(scenario())


def test_a_cancellation_outlives_a_kill(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with replica_of(tmp_path, Counter(), 0.5) as (_, config):
            async with serving_beside("--config", config) as (process, url), batch_client(url) as client:
                batch = await made_batch(client, (batch_line(f"r{n}", f"{n}") for n in range(50)))
                await client.batches.cancel(batch.id)
                os.kill(process.pid, signal.SIGKILL)
            async with serving_beside("--config", config) as (_, url), batch_client(url) as client:
                batch = await ended_batch(client, batch.id)
                assert batch.status == "cancelled"
                found = await result_rows(client, batch.output_file_id)
                assert len(found | await result_rows(client, batch.error_file_id)) == 50

    asyncio.run(scenario())


def test_two_gateways_do_not_share_a_folder(tmp_path: Path) -> None:
    first, second = BatchStore(tmp_path), BatchStore(tmp_path)
    first.open()
    with pytest.raises(ValueError, match="another gateway uses"):
        second.open()
    first.close()
    second.open()
    second.close()
