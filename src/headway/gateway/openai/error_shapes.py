"""Shapes of errors: the one table of how each API writes an error, as a whole answer and as the end of a stream.

`SHAPES` is the table. A client reads only the shape of the API whose path it asked; every other path has OpenAI's.
Law: every error that the gateway itself gives passes through here, wherever it arises.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from headway.gateway.openai.error_responses import ApiError, ErrorResponse, code_of, error_body
from headway.gateway.wire.messages import Response


class ErrorShape(NamedTuple):
    """How one API writes an error.

    Attributes:
        body: of a whole answer.
        event: that ends a stream, whose status line has been sent; the number is that of the events before it.
        keep_alive: what a stream may hold at any place between two events, and means nothing.
    """

    body: Callable[[ApiError], bytes]
    event: Callable[[ApiError, int], bytes]
    keep_alive: bytes


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""platform.claude.com/docs/en/api/errors; 503 as vLLM writes it."""


def _openai_event(error: ApiError, events: int) -> bytes:
    """A chunk of a completion with an error and `finish_reason: "error"`: openai-python raises APIError."""
    kind = "rate_limit_error" if error.status == 429 else "server_error"
    fields = {"message": error.message, "type": kind, "param": None, "code": code_of(error)}
    choice = {"index": 0, "delta": {}, "text": "", "finish_reason": "error"}
    return b"data: " + json.dumps({"error": fields, "choices": [choice]}).encode() + b"\n\n"


def _response_failed(error: ApiError, events: int) -> bytes:
    """`response.failed`, one of the three events that may end a stream of the Responses API."""
    response = {
        "id": error.request_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "failed",
        "error": {
            "code": "rate_limit_exceeded" if error.status == 429 else "server_error",  # a closed list
            "message": error.message,
        },
        "incomplete_details": None,
        "output": [],
        "usage": None,
    }
    data = {"type": "response.failed", "sequence_number": events, "response": response}
    return b"event: response.failed\ndata: " + json.dumps(data).encode() + b"\n\n"


def _message_error(error: ApiError) -> bytes:
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    fields: dict[str, object] = {"type": "error", "error": {"type": kind, "message": error.message}}
    return json.dumps(fields | ({"request_id": error.request_id} if error.request_id else {})).encode()


def _message_error_event(error: ApiError, events: int) -> bytes:
    return b"event: error\ndata: " + _message_error(error) + b"\n\n"


_COMMENT = b": keep-alive\n\n"  # of the HTML standard, section 9.2.6; vLLM sends the same
_PING = b'event: ping\ndata: {"type": "ping"}\n\n'  # of Anthropic's API, at any place, also before `message_start`

OPENAI = ErrorShape(error_body, _openai_event, _COMMENT)
RESPONSES = ErrorShape(error_body, _response_failed, _COMMENT)
ANTHROPIC = ErrorShape(_message_error, _message_error_event, _PING)

SHAPES = MappingProxyType({"responses": RESPONSES, "messages": ANTHROPIC})
"""First name after `/v1/` -> the shape of errors there, `/v1/messages/count_tokens` included."""


def shape_of(path: str) -> ErrorShape:
    """The shape of errors on a path."""
    names = path.split("/", 3)
    return SHAPES.get(names[2], OPENAI) if len(names) > 2 and names[1] == "v1" else OPENAI


def shaped(response: Response, path: str) -> Response:
    """A response as a client that asked this path reads it: an error in the shape of its API."""
    if not isinstance(response, ErrorResponse):
        return response
    shape = shape_of(path)
    return response if shape.body is error_body else replace(response, body=shape.body(response.error))
