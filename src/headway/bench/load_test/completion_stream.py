"""A streamed completion as it comes in, event by event: when its tokens came, its usage, and each way to fail."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

_LINE_BYTES_MAX = 1 << 24
_FAILED = ("error", "abort")
_TURNED_AWAY = ("rate_limit_error", "service_unavailable_error", "invalid_request_error")  # types of errors in streams


class StreamFault(Exception):
    """Why a request has no whole answer, as a clause whose subject is the server or its answer."""

    def __init__(self, why: str, reason: str = "", *, is_refusal: bool = False) -> None:
        """A fault.

        Args:
            why: the clause.
            reason: the server's own (`x-headway-reason`), if it gave one.
            is_refusal: the server turned the request away; otherwise it, or the way to it, failed.
        """
        super().__init__(why)
        self.reason = reason
        self.is_refusal = is_refusal


class CompletionStream:
    """Reads server-sent events: when tokens came, and the usage."""

    def __init__(self, on_tokens: Callable[[], None]) -> None:
        self._on_tokens = on_tokens
        self._pending = b""
        self.has_ended = False  # by its own word; that the connection ended says nothing
        self.first_token_at = 0.0
        self.last_token_at = 0.0
        self.usage: dict[str, Any] = {}

    def read(self, part: bytes) -> None:
        """A piece of the stream came. Raises StreamFault if it is no completion's."""
        *lines, self._pending = (self._pending + part).split(b"\n")
        if len(self._pending) > _LINE_BYTES_MAX:
            raise StreamFault("its answer holds a line without end")
        has_tokens = False
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            content = line[5:].strip()
            if content == b"[DONE]":
                self.has_ended = True
                continue
            try:
                event = json.loads(content)
                if event.get("error"):
                    raise StreamFault(f"status 200: {error_message(event)}", is_refusal=_turns_away(event["error"]))
                self.usage = event.get("usage") or self.usage
                has_tokens = self._read_choices(event.get("choices") or ()) or has_tokens
            except (ValueError, AttributeError, TypeError) as error:
                raise StreamFault(f"its answer is no completion ({type(error).__name__}: {error})") from None
        if has_tokens:
            self.last_token_at = time.perf_counter()
            self.first_token_at = self.first_token_at or self.last_token_at
            self._on_tokens()

    def close(self) -> None:
        """Nothing more comes: read a last line that has no end. Raises StreamFault as `read` does."""
        if self._pending:
            self.read(b"\n")

    def _read_choices(self, choices: Sequence[dict[str, Any]]) -> bool:
        """Whether there are any; a finish reason among them ends the stream."""
        for choice in choices:
            reason = choice.get("finish_reason")
            if reason in _FAILED:
                raise StreamFault(f"status 200: the answer ends with finish_reason {reason!r}")
            self.has_ended = self.has_ended or bool(reason)
        return bool(choices)


def is_refusal_status(status: int) -> bool:
    """Whether the server turned a request away, and did not fail: a status of the client's side, or no room (503)."""
    return 400 <= status < 500 or status == 503


def _turns_away(error: object) -> bool:
    """Whether the error that ends a stream is a refusal: by its type, or by a code that is a status, as vLLM's."""
    if not isinstance(error, dict):
        return False
    code = error.get("code")
    return error.get("type") in _TURNED_AWAY or (isinstance(code, int) and is_refusal_status(code))


def error_message(content: object) -> str:
    """What an error says, in OpenAI's shape or any other."""
    error = content.get("error", content) if isinstance(content, dict) else content
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]


def json_or_text(content: bytes) -> object:
    """What JSON says, or the words of what is none."""
    try:
        return json.loads(content)
    except ValueError:
        return " ".join(content.decode(errors="replace").split())
