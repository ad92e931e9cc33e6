"""What a reload changes, it changes at once: keys, bounds, health; and the replicas that stay keep their books."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from headway.gateway.settings import QueueSettings, TenantSettings

from .conftest import Play, Stage
from .scripted_replica import hangs, streams, waits_for


def test_a_key_that_was_changed_in_its_file_is_the_key_after_a_reload(play: Play, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("first-key-1\n")
    tenant = TenantSettings(name="team", key_file=str(file))

    async def scene(stage: Stage) -> None:
        async def status(key: str) -> int:
            return (await stage.ask(headers=f"authorization: Bearer {key}\r\n")).status

        gate = asyncio.Event()
        stage.replicas[0].usual = waits_for(gate, streams())
        under_way = [asyncio.ensure_future(status("first-key-1")) for _ in range(2)]
        await stage.until(lambda: stage.brain.counts.inside == 2)
        file.write_text("second-key-2\n")
        assert await status("second-key-2") == 401
        stage.gateway.reload(stage.settings)
        assert await status("first-key-1") == 401
        late = asyncio.ensure_future(status("second-key-2"))
        gate.set()
        assert await asyncio.gather(late, *under_way) == [200, 200, 200], "who was let in is served"

    play(scene, seats=1, tenant=(tenant,))


def test_bounds_and_health_change_at_once_and_the_replicas_books_stay(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.replicas[0].usual = hangs
        replica = stage.brain.replicas[0]
        running = asyncio.ensure_future(stage.ask())
        await stage.until(lambda: stage.replicas[0].inside == 1)
        waiting = asyncio.ensure_future(stage.ask())
        await stage.until(lambda: stage.brain.counts.inside == 2)
        health = replace(stage.settings.health, first_byte_seconds=0.2, failures_to_eject=1)
        stage.gateway.reload(replace(stage.settings, health=health, queue=QueueSettings(max_requests=1)))
        assert stage.brain.replicas == [replica]
        assert (replica.health, replica.ledger.requests) == (health, 1)
        assert (await stage.ask()).reason == "queue-full"
        assert (await running).reason == "replica-timeout"
        answer = await waiting
        assert answer.status in (502, 503, 504)
        await stage.until(lambda: replica.is_up)

    play(scene, seats=1)
