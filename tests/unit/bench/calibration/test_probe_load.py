"""A live server is measured over HTTP: here one of our own, that answers as an OpenAI-compatible one does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from headway.bench.calibration.openai_stream import Server
from headway.bench.calibration.probe_load import designed_lengths, levels, measure, replay_on
from headway.bench.load_test.measure import check_url
from headway.bench.user_mistake import UserMistake
from headway.cli.explain_live import live_lines
from tests.support.recorded_days import RULES, traffic

Answer = Callable[[dict[str, object]], AsyncIterator[bytes]]


async def answered(body: dict[str, object]) -> AsyncIterator[bytes]:
    """As many tokens as asked for, a millisecond apart, then the usage."""
    wanted = int(body["max_tokens"])  # type: ignore[call-overload]
    for token in range(wanted):
        await asyncio.sleep(0.001)
        yield event({"choices": [{"text": f"w{token}"}]})
    prompt = body["prompt"]
    assert isinstance(prompt, list)
    yield event({"choices": [], "usage": {"prompt_tokens": len(prompt), "completion_tokens": wanted}})
    yield b"data: [DONE]\n\n"


def event(content: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


@asynccontextmanager
async def server(answer: Answer, seen: list[dict[str, object]]) -> AsyncIterator[str]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length: ")[2].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length) or b"null")
        if head.startswith("GET /v1/models"):
            content = b'{"data": [{"id": "tiny"}]}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        elif body["model"] != "tiny":
            writer.write(b"HTTP/1.1 404 Not Found\r\n\r\n" + b'{"error": "no such model"}')
        else:
            seen.append(body)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            async for part in answer(body):
                for piece in (part[:7], part[7:]):  # an event need not come in one piece
                    writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        await listening.wait_closed()


def against(answer: Answer, ask: Callable[[str], Awaitable[object]]) -> tuple[object, list[dict[str, object]]]:
    seen: list[dict[str, object]] = []

    async def both() -> object:
        async with server(answer, seen) as url:
            return await ask(url)

    return asyncio.run(both()), seen


def test_the_designed_load_is_recorded_as_sent() -> None:
    recording, seen = against(
        answered, lambda url: asyncio.to_thread(measure, url, RULES, requests=50, seed=1, model=None)
    )
    assert len(recording.trace) == 50  # type: ignore[attr-defined]
    assert len(seen) == 50 + 3  # and the warm-up
    sent = sorted((len(body["prompt"]), body["max_tokens"]) for body in seen[3:])  # type: ignore[arg-type]
    kept = zip(recording.trace.prompt_tokens.tolist(), recording.trace.output_tokens.tolist(), strict=True)  # type: ignore[attr-defined]
    assert sorted(kept) == sent
    assert sent == sorted(designed_lengths(RULES, 50, np.random.default_rng(1)))
    assert (recording.e2e_seconds >= recording.ttft_seconds).all()  # type: ignore[attr-defined]
    assert (np.diff(recording.trace.arrived_seconds) >= 0).all()  # type: ignore[attr-defined]


def test_a_trace_is_sent_with_its_priorities() -> None:
    from dataclasses import replace

    trace = replace(traffic(8, rate=1_000.0), priority=np.arange(8))
    recording, seen = against(answered, lambda url: replay_on(Server(url), "tiny", trace, 0, "live"))
    assert sorted(int(body["priority"]) for body in seen) == list(range(8))  # type: ignore[call-overload]
    assert len(recording.trace) == 8  # type: ignore[attr-defined]


def test_levels_come_twice_and_exceed_the_seats() -> None:
    found = levels(16)
    assert max(found) == 24
    assert min(found) == 1
    assert sorted(found[: len(found) // 2]) == sorted(found[len(found) // 2 :])


async def cut_short(body: dict[str, object]) -> AsyncIterator[bytes]:
    yield event({"choices": [{"text": "w"}]})


async def failing(body: dict[str, object]) -> AsyncIterator[bytes]:
    yield event({"error": {"message": "out of memory"}})


async def garbled(body: dict[str, object]) -> AsyncIterator[bytes]:
    yield b"data: {broken\n\n"


async def listed(body: dict[str, object]) -> AsyncIterator[bytes]:
    yield b"data: [1]\n\n"


async def uncounted(body: dict[str, object]) -> AsyncIterator[bytes]:
    yield event({"choices": [{"text": "w"}], "usage": {"total_tokens": 3}})


async def none_counted(body: dict[str, object]) -> AsyncIterator[bytes]:
    yield event({"choices": [{"text": "w"}], "usage": {"prompt_tokens": 0, "completion_tokens": 0}})


@pytest.mark.parametrize(
    ("answer", "model", "said"),
    [
        (garbled, "tiny", "is no completion .JSONDecodeError"),
        (listed, "tiny", "is no completion .AttributeError"),
        (uncounted, "tiny", "its usage counts none"),
        (none_counted, "tiny", "its usage counts none"),
        (cut_short, "tiny", "without a usage chunk"),
        (failing, "tiny", "out of memory"),
        (answered, "huge", "no such model"),
    ],
)
def test_a_server_that_does_not_serve_is_named(answer: Answer, model: str, said: str) -> None:
    with pytest.raises(UserMistake, match=said):
        against(answer, lambda url: Server(url).complete(model, [1, 2], 2))


def test_an_address_without_a_server_is_named() -> None:
    with pytest.raises(UserMistake, match="cannot be reached"):
        asyncio.run(Server("http://127.0.0.1:1").complete("tiny", [1], 1))
    with pytest.raises(UserMistake, match=r"cannot be reached: .*; check the address and the server, or name a model"):
        asyncio.run(Server("http://127.0.0.1:1").first_model())
    with pytest.raises(UserMistake, match="no address"):
        Server("localhost")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999", "http://[::1", "http://127.0.0.1:abc", "http://a b", "http://"]
)
def test_an_address_that_cannot_be_is_named(url: str) -> None:
    with pytest.raises(UserMistake, match="no address"):
        Server(url)
    with pytest.raises(UserMistake, match="no endpoint"):
        check_url(url)
    with pytest.raises(UserMistake, match="must be an address"):
        live_lines(url, "r1")


def test_a_server_of_something_else_is_named() -> None:
    async def ask(*, then_asks: Callable[[str], object]) -> object:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(b"SSH-2.0-x\r\n" + b"y" * 100)
            writer.close()

        listening = await asyncio.start_server(greet, "127.0.0.1", 0)
        async with listening:
            return await asyncio.to_thread(then_asks, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")

    with pytest.raises(UserMistake, match="not JSON"):
        asyncio.run(ask(then_asks=lambda url: live_lines(url, "r1")))
    with pytest.raises(UserMistake, match="answered"):
        asyncio.run(ask(then_asks=lambda url: asyncio.run(Server(url).first_model())))
