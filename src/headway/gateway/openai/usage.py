"""Readers of token usage in answers, without changing what the client sees.

The replica is asked for a usage chunk at a stream's end (`stream_options.include_usage`); it is taken out again where
the client did not ask. Law: what passes differs from what came by that one event, or not at all. Only events that
mention usage are parsed. Bytes are held back only while the event that they begin is not whole.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import msgspec

_HELD_BYTES_MAX = 1 << 20
_JSON_BYTES_MAX = 4 << 20
_BREAKS = (b"\r\n\r\n", b"\n\n")


class Usage(NamedTuple):
    """Tokens of one request, as the replica counted them."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


class UsageFields(NamedTuple):
    """Where an answer holds its token counts: names of the fields of `usage`."""

    prompt: str
    output: str
    prompt_details: str
    stream_envelope: str | None = None
    """Field of a stream's event that holds the answer with its `usage`; None where the event is the answer."""


COMPLETION_USAGE = UsageFields("prompt_tokens", "completion_tokens", "prompt_tokens_details")


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0


class _Reader:
    """Finds the usage in JSON. msgspec decodes into classes made for the names of these fields."""

    def __init__(self, fields: UsageFields) -> None:
        counts: Any = [("prompt", int | None, 0), ("output", int | None, 0), ("details", _Details | None, None)]
        names = {"prompt": fields.prompt, "output": fields.output, "details": fields.prompt_details}
        usage = msgspec.defstruct("Usage", counts, rename=names)
        parts: Any = [("usage", usage | None, None), ("choices", list[msgspec.Raw] | None, None)]
        answer = msgspec.defstruct("Answer", parts)
        self._answer: msgspec.json.Decoder[Any] = msgspec.json.Decoder(answer)
        self._envelope: msgspec.json.Decoder[Any] | None = None
        if fields.stream_envelope is not None:
            inside: Any = [("answer", answer | None, None)]
            self._envelope = msgspec.json.Decoder(
                msgspec.defstruct("Envelope", inside, rename={"answer": fields.stream_envelope})
            )

    def of_answer(self, content: bytes) -> Usage | None:
        """The usage of a whole JSON answer."""
        return self._read(content, self._answer)[0]

    def of_event(self, content: bytes) -> tuple[Usage | None, bool]:
        """The usage of a stream's event, and whether the event holds nothing else."""
        return self._read(content, self._envelope or self._answer)

    def _read(self, content: bytes, decoder: msgspec.json.Decoder[Any]) -> tuple[Usage | None, bool]:
        try:
            answer = decoder.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None, False
        if decoder is self._envelope:
            answer = answer.answer
        if answer is None or answer.usage is None:
            return None, False
        usage = answer.usage
        cached = (usage.details.cached_tokens or 0) if usage.details is not None else 0
        counted = Usage(max(0, usage.prompt or 0), max(0, usage.output or 0), max(0, cached))
        return counted, answer.choices == []


_reader = cache(_Reader)


class StreamUsageReader:
    """Reads the usage in a stream of server-sent events as it passes."""

    def __init__(self, *, hide_usage: bool, fields: UsageFields = COMPLETION_USAGE) -> None:
        self._reader = _reader(fields)
        self._hide_usage = hide_usage
        self._held = b""
        self._gave_up = False
        self.events = 0
        self.usage: Usage | None = None

    def pass_on(self, piece: bytes) -> bytes:
        """The bytes for the client: `piece`, perhaps with what was held before it; may be empty."""
        if not self._held and piece.endswith(b"\n\n") and piece.find(b'"usage":') < 0:
            self.events += piece.count(b"\n\n")
            return piece
        if self._gave_up:
            return piece
        return self._slowly(self._held + piece)

    def rest(self) -> bytes:
        """The bytes still held when the stream ends: an event without its end."""
        held, self._held = self._held, b""
        return held

    def _slowly(self, data: bytes) -> bytes:
        passed = []
        while True:
            end = min((at + len(mark) for mark in _BREAKS if (at := data.find(mark)) >= 0), default=0)
            if not end:
                break
            event, data = data[:end], data[end:]
            self.events += 1
            if not (b'"usage"' in event and self._is_usage_alone(event) and self._hide_usage):
                passed.append(event)
        if len(data) > _HELD_BYTES_MAX:
            self._gave_up = True
            passed.append(data)
            data = b""
        self._held = data
        return b"".join(passed)

    def _is_usage_alone(self, event: bytes) -> bool:
        """Whether the event is the usage chunk (no choices in it). Any usage in it is noted."""
        usage, is_alone = self._reader.of_event(_data_of(event))
        if usage is not None:
            self.usage = usage
        return is_alone


class JsonUsageReader:
    """Keeps a copy of a JSON answer, up to 4 MiB, to read its usage at the end."""

    def __init__(self, fields: UsageFields = COMPLETION_USAGE) -> None:
        self._reader = _reader(fields)
        self._pieces: list[bytes] = []
        self._bytes = 0
        self.events = 0
        self.usage: Usage | None = None

    def pass_on(self, piece: bytes) -> bytes:
        """The piece itself."""
        self._bytes += len(piece)
        if self._bytes <= _JSON_BYTES_MAX:
            self._pieces.append(piece)
        return piece

    def rest(self) -> bytes:
        """Nothing is held back; the usage is read now."""
        if self._bytes <= _JSON_BYTES_MAX:
            self.usage = self._reader.of_answer(b"".join(self._pieces))
        self._pieces.clear()
        return b""


def _data_of(event: bytes) -> bytes:
    lines = [line[5:].lstrip(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)
