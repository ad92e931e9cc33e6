"""Requests that end are freed at once, without Python having to look for garbage."""

from __future__ import annotations

import asyncio
import gc

from headway.gateway.gc_tuning import collect_when_quiet, spare_objects_of_the_start
from headway.gateway.relay.exchange import Exchange
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import answers, dies_mid_stream, hangs


def alive() -> int:
    return sum(isinstance(one, Exchange) for one in gc.get_objects())


def test_requests_free_themselves_however_they_end(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gc.disable()
        before = alive()
        try:
            for script in (None, answers(), answers(500), answers(404), dies_mid_stream):
                if script is not None:
                    setup.replicas[0].next.extend([script, script])
                await setup.ask()
                setup.replicas[0].next.clear()
            assert (await setup.ask(completion(model="unknown"))).status == 404
            setup.replicas[0].next.append(hangs)
            async with RawClient(setup.port) as client:
                await client.send(post(completion()))
                await setup.until(lambda: setup.replicas[0].inside == 1)
                await setup.until(lambda: alive() == before + 1)  # those before it have ended, perhaps this moment
            await setup.until(lambda: not setup.dispatcher.counts.inside)
            await setup.until(lambda: alive() == before)
        finally:
            gc.enable()

    gc.collect()  # what other tests left
    gc.freeze()  # what they still hold is not looked at again: to go through it would hold the loop
    try:
        run_gateway(scenario)
    finally:
        gc.unfreeze()


def test_the_process_collects_the_young_only_until_it_is_quiet() -> None:
    async def scenario() -> None:
        before = gc.get_threshold()
        spare_objects_of_the_start()
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

    asyncio.run(scenario())
