"""Streams of the Messages and the Responses API, event for event as vLLM sends them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.support.scripted_replica import Call, Script


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def message_events(text: str, tool: dict[str, Any] | None = None) -> list[bytes]:
    """An answer of the Messages API: a text, or a call of a tool. 32 prompt tokens, 16 of them cached."""
    start: dict[str, Any] = {"id": "chatcmpl-1", "type": "message", "role": "assistant", "model": "m", "content": []}
    start |= {"stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 32, "output_tokens": 0}}
    block: dict[str, Any] = {"type": "text", "text": ""}
    delta = {"type": "text_delta", "text": text}
    if tool is not None:
        block = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(tool)}
    usage = {"input_tokens": 16, "cache_read_input_tokens": 16, "cache_creation_input_tokens": 0, "output_tokens": 5}
    reason = "end_turn" if tool is None else "tool_use"
    return [
        event("message_start", message=start),
        event("content_block_start", index=0, content_block=block),
        event("content_block_delta", index=0, delta=delta),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage),
        event("message_stop"),
    ]


def response_events(text: str, response_id: str = "resp_1") -> list[bytes]:
    """An answer of the Responses API. 32 prompt tokens, 16 of them cached."""
    bare: dict[str, Any] = {"id": response_id, "object": "response", "created_at": 1, "model": "m", "tools": []}
    bare |= {"tool_choice": "auto", "parallel_tool_calls": True, "output": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    item: dict[str, Any] = {"id": "i", "type": "message", "role": "assistant", "content": [], "status": "in_progress"}
    whole = {**item, "status": "completed", "content": [{**part, "text": text}]}
    usage = {"input_tokens": 32, "input_tokens_details": {"cached_tokens": 16}, "output_tokens": 5, "total_tokens": 37}
    usage |= {"output_tokens_details": {"reasoning_tokens": 0}}
    place: dict[str, Any] = {"item_id": "i", "output_index": 0, "content_index": 0}
    fields: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": {**bare, "status": "in_progress"}}),
        ("response.in_progress", {"response": {**bare, "status": "in_progress"}}),
        ("response.output_item.added", {"output_index": 0, "item": item}),
        ("response.content_part.added", {**place, "part": part}),
        ("response.output_text.delta", {**place, "delta": text, "logprobs": []}),
        ("response.output_text.done", {**place, "text": text, "logprobs": []}),
        ("response.content_part.done", {**place, "part": {**part, "text": text}}),
        ("response.output_item.done", {"output_index": 0, "item": whole}),
        ("response.completed", {"response": {**bare, "status": "completed", "output": [whole], "usage": usage}}),
    ]
    return [event(kind, sequence_number=number, **more) for number, (kind, more) in enumerate(fields)]


def sends_events(events: list[bytes], after: float = 0.0, keep: int | None = None) -> Script:
    """All of them, `after` seconds; or the first `keep`, and then silence until the caller leaves."""

    async def script(call: Call) -> None:
        await asyncio.sleep(after)
        await call.head()
        for one in events[:keep]:
            await call.chunk(one)
        if keep is not None:
            await call.left.wait()
        await call.send(b"0\r\n\r\n")

    return script
