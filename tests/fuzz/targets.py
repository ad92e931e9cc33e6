"""What is fuzzed: one function per reader of foreign bytes, which raises where a law of that reader is broken.

Each target also reads its bytes a second time, cut into other pieces: how TCP cuts them must never matter.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import gettempdir

import msgspec

from headway.domain import engine_hints
from headway.gateway.epp.http2_calls import Http2Limits
from headway.gateway.epp.http2_frames import DATA, END_STREAM, HEADERS, RST_STREAM, WINDOW_UPDATE, frame
from headway.gateway.openai.answer_readers import JsonReader, StreamReader
from headway.gateway.openai.client_hints import read_hints
from headway.gateway.openai.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, UNLISTED
from headway.gateway.openai.large_body import LargeBody, written_in_parts
from headway.gateway.openai.prompt_count import PromptCount
from headway.gateway.openai.request_body import (
    extra_arguments,
    read_body,
    why_unreadable,
    with_fields,
    with_usage_asked,
)
from headway.gateway.openai.token_ratio import TokenRatio
from headway.gateway.openai.withheld_hints import withhold
from headway.gateway.replicas.engine_figures import read_metrics
from headway.gateway.replicas.load_report import LoadReport, read_load_header
from headway.gateway.settings import HINTS, TenantSettings
from headway.gateway.settings_file import read_settings
from headway.gateway.wire.client_connection import ClientConnection
from headway.gateway.wire.limits import WireLimits
from headway.gateway.wire.messages import Headers, HttpRequest, Response
from headway.gateway.wire.upstream_connection import UpstreamConnection
from tests.support.fake_transport import FakeTransport
from tests.support.http2_client import HEADS, Http2Client, frames_of

Target = Callable[[bytes], None]
NUMBER_MAX = 2**53
"""No count that comes from outside may get above it: what is computed from it must be exact in a float."""
LIMITS = WireLimits(head_bytes=2_048, headers=30, body_bytes=4_096)
NO_HINT = TenantSettings(name="t", may=())
EVERY_HINT = TenantSettings(name="t", may=HINTS, priority_min=-100)


def pieces(data: bytes, seed: int) -> list[bytes]:
    """The same bytes in other packets; with seed 0 as they are."""
    if not seed or len(data) < 2:
        return [data]
    if seed == 1 and len(data) <= 400:
        return [data[at : at + 1] for at in range(len(data))]
    draw = Random(zlib.crc32(data) + seed)
    cuts = sorted({0, len(data), *(draw.randrange(len(data)) for _ in range(draw.randint(1, 6)))})
    return [data[start:stop] for start, stop in pairwise(cuts)]


# A client's bytes


class _Later:
    """An answer that comes after the next packet, in chunks."""

    def __init__(self, client: ClientConnection) -> None:
        self.client = client
        self.left = False

    def client_left(self) -> None:
        assert not self.left, "told twice that the client left"
        self.left = True

    def client_full(self) -> None: ...

    def client_ready(self) -> None: ...

    def come(self) -> None:
        self.client.start(200, [(b"content-type", b"text/plain")], None)
        self.client.write(b"ok")
        self.client.finish()


class _Answering:
    """Answers each second request at once and the others later; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes, Headers, bytes, bool]] = []
        self.refused_with: list[int] = []
        self.later: _Later | None = None

    def bad_request(self, status: int, message: str, headers: Headers) -> Response:
        return Response(status, message.encode())

    def refuse_head(self, request: HttpRequest) -> Response | None:
        return Response(401, b"no") if request.header(b"authorization") == b"wrong" else None

    def shaped(self, response: Response, path: str) -> Response:
        return response

    def takes_body(self, request: HttpRequest) -> bool:
        return True

    def refused(self, response: Response, address: str) -> None:
        self.refused_with.append(response.status)

    def answer(self, request: HttpRequest, client: ClientConnection) -> _Later | None:
        assert self.later is None, "two requests of one connection at once"
        assert len(request.body) <= LIMITS.body_bytes
        assert len(request.headers) <= LIMITS.headers
        assert not re.search(rb"[\0-\x20\x7f]", request.target), request.target
        self.asked.append((request.method, request.target, list(request.headers), request.body, request.keep_alive))
        if len(self.asked) % 2 or request.method == b"HEAD":
            client.respond(Response(200, b"{}"))
            return None
        self.later = _Later(client)
        return self.later

    def tick(self) -> None:
        later, self.later = self.later, None
        if later is not None and not later.left:
            later.come()


