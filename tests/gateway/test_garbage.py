"""Requests that end are freed at once, without Python having to look for garbage."""

from __future__ import annotations

import asyncio
import gc

from headway.gateway.gc_tuning import collect_when_quiet
from headway.gateway.relay.exchange import Exchange

from .conftest import Play, RawClient, Stage, completion, post
from .scripted_replica import answers, dies_mid_stream, hangs


def alive() -> int:
    return sum(isinstance(one, Exchange) for one in gc.get_objects())


def test_requests_free_themselves_however_they_end(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        gc.disable()
        before = alive()  # left by other tests
        try:
            for script in (None, answers(), answers(500), answers(404), dies_mid_stream):
                if script is not None:
                    stage.replicas[0].next.extend([script, script])
                await stage.ask()
                stage.replicas[0].next.clear()
            assert (await stage.ask(completion(model="unknown"))).status == 404
            stage.replicas[0].next.append(hangs)
            async with RawClient(stage.port) as client:
                await client.send(post(completion()))
                await stage.until(lambda: stage.replicas[0].inside == 1)
                assert alive() == before + 1
            await stage.until(lambda: not stage.brain.counts.inside)
            await stage.until(lambda: alive() == before)
        finally:
            gc.enable()

    play(scene)


def test_the_process_collects_the_young_only_until_it_is_quiet() -> None:
    async def scene() -> None:
        before = gc.get_threshold()
        task = asyncio.create_task(collect_when_quiet(lambda: 0))
        try:
            await asyncio.sleep(0)
            assert gc.get_threshold()[:2] == before[:2]
            assert gc.get_threshold()[2] > 1_000_000
            assert gc.get_freeze_count() > 1_000
        finally:
            task.cancel()
            gc.set_threshold(*before)
            gc.unfreeze()

    asyncio.run(scene())
