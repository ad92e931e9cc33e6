"""HTTP/2 as no well-behaved client speaks it: each fault ends what it is about, and each flood has a bound."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from struct import pack

import pytest

pytest.importorskip("hpack", reason="the extra `epp` is not installed")
from headway.gateway.epp import http2_calls, http2_connection
from headway.gateway.epp.grpc_call import MESSAGE_BYTES_MAX, GrpcStatus
from headway.gateway.epp.http2_calls import CALL_WINDOW, CONNECTION_WINDOW, Http2Limits
from headway.gateway.epp.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Http2Error,
    frame,
    reset_frame,
    settings_frame,
    window_frame,
)
from tests.support.http2_client import Frame, Http2Client, message

LIMITS = Http2Limits(connections=10, calls=100, head_seconds=15.0, stalled_seconds=60.0)


@pytest.fixture(autouse=True)
def _long_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for the next turn because the machine is busy."""
    monkeypatch.setattr(http2_connection, "TURN_SECONDS", 60.0)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


def data(stream: int, content: bytes, *, ends: bool = False) -> bytes:
    return frame(DATA, END_STREAM if ends else 0, stream, content)


def goaway_error(frames: list[Frame]) -> int | None:
    return next((int.from_bytes(one.payload[4:8]) for one in frames if one.kind == GOAWAY), None)


def reset_errors(frames: list[Frame]) -> dict[int, int]:
    return {one.stream: int.from_bytes(one.payload) for one in frames if one.kind == RST_STREAM}


def statuses(client: Http2Client, frames: list[Frame]) -> dict[int, int]:
    heads = [(one, client.headers(one)) for one in frames if one.kind == HEADERS]
    return {one.stream: int(head[b"grpc-status"]) for one, head in heads if b"grpc-status" in head}


def content_of(frames: list[Frame], stream: int) -> bytes:
    return b"".join(one.payload for one in frames if one.kind == DATA and one.stream == stream)


def test_a_call_is_answered_and_ends_with_its_client() -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.send(client.head(1), data(1, message(b"one")), data(1, message(b"two") + message(b""), ends=True))
        frames = client.came()
        head, *rest = [one for one in frames if one.stream == 1]
        assert client.headers(head) == {b":status": b"200", b"content-type": b"application/grpc"}
        assert content_of(rest, 1) == message(b"one") + message(b"two") + message(b"")
        assert client.headers(rest[-1]) == {b"grpc-status": b"0"}
        assert rest[-1].flags & END_STREAM
        assert (client.calls[0].over_times, client.held_bytes) == (1, 0)
        assert [one.kind for one in frames[:3]] == [SETTINGS, WINDOW_UPDATE, SETTINGS]  # ours, and theirs acknowledged

    run(scenario)


@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
def test_packets_and_frames_may_be_cut_anywhere(size: int) -> None:
    async def scenario() -> None:
        client = Http2Client(is_greeted=False)
        sent = message(b"hello") + message(b"x" * 300)
        pieces = [data(1, sent[at : at + size]) for at in range(0, len(sent), size)]
        packets = b"".join([PREFACE, settings_frame({}), client.head(1), *pieces, data(1, b"", ends=True)])
        for at in range(0, len(packets), size):
            client.send(packets[at : at + size])
        assert client.calls[0].heard == [b"hello", b"x" * 300]
        assert content_of(client.came(), 1) == sent
        assert client.held_bytes == 0

    run(scenario)


def test_padding_priority_and_pieces_of_headers_are_read_past() -> None:
    async def scenario() -> None:
        client = Http2Client()
        block = client.head(1)[9:]
        padded = b"\x03" + bytes(5) + block[:4] + bytes(3)
        client.send(
            frame(HEADERS, PADDED | HAS_PRIORITY, 1, padded),
            frame(CONTINUATION, 0, 1, block[4:6]),
            frame(CONTINUATION, END_HEADERS, 1, block[6:]),
            frame(PRIORITY, 0, 1, bytes(5)),
            frame(99, 0xFF, 1, b"an unknown frame"),
            frame(DATA, PADDED | END_STREAM, 1, b"\x02" + message(b"m") + b"\0\0"),
        )
        assert client.calls[0].heard == [b"m"]
        assert not client.transport.closed

    run(scenario)


