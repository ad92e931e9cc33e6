"""Batches in tests: lines of input files, a replica that says its prompt, what the openai client sees of the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import openai

from tests.support.scripted_replica import Call

CHAT_PATH = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


def batch_line(custom_id: str, text: str = "hi", **more: object) -> dict[str, Any]:
    """One line of an input file that asks for a chat completion; `more` goes into its body."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **more}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT_PATH, "body": body}


def lines_file(lines: Iterable[dict[str, Any]], name: str = "in.jsonl") -> tuple[str, bytes]:
    """A file to upload."""
    return name, "".join(json.dumps(one) + "\n" for one in lines).encode()


def completion_of(text: str) -> dict[str, Any]:
    """A whole chat completion that says the text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


async def says_its_prompt(call: Call) -> None:
    """A script of a replica: answers with the prompt, in JSON of several lines."""
    body = json.dumps(completion_of(json.loads(call.body)["messages"][0]["content"]), indent=1).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    await call.send(head + body)


def batch_client(url: str, key: str = "any") -> openai.AsyncOpenAI:
    """The real client, which tries nothing again."""
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


async def made_batch(
    client: openai.AsyncOpenAI, lines: Iterable[dict[str, Any]], window: Any = "24h", endpoint: Any = CHAT_PATH
) -> Any:
    """A new batch of these lines."""
    file = await client.files.create(file=lines_file(lines), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window=window)


async def ended_batch(client: openai.AsyncOpenAI, batch_id: str, seconds: float = 60.0) -> Any:
    """A batch once it has ended."""
    async with asyncio.timeout(seconds):
        while (batch := await client.batches.retrieve(batch_id)).status not in ENDED:
            await asyncio.sleep(0.02)
    return batch


async def result_rows(client: openai.AsyncOpenAI, file_id: str | None) -> dict[str, Any]:
    """custom_id -> its line in a result file; none where there is no file."""
    if file_id is None:
        return {}
    content = await client.files.content(file_id)
    found = [json.loads(one) for one in content.content.splitlines()]
    assert len({one["custom_id"] for one in found}) == len(found), "a custom_id is there twice"
    return {one["custom_id"]: one for one in found}
