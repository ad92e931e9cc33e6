"""Ways in which a replica misbehaves, each a script; and the odd but legal ways in which it may answer well.

Each request names itself in `x-request-id`. A right answer is `TOKENS` tokens that hold this name and their number, so
that a client sees whether an answer is its own, whole, and there once.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import dataclass
from typing import Literal

from tests.support.scripted_replica import TOKENS, Call, Script, dies_at_once, hangs, text, usage

DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"
_OTHER = "other"  # a request that was never sent
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
_WHILE = 0.03  # seconds until what was sent has been read: a reset would overtake it


@dataclass(frozen=True)
class Fault:
    """One way to answer.

    Attributes:
        script: carries it out.
        of: the requests that it makes sense for.
        is_legal: HTTP and the API allow it: its client has to get the whole answer.
        adds_events: the client may see events beside its tokens.
    """

    script: Script
    of: Literal["streams", "wholes", "all"] = "all"
    is_legal: bool = False
    adds_events: bool = False


def mark_of(call: Call) -> str:
    """The name of the request."""
    return call.headers["x-request-id"]


def wants_stream(call: Call) -> bool:
    """Whether the request asks for a stream; its body may be no JSON."""
    return b'"stream": true' in call.body


def token_events(mark: str) -> list[bytes]:
    return [_event(text(f"{mark}.{number} ")) for number in range(TOKENS)]


def last_events(call: Call) -> list[bytes]:
    asked = b'"include_usage": true' in call.body or b'"include_usage":true' in call.body
    return [_event({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})] + (
        [_event({"id": "c", **usage(7, TOKENS)})] if asked else []
    )


def stream_body(call: Call) -> bytes:
    return b"".join([*token_events(mark_of(call)), *last_events(call), DONE])


def whole_body(mark: str) -> bytes:
    words = "".join(f"{mark}.{number} " for number in range(TOKENS))
    choice = {"index": 0, "text": words, "finish_reason": "stop"}
    return json.dumps({"id": "c", "object": "text_completion", **usage(7, TOKENS), "choices": [choice]}).encode()


def whole_answer(body: bytes, extra: str = "") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{extra}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def right_answer(call: Call) -> bytes:
    """The whole answer, in bytes."""
    if not wants_stream(call):
        return whole_answer(whole_body(mark_of(call)))
    return _STREAM_HEAD + _CHUNKED + _chunk(stream_body(call)) + END


async def good(call: Call) -> None:
    """The right answer, a stream token by token."""
    if not wants_stream(call):
        await call.send(right_answer(call))
        return
    await call.send(_STREAM_HEAD + _CHUNKED)
    for event in [*token_events(mark_of(call)), *last_events(call), DONE]:
        await call.send(_chunk(event))
        await asyncio.sleep(0)
    await call.send(END)


async def _slowly(call: Call) -> None:
    """The right answer, a part every 10 ms."""
    answer = right_answer(call)
    for at in range(0, len(answer), 200):
        await asyncio.sleep(0.01)
        await call.send(answer[at : at + 200])


def _event(content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _begins(call: Call, tokens: int = 3, head: bytes = _STREAM_HEAD + _CHUNKED) -> None:
    """A stream's head and its first tokens, read by the time it returns."""
    await call.send(head)
    for event in token_events(mark_of(call))[:tokens]:
        await call.send(_chunk(event))
    await asyncio.sleep(_WHILE)


def _sends(data: bytes) -> Script:
    """These bytes, and the end of the connection."""

    async def script(call: Call) -> None:
        await call.send(data)
        await asyncio.sleep(_WHILE)
        call.writer.close()

    return script


def _answers(status: int, more: str = "") -> Script:
    body = json.dumps({"error": {"message": "it failed", "type": "server_error", "code": status}}).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{more}content-length: {len(body)}\r\n\r\n"

    async def script(call: Call) -> None:
        await call.send(head.encode() + body)

    return script


def _begins_then(then: bytes) -> Script:
    """Some tokens, then these bytes and the end of the connection."""

    async def script(call: Call) -> None:
        await _begins(call)
        await call.send(then)
        await asyncio.sleep(_WHILE)
        call.writer.close()

    return script


def _floods(first: bytes, again: bytes, times: int, *, begins: bool = False) -> Script:
    """The same bytes over and over, more than a gateway should keep, then silence."""

    async def script(call: Call) -> None:
        if begins:
            await _begins(call)
        await call.send(first)
        for _ in range(times):
            await call.send(again)
            await asyncio.sleep(0)
        await call.left.wait()

    return script


def _ends(*events: bytes) -> Script:
    """A stream that breaks off between two tokens, and is then ended as a whole one is, with these events before."""

    async def script(call: Call) -> None:
        await _begins(call)
        await call.send(b"".join(_chunk(event) for event in events) + END)

    return script