BLOCK_IN_PIECES = [frame(HEADERS, 0, 1, b"")] + [frame(CONTINUATION, 0, 1, b"")] * 40
BOMB = b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4_000 + b"\xbe" * 40  # one entry of the table, and 40 references to it


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ([b"GET / HTTP/1.1\r\n\r\n"], Http2Error.PROTOCOL_ERROR),
        ([PREFACE, "head"], Http2Error.PROTOCOL_ERROR),  # before the settings
        ([PREFACE, frame(SETTINGS, 0, 0, b"12345")], Http2Error.FRAME_SIZE_ERROR),
        ([PREFACE, frame(SETTINGS, 0, 1)], Http2Error.PROTOCOL_ERROR),
        ([PREFACE, frame(SETTINGS, ACK, 0, bytes(6))], Http2Error.FRAME_SIZE_ERROR),
        ([PREFACE, settings_frame({INITIAL_WINDOW_SIZE: 1 << 31})], Http2Error.FLOW_CONTROL_ERROR),
        ([PREFACE, settings_frame({2: 2})], Http2Error.PROTOCOL_ERROR),
        ([PREFACE, settings_frame({5: 100})], Http2Error.PROTOCOL_ERROR),
        (["ok", pack(">IBI", 16_385 << 8, 0, 1)], Http2Error.FRAME_SIZE_ERROR),
        (["ok", frame(HEADERS, END_HEADERS, 2, b"")], Http2Error.PROTOCOL_ERROR),
        (["ok", frame(HEADERS, END_HEADERS, 0, b"")], Http2Error.PROTOCOL_ERROR),
        (["ok", frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff")], Http2Error.COMPRESSION_ERROR),
        (["ok", frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09a")], Http2Error.PROTOCOL_ERROR),
        (["ok", frame(HEADERS, END_HEADERS | HAS_PRIORITY, 1, b"1234")], Http2Error.FRAME_SIZE_ERROR),
        (["ok", frame(HEADERS, END_HEADERS, 1, BOMB)], Http2Error.ENHANCE_YOUR_CALM),
        (["ok", *BLOCK_IN_PIECES], Http2Error.ENHANCE_YOUR_CALM),
        (["ok", frame(HEADERS, 0, 1, b"a" * 9_000), frame(CONTINUATION, 0, 1, b"a" * 9_000)], 11),
        (["ok", frame(HEADERS, 0, 1, b""), frame(PING, 0, 0, bytes(8))], Http2Error.PROTOCOL_ERROR),
        (["ok", frame(CONTINUATION, END_HEADERS, 1)], Http2Error.PROTOCOL_ERROR),
        (["ok", frame(HEADERS, 0, 1, b""), frame(CONTINUATION, END_HEADERS, 3)], Http2Error.PROTOCOL_ERROR),
        (["ok", data(1, b"idle")], Http2Error.PROTOCOL_ERROR),
        (["ok", data(0, b"none")], Http2Error.PROTOCOL_ERROR),
        (["ok", "head", frame(DATA, PADDED, 1, b"\x05")], Http2Error.PROTOCOL_ERROR),
        (["ok", frame(PING, 0, 0, b"short")], Http2Error.FRAME_SIZE_ERROR),
        (["ok", frame(PRIORITY, 0, 1, b"")], Http2Error.FRAME_SIZE_ERROR),
        (["ok", frame(PUSH_PROMISE, 0, 1, bytes(4))], Http2Error.PROTOCOL_ERROR),
        (["ok", frame(RST_STREAM, 0, 1, b"")], Http2Error.FRAME_SIZE_ERROR),
        (["ok", reset_frame(7, Http2Error.CANCEL)], Http2Error.PROTOCOL_ERROR),
        (["ok", window_frame(0, 0)], Http2Error.FLOW_CONTROL_ERROR),
        (["ok", window_frame(0, (1 << 31) - 1)], Http2Error.FLOW_CONTROL_ERROR),
        (["ok", window_frame(7, 5)], Http2Error.PROTOCOL_ERROR),
        (["ok", *[frame(PING, 0, 0, bytes(8))] * 20_001], Http2Error.ENHANCE_YOUR_CALM),
        (["ok", *[settings_frame({})] * 201], Http2Error.ENHANCE_YOUR_CALM),
        (["ok", "head", *[data(1, b"")] * 20_001], Http2Error.ENHANCE_YOUR_CALM),
        (["ok", "head", *[window_frame(1, 1)] * 20_001], Http2Error.ENHANCE_YOUR_CALM),
        (["ok", "head", *[reset_frame(1, Http2Error.CANCEL)] * 1_001], Http2Error.ENHANCE_YOUR_CALM),
    ],
)
def test_a_connection_that_breaks_the_protocol_or_a_bound_ends(frames: list[bytes | str], error: int) -> None:
    async def scenario() -> None:
        client = Http2Client(is_greeted=False)
        named = {"ok": PREFACE + settings_frame({}), "head": client.head(1)}
        client.send(*(named[one] if isinstance(one, str) else one for one in frames))
        assert client.transport.closed
        assert goaway_error(client.came()) == error
        client.connection.connection_lost(None)
        assert not client.opened
        assert all(call.over_times == 1 for call in client.calls)

    run(scenario)


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ([window_frame(1, 0)], Http2Error.FLOW_CONTROL_ERROR),
        ([window_frame(1, (1 << 31) - 1)], Http2Error.FLOW_CONTROL_ERROR),
        ([data(1, message(b"fails"))], Http2Error.INTERNAL_ERROR),
        ([data(1, bytes(16_384))] * 3 + ["overrun"], Http2Error.FLOW_CONTROL_ERROR),
        ([frame(HEADERS, END_HEADERS, 1, b"")], Http2Error.PROTOCOL_ERROR),  # trailers that do not end it
    ],
)
def test_a_fault_of_one_call_ends_no_other(frames: list[bytes | str], error: int) -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.send(client.head(1), client.head(3))
        for one in frames:
            if one == "overrun":
                client.calls[0].call.credit = 100
                client.send(data(1, bytes(101)))
            else:
                assert isinstance(one, bytes)
                client.send(one)
        assert reset_errors(client.came()) == {1: error}
        assert [call.over_times for call in client.calls] == [1, 0]
        client.send(data(1, b"after its end"), data(3, message(b"goes on"), ends=True))
        assert client.calls[1].heard == [b"goes on"]
        assert not client.transport.closed
        assert client.held_bytes == 0

    run(scenario)


