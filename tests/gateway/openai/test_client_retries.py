"""The openai package told to come back later: it waits as long as the gateway says, and gets its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import openai
import pytest

from headway.gateway.queueing.counts import Outcome
from headway.gateway.settings import QueueSettings
from tests.support.gateway_setup import RunGateway, Setup, completion
from tests.support.scripted_replica import answers, echoes, waits_for

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
def test_a_429_is_obeyed_and_its_client_served(run_gateway: RunGateway, ask: Ask) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        usual = echoes(1) if ask is async_stream else answers(200, WHOLE)
        setup.replicas[0].usual = waits_for(gate, usual)
        inside = [asyncio.ensure_future(setup.ask(completion())) for _ in range(2)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 2)  # one runs, one waits: it is full
        refused = await setup.ask()
        told = int(refused.headers["retry-after-ms"]) / 1000
        began = time.monotonic()
        asking = asyncio.ensure_future(ask(f"http://127.0.0.1:{setup.port}/v1"))
        await setup.until(lambda: setup.dispatcher.counts.ended[Outcome.REFUSED] == 2)
        gate.set()
        await setup.until(lambda: setup.dispatcher.counts.arrived == 5)
        # Its own first backoff is half a second at most; the gateway, which knows no rate yet, says 1 s ± 20 %.
        assert time.monotonic() - began > 0.7
        assert 0.8 <= told <= 1.2
        assert (await asking).startswith("hi")
        await asyncio.gather(*inside)

    run_gateway(scenario, seats=1, queue=QueueSettings(max_requests=1))


def test_a_client_out_of_retries_sees_the_reason(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, echoes(1))
        inside = [asyncio.ensure_future(setup.ask(completion())) for _ in range(2)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 2)
        url = f"http://127.0.0.1:{setup.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
            with pytest.raises(openai.RateLimitError) as found:
                await client.completions.create(model="m", prompt="x")
        assert found.value.code == "rate_limit_exceeded"
        assert found.value.response.headers["x-headway-reason"] == "queue-full"
        gate.set()
        await asyncio.gather(*inside)
        assert setup.dispatcher.counts.arrived == 3

    run_gateway(scenario, seats=1, queue=QueueSettings(max_requests=1))


def test_what_is_not_worth_a_retry_is_asked_once(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(400, {"error": {"message": "no", "type": "invalid_request_error"}})
        url = f"http://127.0.0.1:{setup.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=5) as client:
            with pytest.raises(openai.NotFoundError):
                await client.completions.create(model="nope", prompt="x")
            with pytest.raises(openai.BadRequestError, match="no"):
                await client.completions.create(model="m", prompt="x")
        assert setup.dispatcher.counts.arrived == 2
        assert len(setup.replicas[0].calls) == 1

    run_gateway(scenario)
