"""Batches as the real client of openai makes them: files up, a batch, its results, cancellation, expiry, lists."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from headway.gateway.settings import BatchSettings
from tests.support.gateway_setup import RunGateway, Setup
from tests.support.scripted_replica import Call

ENDPOINT = "/v1/chat/completions"


def line(custom_id: str, text: str = "hi", **more: object) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body | more}


def lines_file(lines: list[dict[str, Any]]) -> tuple[str, bytes]:
    return "in.jsonl", "".join(json.dumps(one) + "\n" for one in lines).encode()


async def says_its_prompt(call: Call) -> None:
    """Answers with the prompt, over more than one line of JSON."""
    said = call.json()["messages"][0]["content"]
    message = {"role": "assistant", "content": said}
    whole = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }
    body = json.dumps(whole, indent=1).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    await call.send(head + body)


def client_of(setup: Setup, key: str = "any") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{setup.port}/v1", api_key=key, max_retries=0)


async def made(client: openai.AsyncOpenAI, lines: list[dict[str, Any]], window: Any = "24h") -> Any:
    file = await client.files.create(file=lines_file(lines), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window=window)


async def ended(client: openai.AsyncOpenAI, batch_id: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            batch = await client.batches.retrieve(batch_id)
            if batch.status in ("completed", "failed", "expired", "cancelled"):
                return batch
            await asyncio.sleep(0.02)


async def rows(client: openai.AsyncOpenAI, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    content = await client.files.content(file_id)
    found = [json.loads(one) for one in content.text.splitlines()]
    assert len({one["custom_id"] for one in found}) == len(found)
    return {one["custom_id"]: one for one in found}


@pytest.fixture
def run_batches(run_gateway: RunGateway, tmp_path: Path) -> Callable[..., None]:
    def run(scenario: Callable[[Setup], Awaitable[None]], **more: Any) -> None:
        batches = BatchSettings(folder=str(tmp_path), **more.pop("batches", {}))
        run_gateway(scenario, batches=batches, **more)

    return run


def test_a_batch_is_answered_in_files(run_batches: Callable[..., None]) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = says_its_prompt
        async with client_of(setup) as client:
            file = await client.files.create(
                file=lines_file([line(f"r{number}", f"say {number}") for number in range(200)]), purpose="batch"
            )
            assert (file.object, file.purpose, file.filename, file.status) == ("file", "batch", "in.jsonl", "processed")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata={"a": "b"}
            )
            assert batch.status == "validating"
            assert batch.metadata == {"a": "b"}
            assert (batch.output_file_id, batch.error_file_id, batch.errors) == (None, None, None)
            batch = await ended(client, batch.id)
            assert batch.status == "completed"
            counts = batch.request_counts
            assert (counts.total, counts.completed, counts.failed) == (200, 200, 0)
            assert batch.error_file_id is None
            assert batch.model == "m"
            assert (batch.usage.input_tokens, batch.usage.output_tokens) == (1400, 400)
            found = await rows(client, batch.output_file_id)
            assert len(found) == 200
            for name, row in found.items():
                assert row["error"] is None
                assert row["id"].startswith("batch_req_")
                assert row["response"]["status_code"] == 200
                assert row["response"]["request_id"].startswith("req_")
                said = row["response"]["body"]["choices"][0]["message"]["content"]
                assert said == f"say {name[1:]}"
            output = await client.files.retrieve(batch.output_file_id)
            assert output.purpose == "batch_output"
            listed = [one.id async for one in client.files.list(purpose="batch_output")]
            assert listed == [output.id]
            assert [one.id async for one in client.batches.list()] == [batch.id]
        assert all(call.headers["x-headway-class"] == "offline" for call in setup.replicas[0].calls)

    run_batches(scenario)