def test_data_after_the_end_of_sending_resets_the_call() -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.send(settings_frame({INITIAL_WINDOW_SIZE: 0}), client.head(1), data(1, message(b"m"), ends=True))
        client.came()
        client.send(data(1, b"more"))  # it is open still: its answer waits for room
        assert reset_errors(client.came()) == {1: Http2Error.STREAM_CLOSED}

    run(scenario)


@pytest.mark.parametrize(
    ("head", "sent", "status"),
    [
        ({"path": b"/no/Method"}, b"", GrpcStatus.UNIMPLEMENTED),
        ({}, b"\x01\0\0\0\x01x", GrpcStatus.UNIMPLEMENTED),  # compressed
        ({}, pack(">BI", 0, MESSAGE_BYTES_MAX + 1), GrpcStatus.RESOURCE_EXHAUSTED),
        ({}, pack(">BI", 0, 5)[:2], GrpcStatus.INTERNAL),  # ends within a message
        ({}, pack(">BI", 0, 90) + b"x" * 60, GrpcStatus.RESOURCE_EXHAUSTED),  # more than may be held
    ],
)
def test_a_call_that_cannot_be_served_says_why(head: dict[str, bytes], sent: bytes, status: GrpcStatus) -> None:
    async def scenario() -> None:
        client = Http2Client(room=50)
        client.send(client.head(1, **head), data(1, sent, ends=True))
        frames = client.came()
        assert statuses(client, frames) == {1: status}
        assert client.held_bytes == 0
        assert all(call.over_times == 1 for call in client.calls)

    run(scenario)


@pytest.mark.parametrize("sizes", [(2, 3), (5, 1), (6, 1)])
def test_a_message_that_is_compressed_or_too_long_is_seen_in_whatever_pieces(sizes: tuple[int, int]) -> None:
    async def scenario() -> None:
        client = Http2Client()
        prefix = pack(">BI", 0, MESSAGE_BYTES_MAX + 1) + b"xx"
        client.send(client.head(1), data(1, prefix[: sizes[0]]), data(1, prefix[sizes[0] : sum(sizes)]))
        assert statuses(client, client.came()) == {1: GrpcStatus.RESOURCE_EXHAUSTED}

    run(scenario)


