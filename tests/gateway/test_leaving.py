"""Clients that leave at every stage, in one crowd: each is counted once, and who stays is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from headway.gateway.queueing.counts import Outcome

from .conftest import Play, RawClient, Stage, completion, post
from .scripted_replica import echoes, waits_for

EACH = 10


@asynccontextmanager
async def crowd(stage: Stage, marks: list[str], bytes_sent: int | None = None) -> AsyncIterator[list[RawClient]]:
    """A client for each mark, its request sent, or only so many bytes of it; all leave together at the end."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(RawClient(stage.port)) for _ in marks]
        for mark, client in zip(marks, clients, strict=True):
            await client.send(post(completion(prompt=mark))[:bytes_sent])
        yield clients


def marks(kind: str) -> list[str]:
    return [f"{kind}{number}" for number in range(EACH)]


def test_who_leaves_at_any_stage_is_counted_once_and_who_stays_is_served(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        replica, counts = stage.replicas[0], stage.brain.counts
        first, rest = asyncio.Event(), asyncio.Event()
        replica.usual = waits_for(first, echoes(gate=rest))

        def cancelled() -> int:
            return int(counts.ended[Outcome.CANCELLED])

        async with crowd(stage, marks("stays")) as stay, AsyncExitStack() as streaming:
            async with crowd(stage, marks("dispatched")):
                reads = await streaming.enter_async_context(crowd(stage, marks("streaming")))
                await stage.until(lambda: replica.inside == 3 * EACH)
                async with crowd(stage, marks("uploading"), bytes_sent=-5), crowd(stage, marks("queued")):
                    await stage.until(lambda: counts.inside == 4 * EACH)
                await stage.until(lambda: cancelled() == EACH)  # the queued; who was uploading had not arrived
                assert replica.inside == 3 * EACH
            await stage.until(lambda: cancelled() == 2 * EACH)
            await stage.until(lambda: replica.inside == 2 * EACH)  # their computation stopped
            first.set()
            for client in reads:
                await client.reader.readuntil(b".0 ")
            await streaming.aclose()
            await stage.until(lambda: cancelled() == 3 * EACH)
            await stage.until(lambda: replica.inside == EACH)
            rest.set()
            for mark, client in zip(marks("stays"), stay, strict=True):
                answer = await client.answer()
                assert answer.texts.split() == [f"{mark}.{number}" for number in range(8)]
        assert counts.arrived == 4 * EACH
        assert counts.ended == {Outcome.COMPLETED: EACH, Outcome.CANCELLED: 3 * EACH}
        asked = [str(call.json()["prompt"]) for call in replica.calls]
        assert len(asked) == len(set(asked)) == 3 * EACH  # none twice, and the queued never

    play(scene, seats=3 * EACH)


def test_a_client_that_leaves_between_two_tries_is_not_tried_again(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        gate = asyncio.Event()

        async def fails(call) -> None:  # type: ignore[no-untyped-def]
            await gate.wait()
            call.writer.transport.abort()

        for one in stage.replicas:
            one.usual = fails
        async with crowd(stage, ["a"]):
            await stage.until(lambda: sum(one.inside for one in stage.replicas) == 1)
        await stage.until(lambda: stage.brain.counts.ended[Outcome.CANCELLED] == 1)
        gate.set()
        await stage.until(lambda: not sum(one.inside for one in stage.replicas))
        assert sum(len(one.calls) for one in stage.replicas) == 1
        assert stage.brain.counts.retried == 0

    play(scene, replicas=2)


def test_a_replica_that_goes_while_its_clients_leave_is_counted_once(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        gate = asyncio.Event()
        stage.replicas[0].usual = echoes(gate=gate)
        async with crowd(stage, marks("a")) as clients:
            for client in clients:
                await client.reader.readuntil(b".0 ")
            going = asyncio.ensure_future(stage.replicas[0].stop())
        await going
        await stage.until(lambda: not stage.brain.counts.inside)
        ended = stage.brain.counts.ended
        assert ended[Outcome.CANCELLED] + ended[Outcome.FAILED] == EACH == stage.brain.counts.arrived

    play(scene, seats=EACH)
