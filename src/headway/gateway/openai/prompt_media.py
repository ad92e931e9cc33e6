"""Images, audio, video and files inside a prompt: how many of its bytes are no text, and how many tokens they are.

An image in base64 is counted by the size in its own head where the rule of the model's family is known, by a stated
default (`media_tokens`) where it is not; so is everything else that is no text.
"""

from __future__ import annotations

import binascii
import math
import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

_SIGN = b'"type"'  # of a part; messages of text alone have none
_TEXT_TYPES = re.compile(rb"text|refusal|reasoning|thinking|tool|function|call")
_MEDIA_TYPES = re.compile(rb"image|audio|video|file|document")
_DATA = re.compile(rb'base64,|"data"\s*:\s*"')
_HEAD_BYTES = 1 << 16  # of a part; a JPEG's size may stand behind a thumbnail
_WORD_BYTES = 64
_LONG_BYTES = 1 << 20
_LOOKED_AT_MAX = 4_096  # messages and parts of them; each takes some microseconds. What comes after counts as text
_NOTHING = memoryview(b"")
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Media(NamedTuple):
    """What of a prompt is no text."""

    bytes: int
    tokens: int


NO_MEDIA = Media(0, 0)


def media_of(prompt: bytes, model: str, default_tokens: int) -> Media:
    """The media of a prompt's messages, or of the items of its `input`."""
    media = NO_MEDIA
    for media in media_in_steps(prompt, model, default_tokens):  # noqa: B007 - the last one counts
        pass
    return media


def media_in_steps(prompt: bytes, model: str, default_tokens: int) -> Iterator[Media]:
    """The same of a large prompt: what was found up to now, after each pass over much of it."""
    if prompt.find(b"[", 1) < 0 or prompt.find(_SIGN) < 0:  # the first search is much the faster one
        return
    size = tokens = 0
    for part in _media_parts(prompt):
        if part is not None:
            size += len(part)
            tokens += _tokens_of(part, model, default_tokens)
        yield Media(size, tokens)


def _media_parts(prompt: bytes) -> Iterator[memoryview | None]:
    """The parts; None after each pass over a long message."""
    left = _LOOKED_AT_MAX
    messages = _items(memoryview(prompt), left)
    if len(prompt) > _LONG_BYTES:
        yield None
    for message in messages:
        content = _fields(message).get("content", _NOTHING)
        if len(content) > _LONG_BYTES:
            yield None
        parts = _items(content, max(0, left))
        left -= 1 + len(parts)
        for part in parts:
            if len(part) > _LONG_BYTES:
                yield None
            yield from _media_in(part, depth=1)


def _media_in(part: memoryview, depth: int) -> Iterator[memoryview]:
    fields = _fields(part)
    kind = _word(fields.get("type"))
    if depth and kind == b'"tool_result"':
        for inner in _items(fields.get("content", _NOTHING), _LOOKED_AT_MAX):
            yield from _media_in(inner, depth - 1)
    elif (
        _MEDIA_TYPES.search(kind) is not None
        and _TEXT_TYPES.search(kind) is None
        and _word(_fields(fields.get("source", _NOTHING)).get("type")) != b'"text"'  # a document may be plain text
    ):
        yield part


def _items(content: memoryview, most: int) -> list[memoryview]:
    """The first items of a JSON array, not copied; none of anything else."""
    try:
        return [memoryview(item) for item in _LIST.decode(content)[:most]] if _word(content[:1]) == b"[" else []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def _fields(content: memoryview) -> dict[str, memoryview]:
    """The fields of a JSON object, not copied; none of anything else."""
    try:
        fields = _OBJECT.decode(content) if _word(content[:1]) == b"{" else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return {name: memoryview(value) for name, value in fields.items()}


def _word(value: memoryview | None) -> bytes:
    """The beginning of a value, which a type's name is not longer than."""
    return b"" if value is None else bytes(value[:_WORD_BYTES])


def _tokens_of(part: memoryview, model: str, default_tokens: int) -> int:
    rule = next((rule for pattern, rule in IMAGE_RULES if pattern.search(model)), None)
    head = bytes(part[:_HEAD_BYTES])
    if rule is None or b"image" not in head:
        return default_tokens
    start = _DATA.search(head)
    size = None if start is None else image_size(_decoded(head[start.end() :]))
    return default_tokens if size is None else rule(*size)


def _decoded(text: bytes) -> bytes:
    """The bytes that base64 begins with; JSON may write / as \\/."""
    text = text.partition(b'"')[0].replace(b"\\", b"")
    try:
        return binascii.a2b_base64(text[: len(text) // 4 * 4])
    except binascii.Error:
        return b""


def image_size(head: bytes) -> tuple[int, int] | None:
    """Width and height in pixels by the head of a PNG, GIF, JPEG or WebP file; None of anything else.

    Sources: PNG (ISO/IEC 15948, IHDR), GIF89a (logical screen descriptor), JPEG (ITU-T T.81, B.2.2), WebP (RFC 9649).
    """
    try:
        size = _size_in(head)
    except (struct.error, IndexError):  # it ends too early
        return None
    return size if size is not None and min(size) > 0 else None


def _size_in(head: bytes) -> tuple[int, int] | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack_from(">II", head, 16)
        return width, height
    if head.startswith((b"GIF87a", b"GIF89a")):
        width, height = struct.unpack_from("<HH", head, 6)
        return width, height
    if head.startswith(b"\xff\xd8"):
        return _jpeg_size(head)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _webp_size(head)
    return None


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    at = 2
    while head[at] == 0xFF:
        marker, length = head[at + 1], struct.unpack_from(">H", head, at + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, of any coding
            height, width = struct.unpack_from(">HH", head, at + 5)
            return width, height
        at += 2 + length
    return None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", head, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X" and len(head) >= 30:
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    return None


def _by_area(patch: int, tokens_min: int, tokens_max: int) -> Callable[[int, int], int]:
    """A token for each square of `patch` pixels, the image scaled into the bounds (Qwen's `smart_resize`)."""

    def tokens(width: int, height: int) -> int:
        squares = max(1, round(width / patch)) * max(1, round(height / patch))
        return min(tokens_max, max(tokens_min, squares)) + 2  # and a mark at either end

    return tokens


def _by_rows(patch: int, edge_max: int) -> Callable[[int, int], int]:
    """A token for each square of `patch` pixels and one for each row, the longer edge scaled down to `edge_max`."""

    def tokens(width: int, height: int) -> int:
        scale = max(1.0, max(width, height) / edge_max)
        columns, rows = (max(1, math.ceil(edge / scale / patch)) for edge in (width, height))
        return rows * (columns + 1)

    return tokens


def _fixed(tokens: int) -> Callable[[int, int], int]:
    return lambda width, height: tokens


IMAGE_RULES: tuple[tuple[re.Pattern[str], Callable[[int, int], int]], ...] = tuple(
    (re.compile(name, re.IGNORECASE), rule)
    for name, rule in (
        (r"qwen-?2(\.5)?[-_]vl", _by_area(28, 4, 16_384)),  # arXiv 2409.12191, and the models' preprocessor_config
        (r"qwen-?3[-_]vl", _by_area(32, 64, 16_384)),
        (r"pixtral", _by_rows(16, 1_024)),  # arXiv 2410.07073
        (r"mistral-small-3\.[12]", _by_rows(28, 1_540)),
        (r"gemma-?3", _fixed(256)),  # arXiv 2503.19786
        (r"llava-(v?1\.5)", _fixed(576)),  # arXiv 2310.03744
    )
)
"""Pattern of a model's name -> tokens of an image by width and height. The first pattern that is found counts."""
