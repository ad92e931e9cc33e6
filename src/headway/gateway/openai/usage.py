"""Learning how long an answer was without changing what the client sees.

We ask the replica for a usage chunk at a stream's end (`stream_options.include_usage`) and take it out again where the
client did not ask. Law: what passes differs from what came by that one event, or not at all; only events that mention
usage are parsed, and bytes are held back only while an event that begins so is not whole.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

_HELD_BYTES_MAX = 1 << 20
_JSON_BYTES_MAX = 4 << 20
_BREAKS = (b"\r\n\r\n", b"\n\n")


class Usage(NamedTuple):
    """Tokens as the replica counted them."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    usage: _Usage | None = None
    choices: list[msgspec.Raw] | None = None


_DECODER = msgspec.json.Decoder(_Event)


class StreamUsageReader:
    """Looks at a stream of server-sent events as it passes."""

    def __init__(self, *, hide_usage: bool) -> None:
        self._hide_usage = hide_usage
        self._held = b""
        self._gave_up = False
        self.events = 0
        self.usage: Usage | None = None

    def pass_on(self, piece: bytes) -> bytes:
        """What the client gets of `piece`, perhaps with what was held before it; may be empty."""
        if not self._held and piece.endswith(b"\n\n") and piece.find(b'"usage":') < 0:
            self.events += piece.count(b"\n\n")
            return piece
        if self._gave_up:
            return piece
        return self._slowly(self._held + piece)

    def rest(self) -> bytes:
        """What is still held when the stream ends: an event without its end."""
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
        """Whether the event is the usage chunk (no choices in it); notes the usage whichever it is."""
        content = _data_of(event)
        told = _decode(content)
        if told is None or told.usage is None:
            return False
        self.usage = _read(told.usage)
        return told.choices == []


class JsonUsageReader:
    """Keeps a copy of a JSON answer, within bounds, to read its usage at the end."""

    def __init__(self) -> None:
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
        """Nothing was held; the usage is read now."""
        if self._bytes <= _JSON_BYTES_MAX:
            told = _decode(b"".join(self._pieces))
            if told is not None and told.usage is not None:
                self.usage = _read(told.usage)
        self._pieces.clear()
        return b""


def _data_of(event: bytes) -> bytes:
    lines = [line[5:].lstrip(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)


def _decode(content: bytes) -> _Event | None:
    try:
        return _DECODER.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _read(usage: _Usage) -> Usage:
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details is not None else 0
    return Usage(max(0, usage.prompt_tokens or 0), max(0, usage.completion_tokens or 0), max(0, cached))
