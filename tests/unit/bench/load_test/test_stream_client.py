"""The client of `headway load` and `headway calibrate`: answers however they are cut, and each way to have none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from headway.bench.load_test.completion_stream import StreamFault
from headway.bench.load_test.stream_client import Served, StreamClient
from headway.bench.user_mistake import UserMistake

HEAD = b"HTTP/1.1 200 OK\r\n"
EVENTS = (
    b'data: {"choices":[{"text":"a"}]}\n\n'
    b': a comment\n\ndata: {"choices":[{"text":"b"}]}\r\n\r\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
TOKEN = b'data: {"choices":[{"text":"a"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
WHOLE = CHUNKED + b"%x;x=y\r\n%b\r\n0\r\n\r\n" % (len(EVENTS), EVENTS)
COUNTED = HEAD + b"content-length: %d\r\n\r\n%b" % (len(EVENTS), EVENTS)


def chunks(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)


def refused(status: bytes, headers: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, headers, len(body), body)


class Scripted:
    """Answers each request with the next script: its pieces one by one, then the connection's end or the next."""

    def __init__(self, *scripts: list[bytes], closes: bool) -> None:
        self._scripts = list(scripts)
        self._closes = closes
        self.connections = 0
        self.heads: list[bytes] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self._scripts:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                for piece in self._scripts.pop(0):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if self._closes:
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()


def with_client(
    server: Scripted, use: Callable[[StreamClient], Awaitable[object]], kept_seconds: float = 5.0
) -> object:
    async def run() -> object:
        listening = await asyncio.start_server(server.talk, "127.0.0.1", 0)
        async with listening:
            port = listening.sockets[0].getsockname()[1]
            client = StreamClient(f"http://127.0.0.1:{port}/v1", kept_seconds=kept_seconds, key="secret")
            try:
                return await use(client)
            finally:
                client.close()

    return asyncio.run(run())


async def twice(client: StreamClient) -> list[Served]:
    return [await client.complete(b"{}", headers=[("x-session-id", "7")]) for _ in range(2)]


@pytest.mark.parametrize("answer", [WHOLE, COUNTED], ids=["chunked", "counted"])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 10_000])
def test_an_answer_is_read_however_it_is_cut_and_its_connection_is_used_again(answer: bytes, step: int) -> None:
    pieces = [answer[at : at + step] for at in range(0, len(answer), step)]
    server = Scripted(pieces, pieces, closes=False)
    answers = with_client(server, twice)
    assert [(one.prompt_tokens, one.output_tokens) for one in answers] == [(3, 2)] * 2  # type: ignore[attr-defined]
    assert all(one.sent_at < one.first_token_at <= one.last_token_at for one in answers)  # type: ignore[attr-defined]
    assert server.connections == 1
    assert server.heads[0].startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret\r\n" in server.heads[0]
    assert b"x-session-id: 7\r\n" in server.heads[0]


def test_tokens_are_noted_once_for_each_piece_that_holds_some() -> None:
    noted: list[int] = []
    pieces = [HEAD + b"\r\n", EVENTS[:10], EVENTS[10:40], EVENTS[40:]]

    async def slowly(client: StreamClient) -> object:
        return await client.complete(b"{}", on_tokens=lambda: noted.append(1))

    class Slow(Scripted):
        async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.05)
            writer.close()

    answer = with_client(Slow(closes=True), slowly)
    assert answer.last_token_at - answer.first_token_at > 0.03  # type: ignore[attr-defined]
    assert len(noted) == 2


def test_a_request_that_finds_its_kept_connection_closed_is_sent_once_more() -> None:
    server = Scripted([WHOLE], [WHOLE], closes=True)
    assert len(with_client(server, twice)) == 2  # type: ignore[arg-type]
    assert server.connections == 2


def test_without_keeping_each_request_has_a_connection_of_its_own() -> None:
    server = Scripted([WHOLE], [WHOLE], closes=False)
    with_client(server, twice, kept_seconds=0)
    assert server.connections == 2
    assert b"Connection: close\r\n" in server.heads[0]


