"""The openai package told to come back later: it waits as long as the gateway says, and gets its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import openai
import pytest

from headway.gateway.queueing.counts import Outcome
from headway.gateway.settings import QueueSettings

from .conftest import Play, Stage, completion
from .scripted_replica import answers, echoes, waits_for

CHOICE = {"index": 0, "text": "hi", "finish_reason": "stop"}
WHOLE = {"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": [CHOICE]}
Ask = Callable[[str], Awaitable[str]]


async def sync_client(url: str) -> str:
    def work() -> str:
        with openai.OpenAI(base_url=url, api_key="any", max_retries=2) as client:
            return str(client.completions.create(model="m", prompt="x").choices[0].text)

    return await asyncio.to_thread(work)


async def async_client(url: str) -> str:
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=2) as client:
        return str((await client.completions.create(model="m", prompt="x")).choices[0].text)


async def async_stream(url: str) -> str:
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=2) as client:
        return "".join(
            [c.choices[0].text async for c in await client.completions.create(model="m", prompt="hi", stream=True)]
        )


@pytest.mark.parametrize("ask", [sync_client, async_client, async_stream])
def test_a_429_is_obeyed_and_its_client_served(play: Play, ask: Ask) -> None:
    async def scene(stage: Stage) -> None:
        gate = asyncio.Event()
        usual = echoes(1) if ask is async_stream else answers(200, WHOLE)
        stage.replicas[0].usual = waits_for(gate, usual)
        inside = [asyncio.ensure_future(stage.ask(completion())) for _ in range(2)]
        await stage.until(lambda: stage.brain.counts.inside == 2)  # one runs, one waits: it is full
        refused = await stage.ask()
        told = int(refused.headers["retry-after-ms"]) / 1000
        began = time.monotonic()
        asking = asyncio.ensure_future(ask(f"http://127.0.0.1:{stage.port}/v1"))
        await stage.until(lambda: stage.brain.counts.ended[Outcome.REFUSED] == 2)
        gate.set()
        await stage.until(lambda: stage.brain.counts.arrived == 5)
        # Its own first backoff is half a second at most; the gateway, which knows no rate yet, says 1 s ± 20 %.
        assert time.monotonic() - began > 0.7
        assert 0.8 <= told <= 1.2
        assert (await asking).startswith("hi")
        await asyncio.gather(*inside)

    play(scene, seats=1, queue=QueueSettings(max_requests=1))


def test_a_client_out_of_retries_sees_the_reason(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        gate = asyncio.Event()
        stage.replicas[0].usual = waits_for(gate, echoes(1))
        inside = [asyncio.ensure_future(stage.ask(completion())) for _ in range(2)]
        await stage.until(lambda: stage.brain.counts.inside == 2)
        url = f"http://127.0.0.1:{stage.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
            with pytest.raises(openai.RateLimitError) as found:
                await client.completions.create(model="m", prompt="x")
        assert found.value.code == "rate_limit_exceeded"
        assert found.value.response.headers["x-headway-reason"] == "queue-full"
        gate.set()
        await asyncio.gather(*inside)
        assert stage.brain.counts.arrived == 3

    play(scene, seats=1, queue=QueueSettings(max_requests=1))


def test_what_is_not_worth_a_retry_is_asked_once(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.replicas[0].usual = answers(400, {"error": {"message": "no", "type": "invalid_request_error"}})
        url = f"http://127.0.0.1:{stage.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=5) as client:
            with pytest.raises(openai.NotFoundError):
                await client.completions.create(model="nope", prompt="x")
            with pytest.raises(openai.BadRequestError, match="no"):
                await client.completions.create(model="m", prompt="x")
        assert stage.brain.counts.arrived == 2
        assert len(stage.replicas[0].calls) == 1

    play(scene)
