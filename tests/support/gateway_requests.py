"""Requests inside the gateway, made by hand."""

from __future__ import annotations

import json
from typing import Any

from headway.gateway.openai.endpoints import endpoint_of
from headway.gateway.openai.prompt_count import NO_PROMPT, Counted, PromptCount
from headway.gateway.openai.request_body import Body, read_body
from headway.gateway.openai.token_ratio import TokenRatio
from headway.gateway.queueing.request_state import ArrivedRequest, GatewayRequest, PromptSize
from headway.gateway.wire.messages import HttpRequest


def counted_at_once(count: PromptCount, body: Body, body_bytes: int) -> tuple[int, Counted | None]:
    """A body's prompt is read and counted."""
    return count.at_once(body, count.read(body), body_bytes)


def gateway_request(
    number: int = 7,
    body: object = None,
    headers: list[tuple[bytes, bytes]] | None = None,
    *,
    path: str = "/v1/completions",
    prompt_tokens: int = 50,
    **arrived: Any,
) -> GatewayRequest:
    """One that arrived at 100 s. `arrived` overrides fields of `ArrivedRequest`."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    endpoint = endpoint_of(path)
    read = read_body(content, endpoint)
    fields: dict[str, Any] = {
        "request_id": b"id-1",
        "http": HttpRequest(b"POST", path.encode(), headers or [], content),
        "endpoint": endpoint,
        "body": read,
        "body_bytes": len(content),
        "streams": read is not None and bool(read.stream),
        "model": "",
        "tenant": "",
        "payer": "",
        "session": None,
        "deadline": None,
        "priority": 0,
        "hinted_output_tokens": None,
        "prompt": NO_PROMPT if read is None else PromptCount({}, TokenRatio()).read(read),
        "arrived_at": 100.0,
        "traceparent": None,
    }
    return GatewayRequest(ArrivedRequest(number=number, **fields | arrived), PromptSize(prompt_tokens, 0, None))
