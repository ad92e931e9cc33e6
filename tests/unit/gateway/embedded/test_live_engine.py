"""The embedded engine: the simulator's rules on a clock that the test turns."""

from __future__ import annotations

import asyncio
import json
import re
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.embedded.embedded_engine import EmbeddedEngine
from headway.gateway.embedded.engine_routes import _Body, _content, _prompt_tokens_min
from headway.gateway.embedded.live_engine import LiveEngine, prompt_blocks
from headway.gateway.openai.endpoints import COMPLETIONS
from headway.gateway.settings import EmbeddedSettings
from headway.simulator.replica import replica


def test_tokens_come_to_everybody_and_memory_is_free_in_the_end() -> None:
    async def day() -> None:
        engine = LiveEngine(replica("h100", "llama-3.1-8b", kv_tokens=1_600), time.monotonic)
        running = asyncio.create_task(engine.live())
        came: dict[int, list[bool]] = {number: [] for number in range(6)}
        for number, tokens in came.items():
            engine.submit(300, 5 + number, None, tokens.append)
        left: list[bool] = []
        gone = engine.submit(300, 1_000, 1_000, left.append)
        waiting = engine.submit(1_500, 10, 10, left.append)
        async with asyncio.timeout(120):
            while not came[5] or not came[5][-1]:
                await asyncio.sleep(0.005)
        engine.abort(gone)
        engine.abort(waiting)
        engine.abort(12_345)
        await asyncio.sleep(0.1)
        assert [len(tokens) for tokens in came.values()] == [5, 6, 7, 8, 9, 10]
        assert all(tokens[-1] and not any(tokens[:-1]) for tokens in came.values())
        assert (engine.running, engine.waiting, engine.kv_share) == (0, 0, 0.0)
        again: list[bool] = []
        engine.submit(1_500, 1, 1, again.append)
        async with asyncio.timeout(120):
            while not again:
                await asyncio.sleep(0.005)
        assert again == [True]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(day())


def test_what_can_never_fit_is_said() -> None:
    async def ask() -> None:
        engine = LiveEngine(replica("h100", "llama-3.1-8b", kv_tokens=1_600), time.monotonic)
        assert engine.why_never(1_000, 100) is None
        assert "KV memory of 1600 tokens" in str(engine.why_never(1_600, 100))

    asyncio.run(ask())


def test_prompts_that_begin_alike_are_computed_once() -> None:
    """As in the simulator: whole blocks from the start, never the last token, and what was aborted stays findable."""

    async def day() -> None:
        engine = LiveEngine(replica("h100", "llama-3.1-8b", kv_tokens=8_000, prefix_caching=True), time.monotonic)
        running = asyncio.create_task(engine.live())
        found: list[int] = []

        async def serve(content: bytes, output_tokens: int = 3) -> int:
            tokens: list[bool] = []
            number = 0

            def note(is_last: bool) -> None:
                tokens.append(is_last)
                found.append(engine.cached_tokens(number))

            blocks = prompt_blocks(content, 16)
            number = engine.submit(len(content), output_tokens, output_tokens, note, blocks)
            async with asyncio.timeout(120):
                while not tokens or not tokens[-1]:
                    await asyncio.sleep(0.002)
            return found[-1]

        first = bytes(range(256)) * 4  # a byte a token: 64 blocks
        assert await serve(first) == 0
        assert await serve(first) == 1_008  # the last block would leave nothing to compute
        assert await serve(first, output_tokens=1) == 1_008
        assert await serve(first[:640] + b"x" * 300) == 640
        assert await serve(b"y" + first[1:]) == 0
        assert await serve(first[:645] + b"x" * 300) == 640
        assert engine.kv_share == 0.0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(day())


def test_the_wire_tells_what_was_cached() -> None:
    async def ask(port: int, prompt: object) -> int:
        body = json.dumps({"model": "m", "prompt": prompt, "max_tokens": 2, "ignore_eos": True}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"content-length: (\d+)", head)[1])  # type: ignore[index]
        usage = json.loads(await reader.readexactly(length))["usage"]
        writer.close()
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    async def day(prefix_caching: bool) -> list[int]:
        engine = EmbeddedEngine(EmbeddedSettings(prefix_caching=prefix_caching))
        settings = await engine.start(0)
        port = int(settings.url.rpartition(":")[2])
        prompts: list[object] = [list(range(100)), [*range(64), 2**70, -1], "a" * 400, "a" * 400]
        told = [await ask(port, prompt) for prompt in prompts]
        await engine.stop()
        await asyncio.sleep(0.02)
        return told

    assert asyncio.run(day(True)) == [0, 64, 0, 96]
    assert asyncio.run(day(False)) == [0, 0, 0, 0]


@pytest.mark.parametrize("fields", [{"n": 2}, {"prompt": ["one", "two"]}, {"prompt": [[1, 2], [3]]}])
def test_what_it_cannot_do_is_said(fields: dict[str, object]) -> None:
    async def day() -> bytes:
        engine = EmbeddedEngine(EmbeddedSettings())
        settings = await engine.start(0)
        body = json.dumps({"model": "m", "prompt": "x", "max_tokens": 2, **fields}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(settings.url.rpartition(":")[2]))
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        told = await reader.read()
        writer.close()
        await engine.stop()
        await asyncio.sleep(0.02)
        return told

    told = asyncio.run(day())
    assert told.startswith(b"HTTP/1.1 400 ")
    assert b"send a single prompt and leave n at 1" in told


def test_the_size_of_a_prompt_is_known_before_it_is_read() -> None:
    """Five million ids are refused by their commas alone, and what is nested too deeply ends no connection's turn."""

    async def ask(port: int, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        told = await reader.read()
        writer.close()
        return told

    async def day() -> None:
        engine = EmbeddedEngine(EmbeddedSettings())
        settings = await engine.start(0)
        port = int(settings.url.rpartition(":")[2])
        told = await ask(port, b'{"prompt":[' + b"1," * 5_000_000 + b'"no id at all"]}')
        assert b"of 5000002 tokens exceed the model" in told
        for body in (b'{"x":' + b"[" * 100_000, b'{"prompt":{"a":1}}', b'{"prompt":5}', b'{"prompt":[[["a"]]]}'):
            assert (await ask(port, body)).startswith(b"HTTP/1.1 400 ")
        assert (await ask(port, b'{"prompt":"x","max_tokens":1}')).startswith(b"HTTP/1.1 200 ")
        await engine.stop()
        await asyncio.sleep(0.02)

    asyncio.run(day())


@given(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(), min_size=1)))
def test_it_is_never_guessed_too_large(prompt: str | list[str | int | list[int]]) -> None:
    _, tokens, _ = _content(_Body(), prompt, COMPLETIONS)
    for spelled in (json.dumps(prompt), json.dumps(prompt, ensure_ascii=False), json.dumps(prompt, indent=9)):
        assert _prompt_tokens_min(msgspec.Raw(spelled.encode())) <= max(1, tokens)