_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*")


def statuses(written: bytes, methods: list[bytes]) -> list[int]:
    """Statuses of the answers in a row to these requests; raises AssertionError where they are not well-formed."""
    came: list[int] = []
    while written:
        head, mark, written = written.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        line = _STATUS_LINE.fullmatch(lines[0])
        assert line, head
        assert mark, head
        if int(line[1]) < 200:
            continue
        came.append(int(line[1]))
        named = dict(one.lower().split(b": ", 1) for one in lines[1:])
        if methods[len(came) - 1 : len(came)] == [b"HEAD"]:
            continue
        if b"content-length" in named:
            written = written[int(named[b"content-length"]) :]
        elif named.get(b"transfer-encoding") == b"chunked":
            assert written.startswith(b"2\r\nok\r\n0\r\n\r\n"), written
            written = written[12:]
        else:
            return came  # to an HTTP/1.0 client: it ends with the connection
    return came


async def _ask(packets: list[bytes]) -> _Answering:
    site, transport, opened = _Answering(), FakeTransport(), set[ClientConnection]()
    client = ClientConnection(site, LIMITS, opened, lambda: 0.0)
    client.connection_made(transport)
    for packet in packets:
        if transport.closed:
            break
        client.data_received(packet)
        site.tick()
        await asyncio.sleep(0)  # a turn of the loop, in which it goes on with what was sent ahead
    for _ in range(1_000):  # what was pipelined is answered one by one
        asked = len(site.asked)
        site.tick()
        await asyncio.sleep(0)
        if transport.closed or (site.later is None and len(site.asked) == asked):
            break
    if not transport.closed and client.eof_received() is False:
        transport.closed = True
    client.connection_lost(None)
    assert not opened
    came = statuses(bytes(transport.written), [method for method, *_ in site.asked])
    assert len(came) == len(site.asked) + len(site.refused_with) - (site.later is not None), came
    assert all(status < 500 or status in (501, 505) for status in came)
    return site


def client_bytes(data: bytes) -> None:
    """Every request is answered once or refused with a sentence, however its bytes are cut."""
    first = asyncio.run(_ask(pieces(data, 0)))
    for seed in (1, 2):
        other = asyncio.run(_ask(pieces(data, seed)))
        # A limit is judged packet by packet: what is a few bytes above it passes in one cut, and is refused in another.
        at_limit = bool({413, 431} & {*first.refused_with, *other.refused_with})
        both = min(len(first.asked), len(other.asked)) if at_limit else None
        assert other.asked[:both] == first.asked[:both], f"cut {seed} makes other requests"
        if len(data) <= LIMITS.head_bytes:
            assert len(other.refused_with) == len(first.refused_with), f"cut {seed} is refused otherwise"


# A replica's bytes


class _Taking:
    """Takes one answer, and holds it to its order: a head, a body, one end."""

    def __init__(self) -> None:
        self.head: tuple[int, Headers, int | None] | None = None
        self.body = bytearray()
        self.ended = ""

    def upstream_head(self, status: int, headers: Headers, length: int | None, more: bool) -> None:
        assert self.head is None
        assert not self.ended
        assert 200 <= status <= 599
        assert length is None or length >= 0
        self.head = (status, list(headers), length)

    def upstream_data(self, body: bytes) -> None:
        assert self.head is not None
        assert not self.ended
        self.body += body

    def upstream_end(self, body: bytes) -> None:
        assert self.head is not None
        assert not self.ended
        self.body += body
        self.ended = "whole"

    def upstream_failed(self, why: str) -> None:
        assert not self.ended
        assert why
        self.ended = "failed"


def _answer(packets: list[bytes]) -> _Taking:
    sink, transport = _Taking(), FakeTransport()
    free: list[object] = []
    lost: list[object] = []
    connection = UpstreamConnection(free.append, lost.append, 65_536)
    connection.connection_made(transport)
    connection.send(b"GET / HTTP/1.1\r\n\r\n", sink)
    for packet in packets:
        if transport.closed:
            break
        connection.data_received(packet)
    connection.connection_lost(None)
    assert len(lost) == 1
    assert len(free) <= 1
    assert sink.ended, "an answer without an end"
    if sink.head is not None and sink.head[2] is not None:
        short = len(sink.body) < sink.head[2]
        assert len(sink.body) <= sink.head[2]
        assert not short or sink.ended == "failed"
    return sink


