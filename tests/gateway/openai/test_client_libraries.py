"""What people use: the openai package, sync and async, with its retries, and curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess

import openai
import pytest

from tests.support.gateway_setup import RunGateway, Setup
from tests.support.scripted_replica import Call, answers, dies_mid_stream, hangs, usage


def chat_stream(call: Call) -> object:
    async def script() -> None:
        await call.head()
        for word in ("Hel", "lo"):
            delta = {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            await call.event({"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", **delta})
        if (call.json().get("stream_options") or {}).get("include_usage"):  # type: ignore[attr-defined]
            await call.event({"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", **usage(7, 2)})
        await call.chunk(b"data: [DONE]\n\n")
        await call.send(b"0\r\n\r\n")

    return script()


WHOLE = {
    "id": "c",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
}
MESSAGES = [{"role": "user", "content": "hi"}]


def test_openai_streams_and_does_not(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{setup.port}/v1", api_key="any") as client:
            setup.replicas[0].next += [answers(200, WHOLE), chat_stream, chat_stream]
            ask = client.chat.completions.create
            whole = await ask(model="m", messages=MESSAGES)
            assert whole.choices[0].message.content == "Hello"
            plain = [chunk async for chunk in await ask(model="m", messages=MESSAGES, stream=True)]
            assert "".join(chunk.choices[0].delta.content for chunk in plain) == "Hello"
            told = [
                chunk
                async for chunk in await ask(
                    model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
                )
            ]
            assert told[-1].usage.completion_tokens == 2
            assert [model.id async for model in client.models.list()] == ["m"]

    run_gateway(scenario)


def test_the_sync_client_too(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].next += [answers(200, WHOLE), chat_stream]

        def work() -> list[str]:
            with openai.OpenAI(base_url=f"http://127.0.0.1:{setup.port}/v1", api_key="any") as client:
                ask = client.chat.completions.create
                first = ask(model="m", messages=MESSAGES).choices[0].message.content
                return [first, *[c.choices[0].delta.content for c in ask(model="m", messages=MESSAGES, stream=True)]]

        assert await asyncio.to_thread(work) == ["Hello", "Hel", "lo"]

    run_gateway(scenario)


def test_openai_comes_back_when_it_is_told_and_gets_its_answer(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.dispatcher.is_draining = True
        setup.replicas[0].usual = answers(200, WHOLE)
        setup.dispatcher.entry_checks.retry_delays.after_probe = lambda replicas, now: 0.1

        async def ends_soon() -> None:
            await setup.until(lambda: setup.dispatcher.counts.arrived == 1)
            setup.dispatcher.is_draining = False

        ending = asyncio.ensure_future(ends_soon())
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{setup.port}/v1", api_key="any") as client:
            whole = await client.chat.completions.create(model="m", messages=MESSAGES)
        await ending
        assert whole.choices[0].message.content == "Hello"
        assert setup.dispatcher.counts.arrived == 2

    run_gateway(scenario)


def test_openai_sees_errors_as_errors(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        url = f"http://127.0.0.1:{setup.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
            ask = client.chat.completions.create
            with pytest.raises(openai.NotFoundError) as unknown:
                await ask(model="nope", messages=MESSAGES)
            assert unknown.value.code == "model_not_found"
            setup.replicas[0].next += [dies_mid_stream, hangs]
            with pytest.raises(openai.APIError):
                async for _ in await ask(model="m", messages=MESSAGES, stream=True):
                    pass
            with pytest.raises(openai.APITimeoutError):
                await ask(model="m", messages=MESSAGES, timeout=0.3)
            await setup.until(lambda: not setup.replicas[0].inside)

    run_gateway(scenario)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        url = f"http://127.0.0.1:{setup.port}/v1/completions"

        async def curl(*options: str) -> str:
            line = ["curl", "-sS", "--max-time", "20", *options]
            done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, check=True)
            return str(done.stdout)

        body = {"model": "m", "prompt": "x", "stream": True}
        assert (await curl("-N", url, "-d", json.dumps(body))).endswith("data: [DONE]\n\n")
        assert "t0" in await curl("-N", "--http1.0", url, "-d", json.dumps(body))
        large = json.dumps(body | {"prompt": "y" * 100_000})  # curl sends expect: 100-continue for large ones
        assert "t0" in await curl("-N", url, "-H", "expect: 100-continue", "-d", large)
        assert "t0" in await curl("-N", url, "-H", "transfer-encoding: chunked", "-d", json.dumps(body))

    run_gateway(scenario)