def _among(event: bytes) -> Script:
    """The right stream with one event more."""

    async def script(call: Call) -> None:
        events = token_events(mark_of(call))
        await call.send(_STREAM_HEAD + _CHUNKED)
        for one in [*events[:4], event, *events[4:], *last_events(call), DONE]:
            await call.send(_chunk(one))
        await call.send(END)

    return script


async def _closes(call: Call) -> None:
    call.writer.close()


async def _closes_late(call: Call) -> None:
    await asyncio.sleep(0.2)
    call.writer.close()


async def _ends_and_closes(call: Call) -> None:
    """The right answer, then the connection's end, of which its head said nothing."""
    await good(call)
    call.writer.close()


async def _resets_mid_stream(call: Call) -> None:
    await _begins(call)
    call.writer.transport.abort()


async def _falls_silent(call: Call) -> None:
    await _begins(call)
    await call.left.wait()


async def _until_closed(call: Call) -> None:
    """No length: the end of the connection is the end of the answer, as HTTP/1.0 servers do it."""
    body, kind = (stream_body(call), b"text/event-stream") if wants_stream(call) else (whole_body(mark_of(call)), b"")
    kind = kind or b"application/json"
    await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nconnection: close\r\n\r\n%b" % (kind, body))
    call.writer.close()


async def _until_closed_too_early(call: Call) -> None:
    is_stream = wants_stream(call)
    body = b"".join(token_events(mark_of(call))[:3]) if is_stream else whole_body(mark_of(call))[:-30]
    kind = b"text/event-stream" if is_stream else b"application/json"
    await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nconnection: close\r\n\r\n%b" % (kind, body))
    await asyncio.sleep(_WHILE)
    call.writer.close()


async def _shorter_than_its_length(call: Call) -> None:
    await call.send(whole_answer(whole_body(mark_of(call)))[:-30])
    await asyncio.sleep(_WHILE)
    call.writer.close()


def _right_then(more: bytes) -> Script:
    """The right answer, and more bytes in the same packet."""

    async def script(call: Call) -> None:
        await call.send(right_answer(call) + more)

    return script


async def _twice_apart(call: Call) -> None:
    await call.send(right_answer(call))
    await call.send(whole_answer(whole_body(_OTHER)))


async def _interim(call: Call) -> None:
    await call.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
    await good(call)


async def _drips(call: Call) -> None:
    answer = right_answer(call)
    for at in range(0, len(answer), 7):
        await call.send(answer[at : at + 7])
        await asyncio.sleep(0)


async def _byte_chunks(call: Call) -> None:
    head = _STREAM_HEAD if wants_stream(call) else b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    body = stream_body(call) if wants_stream(call) else whole_body(mark_of(call))
    await call.send(head + _CHUNKED + b"".join(_chunk(body[at : at + 1]) for at in range(len(body))) + END)


async def _at_once(call: Call) -> None:
    await call.send(right_answer(call))


async def _says_it_closes(call: Call) -> None:
    await call.send(right_answer(call).replace(b"OK\r\n", b"OK\r\nconnection: close\r\n", 1))
    call.writer.close()


async def _trailers(call: Call) -> None:
    await call.send(right_answer(call).removesuffix(b"\r\n") + b"x-checksum: 1\r\nx-other: 2\r\n\r\n")


async def _chunk_extensions(call: Call) -> None:
    body = stream_body(call)
    await call.send(_STREAM_HEAD + _CHUNKED + b'%x;a=b;c="d"\r\n%b\r\n' % (len(body), body) + END)


async def _in_capitals(call: Call) -> None:
    head, _, body = right_answer(call).partition(b"\r\n\r\n")
    await call.send(head.upper().replace(b"OK", b"ok") + b"\r\n\r\n" + body)


async def _without_type(call: Call) -> None:
    await call.send(right_answer(call).replace(b"content-type: application/json\r\n", b""))


async def _as_http_1_0(call: Call) -> None:
    """No length and no word about the connection, which ends after the answer as it did then."""
    is_stream = wants_stream(call)
    kind = b"text/event-stream" if is_stream else b"application/json"
    body = stream_body(call) if is_stream else whole_body(mark_of(call))
    await call.send(b"HTTP/1.0 200 OK\r\ncontent-type: %b\r\n\r\n%b" % (kind, body))
    call.writer.close()


async def _line_ends(call: Call) -> None:
    """Events that end with CR LF, as the standard allows."""
    body = stream_body(call).replace(b"\n", b"\r\n")
    await call.send(_STREAM_HEAD + _CHUNKED + _chunk(body) + END)


async def _zipped(call: Call) -> None:
    await call.send(whole_answer(gzip.compress(whole_body(mark_of(call))), "content-encoding: gzip\r\n"))


