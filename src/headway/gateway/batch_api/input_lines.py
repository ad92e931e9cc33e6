"""Lines of an input file: what each must hold, and the faults of those that do not.

The codes of faults are OpenAI's where it has one. Law: a line is judged without building its body's values.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from headway.gateway.openai.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, ENDPOINTS, RESPONSES

BATCH_ENDPOINTS = tuple(path for path, row in ENDPOINTS.items() if row in (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES))
"""Paths that a batch may ask."""
CUSTOM_ID_BYTES_MAX = 2_048
"""Of a `custom_id` as it is written, quotes and escapes included."""
_SHOWN_CHARACTERS = 80
_ABSENT = msgspec.Raw(b"")


class LineFault(NamedTuple):
    """What is wrong with a line; `line` is its number, from 1, None where it is the file itself."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class InputLine(NamedTuple):
    """A line that may be sent. `custom_id` is JSON as it was written; `name` is what it stands for."""

    custom_id: bytes
    name: str
    model: str


class _Line(msgspec.Struct):
    custom_id: msgspec.Raw = _ABSENT
    method: msgspec.Raw = _ABSENT
    url: msgspec.Raw = _ABSENT
    body: msgspec.Raw = _ABSENT


class _BodyTerms(msgspec.Struct):
    """What decides whether a body fits into a batch."""

    model: msgspec.Raw = _ABSENT
    stream: msgspec.Raw = _ABSENT
    background: msgspec.Raw = _ABSENT


_LINE, _ASKED, _TEXT = msgspec.json.Decoder(_Line), msgspec.json.Decoder(_BodyTerms), msgspec.json.Decoder(str)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NO = (b"", b"null", b"false")


def body_and_custom_id(raw: bytes) -> tuple[bytes, bytes]:
    """The body and the `custom_id` of a line that was judged to be good, each as it was written."""
    line = _LINE.decode(raw)
    return bytes(line.body), bytes(line.custom_id)


def judge_line(raw: bytes, endpoint: str) -> InputLine | LineFault:
    """What a line asks for, or what is wrong with it. `endpoint` is the batch's."""
    try:
        line = _LINE.decode(raw)
    except _UNREADABLE:
        return LineFault("invalid_json_line", "This line is not parseable as a JSON object.")
    for param in ("custom_id", "method", "url", "body"):
        if not bytes(getattr(line, param)):
            return LineFault("missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    name = _text(line.custom_id)
    if not name or len(bytes(line.custom_id)) > CUSTOM_ID_BYTES_MAX:
        message = f"custom_id must be a text of 1 to {CUSTOM_ID_BYTES_MAX} bytes."
        return LineFault("invalid_custom_id", message, "custom_id")
    if _text(line.method) != "POST":
        return LineFault("invalid_method", "method must be 'POST'.", "method")
    if _text(line.url) != endpoint:
        message = f"The URL of this request does not match the endpoint of the batch, '{endpoint}'."
        return LineFault("invalid_url", message, "url")
    return _judge_body(line, name)


def _judge_body(line: _Line, name: str) -> InputLine | LineFault:
    try:
        asked = _ASKED.decode(line.body)
    except _UNREADABLE:
        return LineFault("invalid_body", "body must be a JSON object.", "body")
    if bytes(asked.stream) not in _NO:
        return LineFault("stream_not_supported", "A batch gives no streams; leave out 'stream'.", "body.stream")
    if bytes(asked.background) not in _NO:
        message = "A batch waits for each answer; leave out 'background'."
        return LineFault("background_not_supported", message, "body.background")
    return InputLine(bytes(line.custom_id), name, _text(asked.model) or "")


def duplicate_fault(name: str) -> LineFault:
    """The fault of a line whose `custom_id` another one had before it."""
    message = f"The custom_id {name[:_SHOWN_CHARACTERS]!r} is there before; it must be unique in the file."
    return LineFault("duplicate_custom_id", message, "custom_id")


def _text(raw: msgspec.Raw) -> str | None:
    try:
        return _TEXT.decode(raw)
    except _UNREADABLE:
        return None
