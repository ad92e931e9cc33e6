"""Raw bytes against a live gateway: never a 5xx of ours for bad input, never a crash, and good clients are served on.

Whole batches of connections at once, for a request that never ends is answered only when its time is up.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headway.gateway.wire.limits import WireLimits
from headway.testing.examples import examples
from tests.support.gateway_setup import RawClient, completion, post
from tests.support.threaded_gateway import LiveGateway

LIMITS = WireLimits(
    head_bytes=4_096,
    headers=40,
    body_bytes=20_000,
    head_seconds=0.3,
    body_seconds=0.3,
    idle_seconds=0.3,
    linger_seconds=0.2,
    stalled_seconds=0.5,
)
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z \-']*\Z")
HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+: [^\r\n\0]*\Z")
MOST_SECONDS = 60.0  # by far enough for every deadline above, on any machine


@pytest.fixture(scope="module")
def live() -> Iterator[LiveGateway]:
    with LiveGateway(LIMITS) as gateway:
        yield gateway


# What is sent

LINES = [
    b"POST /v1/completions HTTP/1.1",
    b"POST /v1/chat/completions HTTP/1.1",
    b"GET /v1/models HTTP/1.1",
    b"GET /health HTTP/1.0",
    b"OPTIONS * HTTP/1.1",
    b"DELETE /v1/files/x HTTP/1.1",
    b"POST /v1/completions HTTP/1.0",
    b"GET /headway/why?id=%00%ff HTTP/1.1",
    b"BREW /v1/coffee HTTP/1.1",
    b"GET /v1/../../etc/passwd HTTP/1.1",
    b"POST /v1/completions HTTP/9.9",
    b"POST  /v1/completions  HTTP/1.1",
    b"GET",
    b"",
]
HEADERS = [
    b"host: x",
    b"Host: x",
    b"host : x",
    b"content-length: 0",
    b"content-length: 5",
    b"content-length: 00005",
    b"content-length: 5, 5",
    b"content-length: +5",
    b"content-length: 99999999999999999999",
    b"content-length:",
    b"transfer-encoding: chunked",
    b"Transfer-Encoding:\tchunked",
    b"transfer-encoding: gzip, chunked",
    b"transfer-encoding: chunked, chunked",
    b"transfer-encoding: \x0bchunked",
    b"connection: close",
    b"connection: keep-alive, transfer-encoding",
    b"connection: upgrade\r\nupgrade: websocket",
    b"expect: 100-continue",
    b"x-request-id: " + b"i" * 300,
    b"x-session-id: \xff\xfe",
    b"x-llm-d-slo-ttft-ms: -1e999",
    b"x-request-priority: 99999999999999999999999",
    b"x-headway-output-tokens: NaN",
    b"authorization: Bearer \x80",
    b" folded: yes",
    b"\tfolded",
    b"long: " + b"x" * 5_000,
    b"no colon here",
    b": no name",
    b"nul: \x00",
]
BODIES = [
    b"",
    b"hello",
    b'{"model":"m","prompt":"x","stream":true}',
    b'{"model":"m","prompt":"x","stream":"yes"}',
    b'{"model":' * 500,
    b"[" * 5_000,
    b'{"model":"m","prompt":"\\ud800","max_tokens":-1}',
    b'{"model":"m","max_tokens":1e400,"n":99999999999999999999}',
    b"\x00" * 100,
    b"x" * 30_000,
    b"5\r\nhello\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b'5;ext="a\r\nb"\r\nhello\r\n0\r\n\r\n',
    b"ffffffffffffffff\r\nhello\r\n",
    b"5\nhello\n0\n\n",
    b"5\r\nhelloXX0\r\n\r\n",
    b"0\r\ntrailer: x\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
]
ENDS = [b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n"]


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Something like a request: parts that are right in most places and wrong in some."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    if draw(st.integers(0, 4)) == 0:
        return post(completion(prompt="good"))
    end = draw(st.sampled_from(ENDS))
    lines = [draw(st.sampled_from(LINES)), *draw(st.lists(st.sampled_from(HEADERS), max_size=6))]
    if draw(st.integers(0, 3)):
        lines.insert(1, b"host: x")
    body = draw(st.sampled_from(BODIES))
    if draw(st.booleans()):
        lines.append(b"content-length: %d" % len(body))
    return end.join(lines) + 2 * end + body


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[int], str]:
    """(bytes, where they are cut into packets, what the client does at the end)."""
    data = b"".join(draw(st.lists(messages(), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=4)) + data[at + draw(st.integers(0, 4)) :]
    cuts = draw(st.lists(st.integers(0, max(1, len(data))), max_size=3))
    return data, cuts, draw(st.sampled_from(["waits", "waits", "half-closes", "leaves"]))


# What has to come back


async def talks(port: int, conversation: tuple[bytes, list[int], str]) -> bytes | None:
    """Send it and read until the gateway closes; None where the client did not stay for the end."""
    data, cuts, ending = conversation
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    places = [0, *sorted(cuts), len(data)]
    try:
        for start, stop in pairwise(places):
            writer.write(data[start:stop])
            await asyncio.sleep(0)
        if ending == "half-closes":
            writer.write_eof()
        if ending == "leaves":
            return None
        async with asyncio.timeout(MOST_SECONDS):
            return await reader.read()
    except ConnectionError:
        return None  # it was cut off while it still sent
    finally:
        writer.transport.abort()


def check_answers(came: bytes) -> None:
    """Well-formed answers, one after the other, none of them a fault of ours; the last may be cut off."""
    while came:
        head, mark, came = came.partition(b"\r\n\r\n")
        if not mark:
            return
        first, *headers = head.split(b"\r\n")
        found = STATUS.match(first)
        assert found, first
        status = int(found[1])
        if status == 100:
            continue
        assert status < 500 or status == 505, head
        assert all(HEADER.match(line) for line in headers), head
        named = dict(line.split(b": ", 1) for line in headers)
        assert (b"content-length" in named) + (b"transfer-encoding" in named) <= 1, head
        if b"content-length" in named:
            came = came[int(named[b"content-length"]) :]
        elif b"transfer-encoding" in named:
            end = came.find(b"0\r\n\r\n")
            came = came[end + 5 :] if end >= 0 else b""
        else:
            assert named[b"connection"] == b"close"
            return
        assert status < 400 or status == 404 or named.get(b"connection") != b"close" or not came, head


async def batch(port: int, conversations_: list[tuple[bytes, list[int], str]]) -> None:
    for came in await asyncio.gather(*(talks(port, one) for one in conversations_)):
        if came is not None:
            check_answers(came)
    async with RawClient(port) as client:
        await client.send(post(completion()))
        assert (await client.answer()).texts == "t0 t1 "


@settings(max_examples=examples(20), suppress_health_check=list(HealthCheck))
@given(st.lists(conversations(), min_size=20, max_size=60))
def test_whatever_is_sent_is_answered_or_closed_and_the_next_is_served(
    live: LiveGateway, sent: list[tuple[bytes, list[int], str]]
) -> None:
    asyncio.run(batch(live.port, sent))
    assert not live.inside(lambda: list(live.troubles))
    counts = live.gateway.dispatcher.counts
    assert live.inside(counts.is_conserved)
    for call in live.inside(lambda: list(live.replica.calls)):
        assert call.path.startswith("/v1/")
        assert not {"transfer-encoding", "te", "expect", "upgrade"} & set(call.headers)
    live.inside(live.replica.calls.clear)