@pytest.mark.parametrize(
    "more",
    [(b"connection", b"close"), (b":path", b"/twice"), (b":unknown", b"x"), (b"Upper", b"x"), (b"te", b"gzip")],
)
def test_headers_that_http2_forbids_reset_the_stream(more: tuple[bytes, bytes]) -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.send(client.head(1, more), client.head(3))
        assert reset_errors(client.came()) == {1: Http2Error.PROTOCOL_ERROR}
        assert len(client.calls) == 1

    run(scenario)


def test_what_is_no_call_of_grpc_gets_415() -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.send(client.head(1, method=b"GET", ends=True), client.head(3, method=b"PUT"))
        frames = client.came()
        for answer in [one for one in frames if one.kind == HEADERS]:
            assert client.headers(answer) == {b":status": b"415"}
            assert answer.flags & END_STREAM
        assert reset_errors(frames) == {3: Http2Error.NO_ERROR}, "it sends on, and nothing of it is wanted"

    run(scenario)


def test_a_client_whose_table_has_no_room_reads_what_is_sent() -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.decoder.max_allowed_table_size = 0  # it has said so by its settings
        client.send(settings_frame({1: 0}), client.head(1), data(1, message(b"m"), ends=True))
        assert statuses(client, client.came()) == {1: GrpcStatus.OK}

    run(scenario)


def test_calls_beyond_the_bound_are_refused_and_may_be_tried_again() -> None:
    async def scenario() -> None:
        client = Http2Client(Http2Limits(10, 2, 15.0, 60.0))
        client.send(client.head(1), client.head(3), client.head(5))
        assert reset_errors(client.came()) == {5: Http2Error.REFUSED_STREAM}
        client.send(data(1, b"", ends=True), client.head(7))
        assert len(client.calls) == 3

    run(scenario)


def test_connections_beyond_the_bound_are_not_taken() -> None:
    async def scenario() -> None:
        first = Http2Client(Http2Limits(1, 2, 15.0, 60.0))
        second = Http2Client(Http2Limits(1, 2, 15.0, 60.0), first.opened)
        assert (first.transport.closed, second.transport.closed) == (False, True)
        second.connection.connection_lost(None)
        assert len(first.opened) == 1

    run(scenario)


def test_a_client_that_makes_us_reset_its_calls_has_the_bound_of_one_that_resets_them() -> None:
    """CVE-2025-8671: each call begins its work, and a frame that breaks a rule ends it at our side."""

    async def scenario() -> None:
        client = Http2Client()
        stream = 1
        while not client.transport.closed and stream < 4_000:
            client.send(client.head(stream), window_frame(stream, 0))
            stream += 2
        assert goaway_error(client.came()) == Http2Error.ENHANCE_YOUR_CALM
        assert len(client.calls) == 1_001
        assert [call.over_times for call in client.calls[:1_000]] == [1] * 1_000

    run(scenario)


def test_heads_that_begin_no_call_have_a_bound() -> None:
    async def scenario() -> None:
        client = Http2Client(Http2Limits(10, 1, 15.0, 60.0))
        client.send(client.head(1))
        stream = 3
        while not client.transport.closed and stream < 60_000:
            client.send(client.head(stream))
            stream += 2
        frames = client.came()
        assert goaway_error(frames) == Http2Error.ENHANCE_YOUR_CALM
        assert set(reset_errors(frames).values()) == {Http2Error.REFUSED_STREAM}

    run(scenario)


# Windows


def test_nothing_is_sent_beyond_the_windows_and_all_of_it_within() -> None:
    async def scenario() -> None:
        client = Http2Client()
        sent = [message(b"a" * 50_000), message(b"b" * 50_000)]
        for stream, content in zip((1, 3), sent, strict=True):
            cut = [data(stream, content[at : at + 16_384]) for at in range(0, len(content), 16_384)]
            client.send(client.head(stream), *cut)
        got = {1: bytearray(), 3: bytearray()}

        def take() -> None:
            for one in client.came():
                if one.kind == DATA:
                    got[one.stream] += one.payload

        take()
        assert sum(map(len, got.values())) == 65_535, "the connection's first window"
        client.send(window_frame(0, 10))
        take()
        assert sum(map(len, got.values())) == 65_545
        client.send(settings_frame({INITIAL_WINDOW_SIZE: 0}), window_frame(0, 1 << 20))
        client.send(window_frame(1, 5), window_frame(3, 5))  # their windows are below 0 yet
        take()
        assert sum(map(len, got.values())) == 65_545
        client.send(settings_frame({INITIAL_WINDOW_SIZE: 65_535}))
        take()
        assert [bytes(one) for one in got.values()] == sent

    run(scenario)