def replica_bytes(data: bytes) -> None:
    """An answer ends once, whole or failed, and is the same however its bytes are cut."""
    first = _answer(pieces(data, 0))
    for seed in (1, 2):
        other = _answer(pieces(data, seed))
        assert other.ended == first.ended, f"cut {seed}: {other.ended}, not {first.ended}"
        if first.ended == "whole":
            assert (other.head, other.body) == (first.head, first.body), f"cut {seed} is another answer"


# The frames of Envoy


async def _frames(packets: list[bytes]) -> tuple[list[list[bytes]], bytes, bool]:
    client = Http2Client(Http2Limits(10, 20, 15.0, 60.0))
    for packet in packets:
        client.send(packet)
        while not client.transport.reads and not client.transport.closed:
            await asyncio.sleep(0)  # it goes on at its next turn
    client.connection.sweep(1.0)
    await asyncio.sleep(0)
    closed = client.transport.closed
    client.connection.connection_lost(None)
    while client.opened:
        await asyncio.sleep(0)
    assert client.held_bytes == 0
    assert all(call.over_times == 1 for call in client.calls)
    written = bytes(client.transport.written)
    ended: set[int] = set()
    for one in frames_of(written):
        assert one.stream not in ended or one.kind in (RST_STREAM, WINDOW_UPDATE), "sent after the end of a stream"
        if one.stream and one.flags & END_STREAM and one.kind in (DATA, HEADERS):
            ended.add(one.stream)
    return [call.heard for call in client.calls], written, closed


def _made_frames(data: bytes) -> bytes:
    """Whole frames, made of the bytes: of kind, flags, stream and length one byte each, then the payload.

    Bytes taken as they are seldom make a second frame once one of them is changed.
    """
    made, at = b"", 0
    while at + 4 <= len(data):
        kind, flags, stream, size = data[at : at + 4]
        payload = _PAYLOADS[size % 16] if size >= 240 else data[at + 4 : at + 4 + size]
        at += 4 + (0 if size >= 240 else size)
        made += frame(kind % 11, flags, stream % 12, payload)
    return made


_HEADS = b"".join(b"\x00%c%b%c%b" % (len(name), name, len(value), value) for name, value in HEADS)
_PAYLOADS = [
    *(_HEADS, _HEADS[:20], _HEADS[20:], b"\x40\x01a\x01b", b"\x83\x86\xbe", b"\x00\x0cgrpc-timeout\x021n"),
    *(b"\0\0\0\0\x01m", b"\0\0\0\0\x05he", b"llo", b"\0\0\0\0\x05fails", b"\x01\0\0\0\0", b"\0\x10\0\0\0"),
    *(bytes(4), b"\0\0\xff\xff", b"\0\x04\0\0\0\0", b"\0\x04\0\0\x40\0"),
]


def picker_bytes(data: bytes) -> None:
    """Each call ends once, what it holds is let go, and what is sent does not depend on how the bytes are cut."""
    for sent in (data, _made_frames(data)):
        first = asyncio.run(_frames(pieces(sent, 0)))
        for seed in (1, 2):
            assert asyncio.run(_frames(pieces(sent, seed))) == first, f"cut {seed} is taken otherwise"


# The bodies of requests


def request_body(data: bytes) -> None:
    """A body is read, changed and counted, or refused with a sentence; every number of it is bounded.

    Read in steps, as a large one is, it is the same.
    """
    for endpoint in (CHAT, COMPLETIONS, EMBEDDINGS, UNLISTED):
        body, count = read_body(data, endpoint), PromptCount({}, TokenRatio())
        large = LargeBody(data, endpoint, values_max=1 << 40)
        for _ in large.steps(count):
            pass
        if large.fault is not None and large.fault[0] == 413:
            continue  # a field that is read whole is long, and the data is only called large here
        # Of a text field that is there twice a large body's last one counts, and of a small body no wrong one may be.
        is_repeated = max(data.count(name) for name in (b"model", b"service_tier", b"\\u")) > 1
        assert (large.body is None) == (body is None) or (body is None and is_repeated)
        if body is None or large.body is None:
            why = why_unreadable(data, endpoint)
            assert why
            assert "\n" not in why
            continue
        prompt = count.read(body)
        assert large.prompt == prompt
        _plain(body.output_tokens_max, body.sequences(prompt.prompts), prompt.prompts)
        assert len(prompt.hashes) <= 32
        tokens, _ = count.at_once(body, prompt, len(data))
        assert 1 <= tokens <= max(1, 2 * len(data))
        headers = [
            (b"x-request-priority", data[:40]),
            (b"x-llm-d-slo-ttft-ms", data[-20:]),
            (b"session-id", data[:200]),
        ]
        hints = read_hints(HttpRequest(b"POST", b"/v1/completions", headers, data), body, EVERY_HINT)
        _plain(hints.output_tokens)
        assert -100 <= hints.priority <= 100
        assert hints.deadline_seconds is None or 0 < hints.deadline_seconds < math.inf
        extra_arguments(body)
        withhold(http := HttpRequest(b"POST", b"/v1/completions", headers, data), body, NO_HINT, 0)
        _gives_no_hint(http)
        _same_but(data, with_fields(data, {"priority": 3}), {"priority": 3})
        usage = with_usage_asked(data)
        _same_but(data, with_fields(data, usage), json.loads(msgspec.json.encode(usage)))
        parts = written_in_parts(data, large.body, {"stream_options": {"include_usage": True}})
        _same_but(data, b"".join(parts), json.loads(msgspec.json.encode(usage)))


