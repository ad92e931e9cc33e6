"""Clients that leave at every stage, in one crowd: each is counted once, and who stays is served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from headway.gateway.queueing.counts import Outcome
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import Call, echoes, text, usage, waits_for

EACH = 10


@asynccontextmanager
async def crowd(setup: Setup, marks: list[str], bytes_sent: int | None = None) -> AsyncIterator[list[RawClient]]:
    """A client for each mark, its request sent, or only so many bytes of it; all leave together at the end."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(RawClient(setup.port)) for _ in marks]
        for mark, client in zip(marks, clients, strict=True):
            await client.send(post(completion(prompt=mark))[:bytes_sent])
        yield clients


def marks(kind: str) -> list[str]:
    return [f"{kind}{number}" for number in range(EACH)]


def test_who_leaves_at_any_stage_is_counted_once_and_who_stays_is_served(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        replica, counts = setup.replicas[0], setup.dispatcher.counts
        first, rest = asyncio.Event(), asyncio.Event()
        replica.usual = waits_for(first, echoes(gate=rest))

        def cancelled() -> int:
            return int(counts.ended[Outcome.CANCELLED])

        async with crowd(setup, marks("stays")) as stay, AsyncExitStack() as streaming:
            async with crowd(setup, marks("dispatched")):
                reads = await streaming.enter_async_context(crowd(setup, marks("streaming")))
                await setup.until(lambda: replica.inside == 3 * EACH)
                async with crowd(setup, marks("uploading"), bytes_sent=-5), crowd(setup, marks("queued")):
                    await setup.until(lambda: counts.inside == 4 * EACH)
                await setup.until(lambda: cancelled() == EACH)  # the queued; who was uploading had not arrived
                assert replica.inside == 3 * EACH
            await setup.until(lambda: cancelled() == 2 * EACH)
            await setup.until(lambda: replica.inside == 2 * EACH)  # their computation stopped
            first.set()
            for client in reads:
                await client.reader.readuntil(b".0 ")
            await streaming.aclose()
            await setup.until(lambda: cancelled() == 3 * EACH)
            await setup.until(lambda: replica.inside == EACH)
            rest.set()
            for mark, client in zip(marks("stays"), stay, strict=True):
                answer = await client.answer()
                assert answer.texts.split() == [f"{mark}.{number}" for number in range(8)]
        assert counts.arrived == 4 * EACH
        assert counts.ended == {Outcome.COMPLETED: EACH, Outcome.CANCELLED: 3 * EACH}
        asked = [str(call.json()["prompt"]) for call in replica.calls]
        assert len(asked) == len(set(asked)) == 3 * EACH  # none twice, and the queued never

    run_gateway(scenario, seats=3 * EACH)


def test_a_client_that_leaves_between_two_tries_is_not_tried_again(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()

        async def fails(call) -> None:  # type: ignore[no-untyped-def]
            await gate.wait()
            call.writer.transport.abort()

        for one in setup.replicas:
            one.usual = fails
        async with crowd(setup, ["a"]):
            await setup.until(lambda: sum(one.inside for one in setup.replicas) == 1)
        await setup.until(lambda: setup.dispatcher.counts.ended[Outcome.CANCELLED] == 1)
        gate.set()
        await setup.until(lambda: not sum(one.inside for one in setup.replicas))
        assert sum(len(one.calls) for one in setup.replicas) == 1
        assert setup.dispatcher.counts.retried == 0

    run_gateway(scenario, replicas=2)


def test_a_replica_that_goes_while_its_clients_leave_is_counted_once(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = echoes(gate=gate)
        async with crowd(setup, marks("a")) as clients:
            for client in clients:
                await client.reader.readuntil(b".0 ")
            going = asyncio.ensure_future(setup.replicas[0].stop())
        await going
        await setup.until(lambda: not setup.dispatcher.counts.inside)
        ended = setup.dispatcher.counts.ended
        assert ended[Outcome.CANCELLED] + ended[Outcome.FAILED] == EACH == setup.dispatcher.counts.arrived

    run_gateway(scenario, seats=EACH)


COMPLETION_EVENTS = (text("a"), usage(5, 7), "[DONE]")
RESPONSE_EVENTS = ({"type": "response.completed", "response": {"usage": {"input_tokens": 5, "output_tokens": 7}}},)
MESSAGE_EVENTS = (
    {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 0}}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
)


@pytest.mark.parametrize(
    ("path", "events", "outcome"),
    [
        ("/v1/completions", COMPLETION_EVENTS, Outcome.COMPLETED),
        ("/v1/responses", RESPONSE_EVENTS, Outcome.COMPLETED),
        ("/v1/messages", MESSAGE_EVENTS, Outcome.COMPLETED),
        ("/v1/completions", COMPLETION_EVENTS[:-1], Outcome.CANCELLED),
        ("/v1/messages", MESSAGE_EVENTS[:-1], Outcome.CANCELLED),
    ],
)
def test_who_leaves_at_a_streams_last_event_has_the_whole_answer(
    run_gateway: RunGateway, path: str, events: tuple[object, ...], outcome: Outcome
) -> None:
    async def scenario(setup: Setup) -> None:
        async def never_ends(call: Call) -> None:
            await call.head()
            for event in events:
                data = event if isinstance(event, str) else json.dumps(event)
                await call.chunk(f"data: {data}\n\n".encode())
            await call.chunk(b": last\n\n")
            await call.left.wait()

        setup.replicas[0].usual = never_ends
        async with RawClient(setup.port) as client:
            await client.send(post({"model": "m", "prompt": "hello", "max_tokens": 9, "stream": True}, path))
            await client.reader.readuntil(b": last")
        await setup.until(lambda: not setup.dispatcher.counts.inside)
        assert setup.dispatcher.counts.ended == {outcome: 1}
        story = setup.gateway.site.history.requests[-1]
        if outcome is Outcome.COMPLETED:
            assert (story["outcome"], story["output_tokens"]) == ("completed", 7)

    run_gateway(scenario)