def test_a_client_may_send_on_as_what_it_sent_is_taken() -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.send(client.head(1))
        may_send = {0: CONNECTION_WINDOW, 1: CALL_WINDOW}
        content = message(bytes(12 << 20)) * 2  # more than the connection's window
        for at in range(0, len(content), 16_384):
            part = content[at : at + 16_384]
            may_send = {stream: left - len(part) for stream, left in may_send.items()}
            assert min(may_send.values()) >= 0, "the window was not opened in time"
            client.send(data(1, part))
            for one in client.came():
                if one.kind == WINDOW_UPDATE:
                    may_send[one.stream] += int.from_bytes(one.payload)
        assert [len(one) for one in client.calls[0].heard] == [12 << 20] * 2

    run(scenario)


def test_a_connection_that_sends_beyond_its_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_calls, "CONNECTION_WINDOW", 0)

    async def scenario() -> None:
        client = Http2Client()
        client.send(client.head(1), data(1, b"x"))
        assert goaway_error(client.came()) == Http2Error.FLOW_CONTROL_ERROR

    run(scenario)


def test_messages_are_not_made_before_there_is_room_for_them() -> None:
    async def scenario() -> None:
        client, made = Http2Client(), []

        def parts() -> object:
            for number in range(100):
                made.append(number)
                yield bytes(16_000)

        client.send(client.head(1))
        client.calls[0].call.send(parts())  # type: ignore[arg-type]
        assert len(made) == 5
        client.connection.pause_writing()
        client.send(window_frame(0, 1 << 20), window_frame(1, 1 << 20))
        assert len(made) == 5
        client.connection.resume_writing()
        assert 60 < len(made) < 80
        client.send(reset_frame(1, Http2Error.CANCEL), window_frame(0, 1 << 20))
        assert len(made) < 80
        assert client.calls[0].over_times == 1

    run(scenario)


def test_replies_that_are_not_read_have_a_bound() -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.connection.pause_writing()
        client.send(*[frame(PING, 0, 0, bytes(8))] * 10_001)
        assert goaway_error(client.came()) == Http2Error.ENHANCE_YOUR_CALM

    run(scenario)


@pytest.mark.parametrize(
    ("content", "room", "times"),
    [(b"", math.inf, 1_000), (bytes(10_000), 100_000.0, 10)],
    ids=["many", "large"],
)
def test_answers_that_are_not_read_have_a_bound(content: bytes, room: float, times: int) -> None:
    """A client that sends on, whose window stays closed, makes one call wait with no more than that."""

    async def scenario() -> None:
        client = Http2Client(is_greeted=False, room=room)
        client.send(PREFACE, settings_frame({INITIAL_WINDOW_SIZE: 0}), client.head(1), client.head(3))
        client.send(*[data(1, message(content))] * times)
        assert not statuses(client, client.came())
        client.send(data(1, message(content)), data(3, message(b"")))
        assert statuses(client, client.came()) == {1: GrpcStatus.RESOURCE_EXHAUSTED}
        assert (client.calls[0].over_times, client.calls[1].over_times, client.held_bytes) == (1, 0, 0)
        client.send(window_frame(3, 100))
        assert content_of(client.came(), 3) == message(b"")

    run(scenario)


def test_streams_whose_ends_are_not_read_have_a_bound() -> None:
    """No window bounds the end of a stream: a client that begins one after the other must read them."""

    async def scenario() -> None:
        client = Http2Client()
        client.connection.pause_writing()
        heads = [client.head(number, path=b"/no/Method") for number in range(1, 2 * 10_001, 2)]
        client.send(*heads[:-1])
        assert goaway_error(client.came()) is None
        client.send(heads[-1])
        assert goaway_error(client.came()) == Http2Error.ENHANCE_YOUR_CALM

    run(scenario)


# Time


def test_what_takes_too_long_ends() -> None:
    async def scenario() -> None:
        silent, half, stalled = Http2Client(is_greeted=False), Http2Client(), Http2Client()
        half.send(frame(HEADERS, 0, 1, b""))
        stalled.connection.pause_writing()
        for client, seconds in ((silent, 15.0), (half, 15.0), (stalled, 60.0)):
            client.connection.sweep(seconds - 0.1)
            assert not client.transport.closed
            client.connection.sweep(seconds)
            assert client.transport.closed

    run(scenario)


