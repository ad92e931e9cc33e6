"""How the embedded engine writes an answer in each API: the events of a stream around its tokens, and a whole answer.

`SHAPES` is the table. The events and their order are those that vLLM sends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from headway.gateway.openai.endpoints import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Endpoint

Fields = dict[str, Any]


class AnswerTokens(NamedTuple):
    """Tokens of one answer, and whether its client's bound ended it."""

    prompt: int
    cached: int
    output: int
    is_bounded: bool


class AnswerShape(Protocol):
    """One answer of the API."""

    def begin(self, tokens: AnswerTokens) -> bytes:
        """What a stream begins with, before its first text."""

    def text(self, text: str, *, is_first: bool, tokens: AnswerTokens | None) -> bytes:
        """The event of one token; `tokens` are known at the last one."""

    def end(self, whole: Callable[[], str], tokens: AnswerTokens, *, shows_usage: bool) -> bytes:
        """What a stream ends with: `whole` gives its text; `shows_usage`: the client asked for it, where it has to."""

    def answer(self, text: str, tokens: AnswerTokens) -> Fields:
        """The whole answer of a request without a stream."""


class _ChunkShape:
    """Of completions and chats.

    `kind` is of a whole answer, `chunk_kind` of a part of a stream; `delta` writes a text into a part, where the first
    one is another, and `whole` into a whole answer.
    """

    def __init__(
        self,
        number: int,
        model: str,
        kind: str,
        chunk_kind: str,
        delta: Callable[[str, bool], Fields],
        whole: Callable[[str], Fields],
    ) -> None:
        self._head: Fields = {"id": f"sim-{number}", "created": int(time.time()), "model": model}
        self._kind, self._chunk_kind = kind, chunk_kind
        self._delta, self._whole = delta, whole

    def begin(self, tokens: AnswerTokens) -> bytes:
        """Nothing."""
        return b""

    def text(self, text: str, *, is_first: bool, tokens: AnswerTokens | None) -> bytes:
        """A chunk."""
        return self._chunk(choices=_choices(self._delta(text, is_first), tokens))

    def end(self, whole: Callable[[], str], tokens: AnswerTokens, *, shows_usage: bool) -> bytes:
        """The usage, if it was asked for, and the end."""
        return (self._chunk(choices=[], usage=_usage(tokens)) if shows_usage else b"") + b"data: [DONE]\n\n"

    def answer(self, text: str, tokens: AnswerTokens) -> Fields:
        """One choice with the text."""
        choices = _choices(self._whole(text), tokens)
        return {**self._head, "object": self._kind, "choices": choices, "usage": _usage(tokens)}

    def _chunk(self, **fields: Any) -> bytes:
        return b"data: %b\n\n" % msgspec.json.encode({**self._head, "object": self._chunk_kind, **fields})


def _completion(number: int, model: str) -> _ChunkShape:
    kind = "text_completion"
    return _ChunkShape(number, model, kind, kind, lambda text, is_first: {"text": text}, lambda text: {"text": text})


def _chat(number: int, model: str) -> _ChunkShape:
    def delta(text: str, is_first: bool) -> Fields:
        return {"delta": {"content": text} | ({"role": "assistant"} if is_first else {})}

    def whole(text: str) -> Fields:
        return {"message": {"role": "assistant", "content": text}}

    return _ChunkShape(number, model, "chat.completion", "chat.completion.chunk", delta, whole)


def _choices(content: Fields, tokens: AnswerTokens | None) -> list[Fields]:
    finish = None if tokens is None else "length" if tokens.is_bounded else "stop"
    return [{"index": 0, **content, "logprobs": None, "finish_reason": finish}]


