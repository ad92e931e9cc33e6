"""What one HTTP/2 connection sends: bytes gathered for one write, and the windows that bound the data of its calls.

Law: what waits unsent is bounded. Data wait for the client to read, and a client that reads nothing gets no replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from headway.gateway.epp import http2_headers as headers
from headway.gateway.epp.grpc_call import GrpcCall, GrpcStatus
from headway.gateway.epp.http2_frames import (
    END_HEADERS,
    END_STREAM,
    FIRST_WINDOW,
    HEADERS,
    WINDOW_MAX,
    Http2Error,
    Http2Fault,
    frame,
    reset_frame,
)

_FLUSHED_BYTES = 262_144
_BUFFER_BYTES = 1 << 20  # more than that unsent: no data of calls is written
_UNSENT_REPLIES_MAX = 10_000  # while the client does not read (CVE-2019-9512, CVE-2019-9515)


class Http2Output:
    """The way out of one connection; a `CallConnection` of its calls.

    Attributes:
        first_window: bytes that each call may send from its beginning.
        window: bytes that all calls may send now.
        is_writable: not too much waits to be sent already.
        is_gathering: what is written leaves with the next `flush`.
    """

    def __init__(self) -> None:
        self._ended: Callable[[GrpcCall], None] = _nothing
        self._go_on: Callable[[GrpcCall], None] = _nothing
        self._transport = cast(asyncio.Transport, None)
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flushes_soon = False
        self._has_sent_block = False
        self._waiting: dict[int, GrpcCall] = {}  # for room in the connection's window
        self._unsent_replies = 0
        self.first_window = FIRST_WINDOW
        self.window = FIRST_WINDOW
        self.is_writable = True
        self.is_gathering = False

    def serve(self, ended: Callable[[GrpcCall], None], go_on: Callable[[GrpcCall], None]) -> None:
        """Serve these calls. `ended`: one is over and its end is sent; `go_on`: one that waits may have room."""
        self._ended = ended
        self._go_on = go_on

    def connect(self, transport: asyncio.Transport) -> None:
        """Write to this transport."""
        self._transport = transport
        transport.set_write_buffer_limits(_BUFFER_BYTES)

    def write(self, data: bytes) -> None:
        """Send these bytes, soon."""
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > _FLUSHED_BYTES:
            self.flush()
        elif not self.is_gathering and not self._flushes_soon:
            self._flushes_soon = True
            asyncio.get_running_loop().call_soon(self.flush)

    def reply(self, data: bytes) -> None:
        """Send a reply that nothing bounds. Raises Http2Fault if the client lets too many of them wait."""
        self.count_reply()
        self.write(data)

    def count_reply(self) -> None:
        """The client asked for what no window bounds. Raises Http2Fault if it lets too much of that wait."""
        if not self.is_writable:
            self._unsent_replies += 1
            if self._unsent_replies > _UNSENT_REPLIES_MAX:
                raise Http2Fault(Http2Error.ENHANCE_YOUR_CALM, "replies are not read")

    def flush(self) -> None:
        """Send what was gathered."""
        self._flushes_soon = False
        if self._out:
            data, self._out, self._out_bytes = b"".join(self._out), [], 0
            if not self._transport.is_closing():
                self._transport.write(data)

    # Of calls

    def send_head(self, call: GrpcCall) -> None:
        """The head of a call's answer."""
        call.has_head = True
        self.write(frame(HEADERS, END_HEADERS, call.id, self._block(headers.BEGINS)))

    def send_end(self, call: GrpcCall, status: GrpcStatus, message: str) -> None:
        """The end of a call's answer; all of it where nothing was sent before."""
        block = headers.trailers(status, message)
        self._send_last(call.id, block if call.has_head else headers.BEGINS + block, cuts=not call.has_ended_sending)
        self._waiting.pop(call.id, None)
        self._ended(call)

    def refuse(self, stream: int, *, cuts: bool) -> None:
        """The whole answer to what is no call of gRPC; `cuts`: its client sends on."""
        self._send_last(stream, headers.NOT_GRPC, cuts=cuts)

    def _send_last(self, stream: int, block: bytes, *, cuts: bool) -> None:
        self.write(frame(HEADERS, END_HEADERS | END_STREAM, stream, self._block(block)))
        if cuts:  # nothing more of it is wanted (RFC 9113, section 8.1)
            self.write(reset_frame(stream, Http2Error.NO_ERROR))

    def _block(self, block: bytes) -> bytes:
        if self._has_sent_block:
            return block
        self._has_sent_block = True
        return headers.NO_TABLE + block

    # Room

    def wait_for_room(self, call: GrpcCall) -> None:
        """Have it go on when there is more room in the connection; in its own window, its own update tells."""
        if call.window + self.first_window > 0:
            self._waiting[call.id] = call

    def forget(self, call: GrpcCall) -> None:
        """It sends no more."""
        self._waiting.pop(call.id, None)

    def widen(self, more_bytes: int) -> None:
        """All calls may send so much more. Raises Http2Fault if the window is out of bounds then."""
        self.window += more_bytes
        if not more_bytes or self.window > WINDOW_MAX:
            raise Http2Fault(Http2Error.FLOW_CONTROL_ERROR, "the connection's window is out of bounds")
        self._give_room()

    def pause(self) -> None:
        """The client reads more slowly than it is sent to."""
        self.is_writable = False

    def resume(self) -> None:
        """The client has read on."""
        self.is_writable = True
        self._unsent_replies = 0
        self._give_room()

    def _give_room(self) -> None:
        """Those that wait go on, in turn: one that must wait again is the last."""
        for _ in range(len(self._waiting)):
            if self.window <= 0 or not self.is_writable:
                return
            number = next(iter(self._waiting), None)
            if number is None:
                return
            self._go_on(self._waiting.pop(number))


def _nothing(_: GrpcCall) -> None:
    """Before there are calls."""