def _gives_no_hint(http: HttpRequest) -> None:
    """An engine that reads all of it finds no priority, and no hint of ours."""
    try:
        content = json.loads(http.body)
    except (ValueError, RecursionError):
        return  # an engine refuses it too
    assert content.get("priority") in (None, 0)
    given = content.get("vllm_xargs")
    assert not isinstance(given, dict) or not set(engine_hints.NAMES) & set(given)
    assert not any(name == b"x-request-priority" and value != b"0" for name, value in http.headers)


def _plain(*numbers: int | None) -> None:
    for number in numbers:
        assert number is None or -NUMBER_MAX < number < NUMBER_MAX, "a number without bound"


def _same_but(before: bytes, after: bytes, changes: dict[str, object]) -> None:
    try:
        old = json.loads(before)
    except (ValueError, RecursionError):
        return  # an engine refuses it too, in its own words
    if "nan" not in repr(old):
        assert json.loads(after) == {**old, **changes}, "other fields changed too"


# Streams and answers of replicas


_BLANK = re.compile(rb"[\r\n]+")
_EVENT_END = re.compile(rb"(?:\r\n|\n|\r){2}")


def _streamed(packets: Iterable[bytes], *, hide_usage: bool) -> tuple[bytes, StreamReader]:
    reader = StreamReader(hide_usage=hide_usage)
    return b"".join([reader.pass_on(piece) for piece in packets if piece]) + reader.rest(), reader


def stream(data: bytes) -> None:
    """What a client sees of a stream, and whether it is whole, does not depend on its packets."""
    passed, shown = _streamed([data], hide_usage=False)
    assert passed == data
    hidden, first = _streamed([data], hide_usage=True)
    fault = first.fault(CHAT.stream_end)
    for seed in (1, 2):
        other, reader = _streamed(pieces(data, seed), hide_usage=True)
        assert _BLANK.sub(b"", other) == _BLANK.sub(b"", hidden), f"cut {seed} shows other bytes"
        assert reader.usage == first.usage == shown.usage, f"cut {seed} reads another usage"
        if len(_EVENT_END.findall(data)) < 4:  # more events may push an error or an end out of what is remembered
            assert reader.fault(CHAT.stream_end) == fault, f"cut {seed} ends otherwise"
    assert first.events >= 0
    whole = JsonReader()
    assert whole.pass_on(data) + whole.rest() == data
    for usage in (first.usage, whole.usage):
        if usage is not None:
            _plain(*usage)
            assert min(usage) >= 0


def replica_figures(data: bytes) -> None:
    """Metrics and load headers give finite figures, or none."""
    for report in (read_metrics(data.decode("utf-8", "replace")), read_load_header(data)):
        if isinstance(report, LoadReport):
            _plain(report.waiting, report.running, report.kv_tokens_max)
            assert report.kv_share is None or 0 <= report.kv_share < math.inf


# The configuration

_FILE = Path(gettempdir()) / "headway-fuzz.toml"


def configuration(data: bytes) -> None:
    """A file is read, or refused with one sentence."""
    _FILE.write_bytes(data)
    try:
        read_settings(_FILE)
    except ValueError as error:
        sentence = str(error)
        assert re.fullmatch(".+", sentence), sentence


TARGETS: dict[str, Target] = {
    target.__name__.replace("_", "-"): target
    for target in (client_bytes, replica_bytes, picker_bytes, request_body, stream, replica_figures, configuration)
}
