"""The client's side of one HTTP/2 connection to the endpoint picker, frame by frame, without a socket."""

from __future__ import annotations

import math
from collections.abc import Iterable
from struct import pack, unpack
from typing import NamedTuple

from hpack import Decoder, Encoder

from headway.gateway.epp.grpc_call import CallHandler, GrpcCall, GrpcStatus
from headway.gateway.epp.http2_calls import Http2Limits
from headway.gateway.epp.http2_connection import Http2Connection
from headway.gateway.epp.http2_frames import END_HEADERS, END_STREAM, HEADERS, PREFACE, frame, settings_frame
from tests.support.fake_transport import FakeTransport

ECHO = b"/test.Echo/Echo"
HEADS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", ECHO),
    (b":authority", b"x"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


class Frame(NamedTuple):
    """A frame that came from the server."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Echo:
    """Gives each message back; notes what it heard."""

    def __init__(self, call: GrpcCall) -> None:
        self.call = call
        self.heard: list[bytes] = []
        self.over_times = 0

    def came(self, message: bytes) -> None:
        assert not self.over_times, "a message after the end"
        self.heard.append(message)
        if message == b"fails":
            raise ZeroDivisionError
        self.call.send([message])

    def over(self) -> None:
        self.over_times += 1
        self.call.finish(GrpcStatus.OK)


def message(data: bytes) -> bytes:
    """As gRPC frames it."""
    return pack(">BI", 0, len(data)) + data


class Http2Client:
    """One connection. Needs a running event loop.

    Attributes:
        calls: the handlers, in the order in which their calls began.
        held_bytes: of messages that are not whole.
        now: the connection's clock.
    """

    def __init__(
        self,
        limits: Http2Limits | None = None,
        opened: set[Http2Connection] | None = None,
        *,
        is_greeted: bool = True,
        room: float = math.inf,
    ) -> None:
        """`is_greeted`: preface and settings are sent; `room`: bytes of unfinished messages that may be held."""
        self.calls: list[Echo] = []
        self.held_bytes = 0
        self.now = 0.0
        self.opened = set() if opened is None else opened
        self.encoder = Encoder()
        self.decoder = Decoder()
        self._room = room
        self._read_bytes = 0
        self.transport = FakeTransport()
        limits = limits or Http2Limits(10, 100, 15.0, 60.0)
        self.connection = Http2Connection(self._begin, self.opened, limits, self._hold, lambda: self.now)
        self.connection.connection_made(self.transport)
        if is_greeted:
            self.send(PREFACE, settings_frame({}))

    def _begin(self, path: bytes, call: GrpcCall) -> CallHandler | None:
        if path != ECHO:
            return None
        self.calls.append(Echo(call))
        return self.calls[-1]

    def _hold(self, more_bytes: int) -> bool:
        self.held_bytes += more_bytes
        assert self.held_bytes >= 0
        return self.held_bytes <= self._room

    def send(self, *frames: bytes) -> None:
        """In one packet, as long as the server listens."""
        if not self.transport.closed:
            self.connection.data_received(b"".join(frames))

    def head(self, stream: int, *more: tuple[bytes, bytes], ends: bool = False, **changed: bytes) -> bytes:
        """A HEADERS frame that begins a call; `changed`: pseudo-headers with other values."""
        named = [(name, changed.get(name[1:].decode(), value)) for name, value in HEADS]
        flags = END_HEADERS | (END_STREAM if ends else 0)
        return frame(HEADERS, flags, stream, bytes(self.encoder.encode([*named, *more])))

    def came(self) -> list[Frame]:
        """The frames that the server sent since the last time."""
        found = list(frames_of(bytes(self.transport.written[self._read_bytes :])))
        self._read_bytes = len(self.transport.written)
        return found

    def headers(self, one: Frame) -> dict[bytes, bytes]:
        """What a frame of headers says."""
        return dict(self.decoder.decode(one.payload, raw=True))


def frames_of(data: bytes) -> Iterable[Frame]:
    """Whole frames, one after the other; raises AssertionError where they are not."""
    at = 0
    while at < len(data):
        word, flags, stream = unpack(">IBI", data[at : at + 9])
        end = at + 9 + (word >> 8)
        assert end <= len(data)
        assert word >> 8 <= 16_384
        yield Frame(word & 255, flags, stream, data[at + 9 : end])
        at = end