_HUGE = b"9" * 400
_PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
_LENGTH = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
_ERROR = _event({"error": {"message": "CUDA error", "type": "server_error", "code": 500}})

FAULTS: dict[str, Fault] = {
    # Before the first byte
    "resets": Fault(dies_at_once),
    "closes": Fault(_closes),
    "closes after 0.2 s": Fault(_closes_late),
    "hangs": Fault(hangs),
    "answers 500": Fault(_answers(500)),
    "answers 503": Fault(_answers(503, "retry-after: 1\r\n")),
    "answers 429": Fault(_answers(429)),
    "answers 400": Fault(_answers(400)),
    "answers 204": Fault(_sends(b"HTTP/1.1 204 No Content\r\n\r\n")),
    "answers 304": Fault(_sends(b"HTTP/1.1 304 Not Modified\r\n\r\n")),
    "speaks no HTTP": Fault(_sends(b"SSH-2.0-OpenSSH_9.2\r\n")),
    "switches protocols": Fault(_sends(b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")),
    "status 000": Fault(_sends(b"HTTP/1.1 000 X\r\ncontent-length: 2\r\n\r\n{}")),
    "two lengths": Fault(_sends(_LENGTH + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ")),
    "a length of 400 digits": Fault(_sends(_LENGTH + b"content-length: " + _HUGE + b"\r\n\r\n{}")),
    "a length and chunks": Fault(_sends(_LENGTH + b"content-length: 2\r\n" + _CHUNKED + b"2\r\n{}\r\n" + END)),
    "a chunk beyond all sizes": Fault(_sends(_STREAM_HEAD + _CHUNKED + b"f" * 17 + b"\r\nx"), of="streams"),
    "an interim answer with a body": Fault(
        _sends(b"HTTP/1.1 103 X\r\n" + _CHUNKED + b"5\r\nhello\r\n" + END + _LENGTH + b"content-length: 2\r\n\r\n{}")
    ),
    "answers 401": Fault(_answers(401)),
    "redirects": Fault(_answers(307, "location: http://127.0.0.1:9/v1/elsewhere\r\n")),
    "204 with a body": Fault(_sends(b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello")),
    "status 999": Fault(_sends(b"HTTP/1.1 999 X\r\ncontent-length: 2\r\n\r\n{}")),
    "an odd status line": Fault(_sends(b"http/1.1 200 ok\r\ncontent-length: 2\r\n\r\n{}")),
    "lines that end with LF": Fault(_sends(b"HTTP/1.1 200 OK\ncontent-length: 2\n\n{}")),
    "a negative length": Fault(_sends(_LENGTH + b"content-length: -2\r\n\r\n{}")),
    "a NUL in a header": Fault(_sends(_LENGTH + b"x: a\0b\r\ncontent-length: 2\r\n\r\n{}")),
    "a header of two lines": Fault(_sends(_LENGTH + b"x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}")),
    "ten thousand headers": Fault(_sends(_LENGTH + b"a:b\r\n" * 30_000 + b"content-length: 2\r\n\r\n{}")),
    "head without end": Fault(_floods(_LENGTH, b"a: " + b"b" * 1_000 + b"\r\n", 2_000)),
    "interim answers without end": Fault(_floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 200)),
    # After it
    "resets mid-stream": Fault(_resets_mid_stream, of="streams"),
    "closes mid-stream": Fault(_begins_then(b""), of="streams"),
    "breaks its framing": Fault(_begins_then(b"zz\r\nnot a chunk\r\n"), of="streams"),
    "closes in the middle of a chunk": Fault(_begins_then(b"100\r\nhalf of it"), of="streams"),
    "a chunk's extension without end": Fault(_floods(b"5;", b"a" * 1_000, 500, begins=True), of="streams"),
    "ends in the middle of an event": Fault(_ends(b'data: {"id":"c","cho'), of="streams"),
    "falls silent": Fault(_falls_silent, of="streams"),
    "ends without [DONE]": Fault(_ends(), of="streams"),
    "ends with an error event": Fault(_ends(_ERROR), of="streams"),
    "error event, then [DONE]": Fault(_ends(_ERROR, DONE), of="streams"),
    "error event, then more tokens": Fault(_among(_ERROR), of="streams"),
    "closes an answer without length early": Fault(_until_closed_too_early),
    "shorter than its length": Fault(_shorter_than_its_length, of="wholes"),
    "trailers without end": Fault(_floods(b"0\r\n", b"a: b\r\n" * 200, 500, begins=True), of="streams"),
    # A right answer and something more
    "longer than its length": Fault(_right_then(b"more than was promised"), is_legal=True),
    "answers twice": Fault(_right_then(whole_answer(whole_body(_OTHER))), is_legal=True),
    "answers twice, apart": Fault(_twice_apart, is_legal=True),
    "answers, then switches protocols": Fault(
        _right_then(b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nx"), is_legal=True
    ),
    "an event that is no UTF-8": Fault(_among(b"data: \xff\xfe\n\n"), "streams", is_legal=True, adds_events=True),
    "an event that is no JSON": Fault(_among(b"data: {no\n\n"), "streams", is_legal=True, adds_events=True),
    "an event of 1.2 MB": Fault(_among(b": " + b"x" * 1_200_000 + b"\n\n"), "streams", is_legal=True, adds_events=True),
    "usage of 400 digits": Fault(
        _among(b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":' + _HUGE + b"}}\n\n"),
        "streams",
        is_legal=True,
        adds_events=True,
    ),
    "usage that is negative": Fault(
        _among(_event({"choices": [], "usage": {"prompt_tokens": -5, "completion_tokens": -9}})),
        "streams",
        is_legal=True,
        adds_events=True,
    ),
    "usage that is no number": Fault(
        _among(_event({"choices": [], "usage": "many"})), "streams", is_legal=True, adds_events=True
    ),
    "a crowd of usages in one packet": Fault(
        _among(_event({"choices": [{"index": 0, "text": ""}], "usage": None}) * 3_000),
        "streams",
        is_legal=True,
        adds_events=True,
    ),
    "fields of events that few send": Fault(
        _among(b": ping\n\nretry: 10\n\nid: 7\nevent: ping\ndata: {}\n\n"), "streams", is_legal=True, adds_events=True
    ),
    # Odd, and right
    "closes a connection that it promised to keep": Fault(_ends_and_closes, is_legal=True),
    "no length, until closed": Fault(_until_closed, is_legal=True),
    "says that it closes": Fault(_says_it_closes, is_legal=True),
    "interim answers": Fault(_interim, is_legal=True),
    "slowly": Fault(_slowly, is_legal=True),
    "seven bytes at a time": Fault(_drips, is_legal=True),
    "a chunk for each byte": Fault(_byte_chunks, is_legal=True),
    "all in one packet": Fault(_at_once, is_legal=True),
    "chunks with extensions": Fault(_chunk_extensions, "streams", is_legal=True),
    "names in capitals": Fault(_in_capitals, is_legal=True),
    "no content type": Fault(_without_type, "wholes", is_legal=True),
    "HTTP/1.0": Fault(_as_http_1_0, is_legal=True),
    "trailers": Fault(_trailers, "streams", is_legal=True),
    "events ended by CR LF": Fault(_line_ends, "streams", is_legal=True),
    "zipped without being asked": Fault(_zipped, "wholes", is_legal=True),
}

_FIGURES = b"vllm:num_requests_waiting 1e400\nvllm:kv_cache_usage_perc NaN\n\xff\n" + b"sglang:x{" * 999
_LABELS = b"".join(b'vllm:num_requests_running{x="%d"} 0\n' % number for number in range(20_000))
_ODD = b'{"data":[5,{"id":null},{"id":"m"},{"id":"m","object":[]},{"no":"id"}]}'
BESIDE: dict[str, dict[str, Script]] = {
    "metrics break off": {"/metrics": _sends(_PLAIN + b"content-length: 99\r\n\r\nvllm:num_requests_waiting 1\n")},
    "metrics are no HTTP": {"/metrics": _sends(b"SSH-2.0-OpenSSH_9.2\r\n")},
    "metrics reset": {"/metrics": dies_at_once},
    "metrics answer 500": {"/metrics": _answers(500)},
    "metrics without sense": {"/metrics": _sends(_PLAIN + b"connection: close\r\n\r\n" + _FIGURES)},
    "metrics hang": {"/metrics": hangs},
    "metrics without end": {"/metrics": _floods(_PLAIN + _CHUNKED, b"400\r\n" + b"# x\n" * 256 + b"\r\n", 9_000)},
    "metrics of many labels": {"/metrics": _sends(_PLAIN + b"connection: close\r\n\r\n" + _LABELS)},
    "models answer 500": {"/v1/models": _answers(500)},
    "models are no JSON": {"/v1/models": _sends(_LENGTH + b"content-length: 9\r\n\r\n<html>no<")},
    "models without sense": {"/v1/models": _sends(_LENGTH + b"content-length: %d\r\n\r\n%b" % (len(_ODD), _ODD))},
    "metrics are elsewhere": {"/metrics": _answers(302, "location: /there\r\n")},
}
"""Ways in which a replica misbehaves beside its API: path -> script. Its requests must all be answered rightly."""


def fitting(name: str, call: Call) -> bool:
    """Whether the fault makes sense for this request."""
    return FAULTS[name].of in ("all", "streams" if wants_stream(call) else "wholes")