def test_a_client_that_is_silent_is_pinged_and_then_gone() -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.connection.sweep(1.0)
        client.came()
        client.connection.sweep(61.0)
        client.connection.sweep(62.0)
        await asyncio.sleep(0)
        assert [one.kind for one in client.came()] == [PING]
        client.send(frame(PING, ACK, 0, bytes(8)))
        client.connection.sweep(95.0)
        assert not client.transport.closed
        client.connection.sweep(185.0)
        assert client.transport.closed

    run(scenario)


@pytest.mark.parametrize(("timeout", "seconds"), [(b"500m", 0.5), (b"2H", 7_200.0), (b"3000000u", 3.0)])
def test_a_call_ends_when_its_client_has_given_it_up(timeout: bytes, seconds: float) -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.send(client.head(1, (b"grpc-timeout", timeout)), data(1, message(b"m")))
        client.connection.sweep(seconds - 0.01)
        assert client.calls[0].over_times == 0
        client.came()
        client.send(frame(PING, ACK, 0, bytes(8)))  # it lives
        client.connection.sweep(seconds)
        await asyncio.sleep(0)
        assert statuses(client, client.came()) == {1: GrpcStatus.DEADLINE_EXCEEDED}
        assert client.calls[0].over_times == 1

    run(scenario)


def test_a_call_without_a_message_ends() -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.send(client.head(1), client.head(3), data(3, message(b"m")))
        client.connection.sweep(15.0)
        assert [call.over_times for call in client.calls] == [1, 0]

    run(scenario)


def test_an_answer_that_is_not_taken_after_the_end_of_sending_is_given_up() -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.send(settings_frame({INITIAL_WINDOW_SIZE: 0}), client.head(1), data(1, message(b"m"), ends=True))
        client.came()
        client.send(frame(PING, ACK, 0, bytes(8)))
        client.connection.sweep(59.0)
        assert not client.came()
        client.connection.sweep(60.0)
        await asyncio.sleep(0)
        assert statuses(client, client.came()) == {1: GrpcStatus.DEADLINE_EXCEEDED}

    run(scenario)


def test_bounds_of_empty_frames_are_of_some_time() -> None:
    async def scenario() -> None:
        client = Http2Client()
        for now in range(3):
            client.send(*[frame(PING, 0, 0, bytes(8))] * 15_000)
            client.connection.sweep(float(now))
        assert not client.transport.closed

    run(scenario)


def test_however_many_frames_come_all_else_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_connection, "TURN_SECONDS", 0.0)

    async def scenario() -> None:
        client = Http2Client()
        client.send(*(client.head(number) for number in range(1, 20, 2)))
        turns = 0
        while len(client.calls) < 10:
            assert not client.transport.reads, "more is read before what came is taken"
            assert len(client.calls) <= turns + 2
            turns += 1
            await asyncio.sleep(0)
        assert turns >= 9
        await asyncio.sleep(0)
        assert client.transport.reads

    run(scenario)


def test_the_calls_of_a_lost_connection_end_some_at_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.send(*(client.head(number) for number in range(1, 20, 2)))
        monkeypatch.setattr(http2_calls, "TURN_SECONDS", 0.0)
        client.connection.connection_lost(None)
        assert client.opened
        for _ in range(20):
            await asyncio.sleep(0)
        assert [call.over_times for call in client.calls] == [1] * 10
        assert not client.opened

    run(scenario)


# The end


def test_a_draining_connection_serves_what_it_has_and_then_closes() -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.send(client.head(1))
        client.came()
        client.connection.drain()
        client.send(client.head(3))
        frames = client.came()
        assert goaway_error(frames) == Http2Error.NO_ERROR
        assert reset_errors(frames) == {3: Http2Error.REFUSED_STREAM}
        client.send(data(1, message(b"last"), ends=True))
        frames = client.came()
        assert content_of(frames, 1) == message(b"last")
        assert statuses(client, frames) == {1: GrpcStatus.OK}
        assert client.transport.closed

    run(scenario)


def test_an_idle_connection_closes_as_it_is_drained() -> None:
    async def scenario() -> None:
        client = Http2Client()
        client.connection.drain()
        assert client.transport.closed

    run(scenario)
