"""HTTP/2 connection of a client that makes gRPC calls: frames, streams and windows (RFC 9113), the server's side.

Laws: a client that breaks the protocol or a bound loses its connection, and no other client anything. However many
frames come at once, all else has turns of the event loop between them. What one connection may keep in memory is
bounded, and a client that is gone is noticed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import cast

from headway.gateway.epp.grpc_call import CallHandler, GrpcCall
from headway.gateway.epp.http2_calls import (
    CALL_WINDOW,
    CONNECTION_WINDOW,
    TURN_SECONDS,
    FrameBounds,
    Http2Calls,
    Http2Limits,
)
from headway.gateway.epp.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    FIRST_WINDOW,
    GOAWAY,
    HEAD_BYTES,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_HEADER_LIST_SIZE,
    PAYLOAD_MAX,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM_MASK,
    WINDOW_UPDATE,
    Http2Error,
    Http2Fault,
    frame,
    goaway_frame,
    read_head,
    read_number,
    read_settings_frame,
    settings_frame,
    window_frame,
)
from headway.gateway.epp.http2_headers import HEADER_LIST_BYTES, HeaderBlock
from headway.gateway.epp.http2_output import Http2Output
from headway.gateway.wire.shared_limits import ConnectionPlace

_SETTINGS_COST = 100  # of them: each may touch every call
_SILENT_SECONDS, _GONE_SECONDS = 60.0, 90.0  # without a byte: then it is pinged, then it is gone
log = logging.getLogger("headway.gateway")


class Http2Connection(asyncio.Protocol):
    """One connection. `sweep` is called about once a second."""

    __slots__ = (
        "_calls",
        "_clock",
        "_expects",
        "_frames",
        "_has_settings",
        "_headers",
        "_heard_at",
        "_is_heard",
        "_is_over",
        "_is_pinged",
        "_limits",
        "_opened",
        "_opened_at",
        "_output",
        "_peer",
        "_place",
        "_transport",
        "_unread",
        "_unwritable_at",
    )

    def __init__(
        self,
        begin: Callable[[bytes, GrpcCall], CallHandler | None],
        opened: set[Http2Connection],
        limits: Http2Limits,
        hold: Callable[[int], bool],
        clock: Callable[[], float],
        place: ConnectionPlace | None = None,
    ) -> None:
        """A connection.

        Args:
            begin: gives the handler of a call by its path; None where no such method is.
            opened: the connections that are open; it is in there while it is.
            limits: its bounds.
            hold: counts bytes of messages that are not whole yet, and says whether there is room for them.
            clock: seconds.
            place: its place among the connections of its address, where they are counted; it leaves it at its end.
        """
        self._opened = opened
        self._place = place
        self._limits = limits
        self._clock = clock
        self._transport = cast(asyncio.Transport, None)
        self._peer = ""
        self._headers = HeaderBlock()
        self._frames = FrameBounds(limits.calls)
        self._output = Http2Output()
        self._calls = Http2Calls(self._output, self._frames, begin, limits, hold, clock)
        self._unread = b""  # came, and is no whole frame yet, or waits for the next turn
        self._expects = PREFACE  # then b""
        self._has_settings = False
        self._is_over = False
        self._opened_at = self._heard_at = clock()
        self._unwritable_at: float | None = None
        self._is_heard = True
        self._is_pinged = False

    # As a protocol of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say what we take."""
        self._transport = cast(asyncio.Transport, transport)
        self._output.connect(self._transport)
        peer = transport.get_extra_info("peername")
        self._peer = self._calls.peer = str(peer[0]) if peer else ""
        is_refused = self._place is not None and self._place.fault is not None
        if is_refused or len(self._opened) >= self._limits.connections:
            self.abort()
            return
        self._opened.add(self)
        ours = {
            MAX_CONCURRENT_STREAMS: self._limits.calls,
            INITIAL_WINDOW_SIZE: CALL_WINDOW,
            MAX_HEADER_LIST_SIZE: HEADER_LIST_BYTES,
        }
        self._output.write(settings_frame(ours) + window_frame(0, CONNECTION_WINDOW - FIRST_WINDOW))

    def data_received(self, data: bytes) -> None:
        """Take the frames that are whole."""
        self._is_heard = True
        if not self._is_over:
            self._read(self._unread + data if self._unread else data)

    def eof_received(self) -> bool:
        """The client is gone: HTTP/2 has no half of a connection."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """All calls are over, some at each turn of the event loop."""
        self._is_over = True
        if self._place is not None:
            self._place.leave()
        self._calls.end_all(lambda: self._opened.discard(self))

    def pause_writing(self) -> None:
        """The client reads more slowly than it is sent to."""
        self._unwritable_at = self._clock()
        self._output.pause()

    def resume_writing(self) -> None:
        """The client has read on."""
        self._unwritable_at = None
        self._output.resume()

    # Frames

    def _read(self, data: bytes) -> None:
        output, at = self._output, 0
        output.is_gathering = True
        try:
            at = self._take_preface(data) if self._expects else 0
            at = self._take_frames(data, at)
        except Http2Fault as fault:
            self._fail(fault)
        finally:
            output.is_gathering = False
        self._unread = data[at:] if not self._is_over else b""
        output.flush()

    def _take_preface(self, data: bytes) -> int:
        size = min(len(data), len(PREFACE))
        if data[:size] != PREFACE[:size]:
            raise Http2Fault(Http2Error.PROTOCOL_ERROR, "this is no HTTP/2")
        if size < len(PREFACE):
            return 0
        self._expects = b""
        return size

    def _take_frames(self, data: bytes, at: int) -> int:
        """Take whole frames from there on, for a turn; returns how far it came."""
        size = len(data) if not self._expects else 0
        until = time.monotonic() + TURN_SECONDS
        while size - at >= HEAD_BYTES and not self._is_over:
            word, flags, number = read_head(data, at)
            end = at + HEAD_BYTES + (word >> 8)
            if word >> 8 > PAYLOAD_MAX:
                raise Http2Fault(Http2Error.FRAME_SIZE_ERROR, f"a frame is above {PAYLOAD_MAX} bytes")
            if end > size:
                break
            self._take(word & 255, flags, number & STREAM_MASK, data[at + HEAD_BYTES : end])
            at = end
            if at < size and time.monotonic() >= until:
                self._transport.pause_reading()
                asyncio.get_running_loop().call_soon(self._resume)
                break
        return at

    def _resume(self) -> None:
        if not self._is_over:
            self._transport.resume_reading()
            self._read(self._unread)

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._headers.stream and kind != CONTINUATION:
            raise Http2Fault(Http2Error.PROTOCOL_ERROR, "headers are interrupted by another frame")
        if kind == DATA:
            self._calls.take_data(flags, number, payload)
        elif kind == HEADERS:
            if not self._has_settings:
                raise Http2Fault(Http2Error.PROTOCOL_ERROR, "settings come first")
            self._headers.begin(flags, number, payload, self._clock())
            self._calls.take_headers(self._headers)
        elif kind == CONTINUATION:
            self._headers.go_on(flags, number, payload)
            self._calls.take_headers(self._headers)
        elif kind == WINDOW_UPDATE:
            self._calls.take_window(number, read_number(payload))
        elif kind == RST_STREAM:
            read_number(payload)
            self._calls.take_reset(number)
        elif kind in (SETTINGS, PING, GOAWAY):
            if number:
                raise Http2Fault(Http2Error.PROTOCOL_ERROR, "a frame of the connection names a stream")
            self._take_control(kind, flags, payload)
        elif kind == PUSH_PROMISE:
            raise Http2Fault(Http2Error.PROTOCOL_ERROR, "clients do not push")
        else:  # unknown ones are ignored (section 4.1), and so are priorities
            if kind == PRIORITY and len(payload) != 5:
                raise Http2Fault(Http2Error.FRAME_SIZE_ERROR, "a PRIORITY frame has five bytes")
            self._frames.count()

    # The connection's own frames

    def _take_control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._take_settings(payload)
            return
        self._frames.count()
        if kind == PING:
            if len(payload) != 8:
                raise Http2Fault(Http2Error.FRAME_SIZE_ERROR, "a PING frame has eight bytes")
            if not flags & ACK:
                self._output.reply(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS and payload:
            raise Http2Fault(Http2Error.FRAME_SIZE_ERROR, "settings are acknowledged without more")

    def _take_settings(self, payload: bytes) -> None:
        self._frames.count(_SETTINGS_COST)
        self._has_settings = True
        output, asked = self._output, dict(read_settings_frame(payload))
        before, output.first_window = output.first_window, asked.get(INITIAL_WINDOW_SIZE, output.first_window)
        output.reply(frame(SETTINGS, ACK, 0))
        if output.first_window > before:
            self._calls.go_on()

    # Its end

    def sweep(self, now: float) -> None:
        """End what took too long."""
        self._frames.forget()
        if self._is_heard:
            self._is_heard, self._is_pinged, self._heard_at = False, False, now
        limits = self._limits
        late = [
            not self._has_settings and now - self._opened_at >= limits.head_seconds,
            self._headers.stream and now - self._headers.began_at >= limits.head_seconds,
            self._unwritable_at is not None and now - self._unwritable_at >= limits.stalled_seconds,
            now - self._heard_at >= _GONE_SECONDS,
        ]
        if any(late):
            self._is_over = True
            self._transport.abort()
            return
        if now - self._heard_at >= _SILENT_SECONDS and not self._is_pinged:
            self._is_pinged = True
            self._output.write(frame(PING, 0, 0, bytes(8)))
        self._calls.sweep(now)

    def drain(self) -> None:
        """Take no more calls, and close when those that are here have ended."""
        if not self._is_over:
            self._output.write(goaway_frame(self._calls.last, Http2Error.NO_ERROR))
            self._calls.drain(self._close)

    def abort(self) -> None:
        """End at once."""
        self._is_over = True
        self._transport.abort()

    def _fail(self, fault: Http2Fault) -> None:
        log.warning("a connection to grpc-listen ends: %s", fault.why, extra={"fields": {"client": self._peer}})
        self._output.write(goaway_frame(self._calls.last, fault.error, fault.why))
        self._close()

    def _close(self) -> None:
        self._is_over = True
        self._output.flush()
        self._transport.close()
