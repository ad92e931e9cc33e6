"""A strict client: every byte of an answer has to belong to it, and each answer to its request."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from dataclasses import dataclass, field
from typing import Any

from tests.support.scripted_replica import TOKENS

HANG_SECONDS = 120.0
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*")


class NotHttp(Exception):
    """The bytes are no answer."""


class NoAnswer(Exception):
    """The connection ended before the first byte of an answer."""


@dataclass
class Received:
    """One answer as it came; `whole` if it ended as its framing said."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool


async def receive(reader: asyncio.StreamReader) -> Received:
    """Read one answer.

    Raises:
        NotHttp: what came is no answer.
        NoAnswer: nothing came, and the connection ended.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100 "):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise NotHttp(f"half a head: {error.partial[:100]!r}") from None
        raise NoAnswer from None
    except ConnectionError:
        raise NoAnswer from None
    except asyncio.LimitOverrunError:
        raise NotHttp("a head without end") from None
    lines = head[:-4].split(b"\r\n")
    line = _STATUS.fullmatch(lines[0])
    if line is None or not all(b": " in one for one in lines[1:]):
        raise NotHttp(f"no head: {head[:100]!r}")
    headers = {name.lower(): value for name, value in (one.decode("latin-1").split(": ", 1) for one in lines[1:])}
    body, whole = await _body(reader, int(line[1]), headers)
    return Received(int(line[1]), headers, body, whole)


async def _body(reader: asyncio.StreamReader, status: int, headers: dict[str, str]) -> tuple[bytes, bool]:
    body = bytearray()
    try:
        if status in (204, 304):
            return b"", True
        if "content-length" in headers:
            return await reader.readexactly(int(headers["content-length"])), True
        if headers.get("transfer-encoding") != "chunked":
            return await reader.read(), headers.get("connection") == "close"
        while True:
            size = await reader.readuntil(b"\r\n")
            if re.fullmatch(rb"[0-9a-f]+\r\n", size) is None:
                raise NotHttp(f"no chunk: {size[:100]!r}")
            piece = await reader.readexactly(int(size, 16) + 2)
            if not piece.endswith(b"\r\n"):
                raise NotHttp(f"a chunk without its end: {piece[-20:]!r}")
            if len(piece) == 2:
                return bytes(body), True
            body += piece[:-2]
    except asyncio.IncompleteReadError as error:
        return bytes(body) or error.partial, False
    except ConnectionError:
        return bytes(body), False


@dataclass
class Judged:
    """What an answer says: `ending` is whole, told (that it failed), refused or passed (another status), or wrong."""

    ending: str
    why: str = ""
    usage_shown: bool = False
    strange_events: int = 0
    texts: list[str] = field(default_factory=list)


def judge(answer: Received, mark: str, *, is_stream: bool) -> Judged:
    """Read an answer to the request `mark`."""
    if answer.headers.get("x-request-id", mark) != mark:
        return Judged("wrong", f"it is the answer to {answer.headers['x-request-id']}")
    if answer.status != 200:
        reason = answer.headers.get("x-headway-reason", "")
        if not answer.whole:
            return Judged("told", f"{answer.status}, cut off")
        if not reason:
            return Judged("passed", str(answer.status))
        return Judged("refused" if answer.status == 429 or reason == "no-replica" else "told", reason)
    return _judged_stream(answer, mark) if is_stream else _judged_whole(answer, mark)


def _judged_whole(answer: Received, mark: str) -> Judged:
    if not answer.whole:
        return Judged("told", "cut off")
    try:
        body = gzip.decompress(answer.body) if answer.headers.get("content-encoding") == "gzip" else answer.body
        content = json.loads(body)
        if "error" in content:
            return Judged("told", "error in the body")
        texts = content["choices"][0]["text"].split()
    except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
        return Judged("wrong", f"a whole answer that cannot be read: {error!r}, {answer.body[:80]!r}")
    if texts != _expected(mark, TOKENS):
        return Judged("wrong", f"it says {texts[:3]} …")
    return Judged("whole", texts=texts)


def _judged_stream(answer: Received, mark: str) -> Judged:
    judged = Judged("wrong")
    told = ""
    for line in answer.body.replace(b"\r\n", b"\n").split(b"\n"):
        if not line.startswith(b"data:") or line == b"data: [DONE]":
            judged.strange_events += bool(line) and not line.startswith(b"data:")
            continue
        try:
            event: Any = json.loads(line[5:])
            choices = event.get("choices", [])
            judged.texts += [word for one in choices for word in one.get("text", "").split()]
            judged.usage_shown |= event.get("usage") is not None
            if "error" in event or any(one.get("finish_reason") == "error" for one in choices):
                told = "error event"
        except (ValueError, KeyError, TypeError, AttributeError):
            judged.strange_events += 1
    if judged.texts != _expected(mark, len(judged.texts)) or len(judged.texts) > TOKENS:
        judged.why = f"it says {judged.texts[:12]}"
    elif told or not answer.whole:
        judged.ending, judged.why = "told", told or "cut off"
    elif not answer.body.replace(b"\r\n", b"\n").endswith(b"data: [DONE]\n\n"):
        judged.why = "a stream that ends well without [DONE]"
    elif len(judged.texts) < TOKENS:
        judged.why = f"only {len(judged.texts)} tokens, and [DONE]"
    else:
        judged.ending = "whole"
    return judged


def _expected(mark: str, tokens: int) -> list[str]:
    return [f"{mark}.{number}" for number in range(tokens)]