@pytest.mark.parametrize(
    ("answer", "sentence", "reason"),
    [
        (b"", "failed: it closed the connection before its answer", ""),
        (b"SSH-2.0-x\r\n", "failed: it answered what is not HTTP: b'SSH-2.0-x", ""),
        (b"SSH-2.0-x\r\n\r\n", "failed: its answer is not HTTP/1.1 (SSH-2.0-x)", ""),
        (WHOLE[:-9], "failed: it closed the connection in the middle of its answer", ""),
        (COUNTED[:-9], "failed: it closed the connection in the middle of its answer", ""),
        (CHUNKED + b"zz\r\n", "failed: its answer is not HTTP/1.1 (invalid literal", ""),
        (CHUNKED + b"0\r\n\r\n", "the answer ended without a usage chunk", ""),
        (HEAD + b"\r\n" + b'data: {"usage":{"completion_tokens":1}}\n', "the answer holds no token", ""),
        (HEAD + b'\r\ndata: {"error":{"message":"out of memory"}}\n', "status 200: out of memory", ""),
        (HEAD + b"\r\ndata: {broken\n", "its answer is no completion (JSONDecodeError", ""),
        (HEAD + b'\r\ndata: {"error":"died"}', "status 200: died", ""),  # in a line without its end
        (HEAD + b"\r\n" + TOKEN + USAGE, "the answer stops without finish reason or [DONE]", ""),
        (CHUNKED + chunks(TOKEN + USAGE), "the answer stops without finish reason or [DONE]", ""),
        (HEAD + b"\r\n" + TOKEN.replace(b"}]", b',"finish_reason":"error"}]'), "status 200: the answer ends with", ""),
        (HEAD + b'\r\ndata: {"choices":5}\n', "its answer is no completion (TypeError", ""),
        (HEAD + b"\r\ndata: [1]\n", "its answer is no completion (AttributeError", ""),
        (
            refused(b"429 Too Many Requests", b"X-Headway-Reason: queue-full\r\n", b'{"error":{"message":"full"}}'),
            "status 429: full",
            "queue-full",
        ),
        (refused(b"502 Bad Gateway", b"", b"<html>\n gone"), "status 502: <html> gone", ""),
    ],
)
def test_each_fault_is_a_clause(answer: bytes, sentence: str, reason: str) -> None:
    with pytest.raises(StreamFault) as caught:
        with_client(Scripted([answer], closes=True), lambda client: client.complete(b"{}"))
    assert str(caught.value).startswith(sentence)
    assert caught.value.reason == reason


@pytest.mark.parametrize("end", [b"data: [DONE]", TOKEN.replace(b"}]", b',"finish_reason":"length"}]')])
def test_a_mark_of_its_end_makes_an_answer_whole(end: bytes) -> None:
    server = Scripted([HEAD + b"\r\n" + TOKEN + USAGE + end], closes=True)
    assert with_client(server, lambda client: client.complete(b"{}")).output_tokens == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "is_refusal"),
    [
        (refused(b"429 Too Many Requests", b"", b"{}"), True),
        (refused(b"400 Bad Request", b"", b"{}"), True),
        (refused(b"503 Service Unavailable", b"", b"{}"), True),
        (refused(b"500 Internal Server Error", b"", b"{}"), False),
        (refused(b"504 Gateway Timeout", b"", b"{}"), False),
        (HEAD + b'\r\ndata: {"error":{"message":"full","type":"rate_limit_error"}}\n', True),
        (HEAD + b'\r\ndata: {"error":{"message":"too long","code":400}}\n', True),
        (HEAD + b'\r\ndata: {"error":{"message":"died","type":"server_error","code":500}}\n', False),
        (HEAD + b'\r\ndata: {"error":"died"}\n', False),
        (b"", False),
    ],
)
def test_a_refusal_is_told_from_a_failure(answer: bytes, is_refusal: bool) -> None:
    with pytest.raises(StreamFault) as caught:
        with_client(Scripted([answer], closes=True), lambda client: client.complete(b"{}"))
    assert caught.value.is_refusal is is_refusal


@pytest.mark.slow
def test_a_silence_is_counted_from_the_latest_byte() -> None:
    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in (HEAD + b"\r\n", TOKEN, USAGE, b"data: [DONE]\n\n"):
            await asyncio.sleep(0.7)
            writer.write(piece)
        writer.close()

    async def run() -> Served:
        async with await asyncio.start_server(slowly, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            return await StreamClient(f"http://127.0.0.1:{port}", kept_seconds=0, silence_seconds=2.5).complete(b"{}")

    assert asyncio.run(run()).output_tokens == 2


def test_interim_answers_are_passed_over() -> None:
    server = Scripted(
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + WHOLE], closes=True
    )
    assert with_client(server, lambda client: client.complete(b"{}")).output_tokens == 2  # type: ignore[attr-defined]


def test_models_are_listed_with_their_owners() -> None:
    content = json.dumps({"data": [{"id": "m", "owned_by": "x"}, {"id": "n"}]}).encode()
    server = Scripted([refused(b"200 OK", b"", content)], closes=True)
    assert with_client(server, lambda client: client.models()) == {"m": "x", "n": None}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"data": [1]}', b'{"data": null}', b'{"data": [{}]}'])
def test_what_is_no_list_of_models_is_a_fault(content: bytes) -> None:
    with pytest.raises(StreamFault, match="no list of models"):
        with_client(Scripted([refused(b"200 OK", b"", content)], closes=True), lambda client: client.models())


def test_a_server_that_is_not_there_cannot_be_reached() -> None:
    with pytest.raises(StreamFault, match="it cannot be reached: "):
        asyncio.run(StreamClient("http://127.0.0.1:1", kept_seconds=0).models())


def test_an_address_that_is_none_is_a_mistake() -> None:
    with pytest.raises(UserMistake, match="no address"):
        StreamClient("localhost", kept_seconds=0)