class _MessageShape:
    """Of Anthropic's Messages API, in which cached tokens are counted apart from the other prompt tokens."""

    def __init__(self, number: int, model: str) -> None:
        self._id, self._model = f"sim-{number}", model

    def _message(self, content: list[Fields], tokens: AnswerTokens, reason: str | None) -> Fields:
        fields = {"id": self._id, "type": "message", "role": "assistant", "model": self._model, "content": content}
        return fields | {"stop_reason": reason, "stop_sequence": None, "usage": self._usage(tokens)}

    @staticmethod
    def _usage(tokens: AnswerTokens) -> Fields:
        cached = {"cache_read_input_tokens": tokens.cached, "cache_creation_input_tokens": 0}
        return {"input_tokens": tokens.prompt - tokens.cached, **cached, "output_tokens": tokens.output}

    @staticmethod
    def _reason(tokens: AnswerTokens) -> str:
        return "max_tokens" if tokens.is_bounded else "end_turn"

    def begin(self, tokens: AnswerTokens) -> bytes:
        """The message, and its one block of text."""
        block = {"type": "text", "text": ""}
        return _event("message_start", message=self._message([], tokens._replace(output=0), None)) + _event(
            "content_block_start", index=0, content_block=block
        )

    def text(self, text: str, *, is_first: bool, tokens: AnswerTokens | None) -> bytes:
        """A delta of the block."""
        return _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def end(self, whole: Callable[[], str], tokens: AnswerTokens, *, shows_usage: bool) -> bytes:
        """The block's end, the usage, and the message's end."""
        delta = {"stop_reason": self._reason(tokens), "stop_sequence": None}
        ends = _event("content_block_stop", index=0), _event("message_delta", delta=delta, usage=self._usage(tokens))
        return b"".join(ends) + _event("message_stop")

    def answer(self, text: str, tokens: AnswerTokens) -> Fields:
        """One block with the text."""
        return self._message([{"type": "text", "text": text}], tokens, self._reason(tokens))


class _ResponseShape:
    """Of the Responses API, whose events are numbered. Nothing is stored."""

    def __init__(self, number: int, model: str) -> None:
        self._head: Fields = {"id": f"resp-sim-{number}", "object": "response", "created_at": int(time.time())}
        self._head |= {"model": model, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
        self._events = 0
        self._place: Fields = {"item_id": f"msg-sim-{number}", "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._events += 1
        return _event(kind, sequence_number=self._events - 1, **fields)

    def _response(self, status: str, output: list[Fields], **more: Any) -> Fields:
        return {**self._head, "status": status, "output": output, **more}

    def _item(self, status: str, text: str | None) -> Fields:
        content = [] if text is None else [self._part(text)]
        item = {"id": self._place["item_id"], "type": "message", "role": "assistant"}
        return {**item, "status": status, "content": content}

    @staticmethod
    def _part(text: str) -> Fields:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def begin(self, tokens: AnswerTokens) -> bytes:
        """The response, its one item, and its one part of text."""
        response = self._response("in_progress", [])
        created = [self._event(f"response.{kind}", response=response) for kind in ("created", "in_progress")]
        item = self._event("response.output_item.added", output_index=0, item=self._item("in_progress", None))
        part = self._event("response.content_part.added", **self._place, part=self._part(""))
        return b"".join([*created, item, part])

    def text(self, text: str, *, is_first: bool, tokens: AnswerTokens | None) -> bytes:
        """A delta of the text."""
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def end(self, whole: Callable[[], str], tokens: AnswerTokens, *, shows_usage: bool) -> bytes:
        """The ends of part and item, and the whole response with its usage."""
        text = whole()
        response = self.answer(text, tokens)
        return b"".join(
            [
                self._event("response.output_text.done", **self._place, text=text, logprobs=[]),
                self._event("response.content_part.done", **self._place, part=self._part(text)),
                self._event("response.output_item.done", output_index=0, item=response["output"][0]),
                self._event(f"response.{response['status']}", response=response),
            ]
        )

    def answer(self, text: str, tokens: AnswerTokens) -> Fields:
        """One item with the text."""
        status = "incomplete" if tokens.is_bounded else "completed"
        usage = {
            "input_tokens": tokens.prompt,
            "input_tokens_details": {"cached_tokens": tokens.cached},
            "output_tokens": tokens.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens.prompt + tokens.output,
        }
        why = {"reason": "max_output_tokens"} if tokens.is_bounded else None
        return self._response(status, [self._item(status, text)], usage=usage, incomplete_details=why)


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))


def _usage(tokens: AnswerTokens) -> Fields:
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.prompt + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
    }


SHAPES: Mapping[Endpoint, Callable[[int, str], AnswerShape]] = {  # of the engine's number and the client's model
    CHAT: _chat,
    COMPLETIONS: _completion,
    MESSAGES: _MessageShape,
    RESPONSES: _ResponseShape,
}
