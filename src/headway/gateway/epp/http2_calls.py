"""Calls of one HTTP/2 connection: which streams are open, and what each frame that names one does to its call.

Laws: a fault of one stream ends that stream alone. A call ends once, and no frame after that brings it back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from headway.gateway.epp.grpc_call import CallHandler, GrpcCall, GrpcStatus
from headway.gateway.epp.http2_frames import (
    END_STREAM,
    PADDED,
    WINDOW_MAX,
    Http2Error,
    Http2Fault,
    reset_frame,
    window_frame,
    without_padding,
)
from headway.gateway.epp.http2_headers import CallHeadReader, HeaderBlock
from headway.gateway.epp.http2_output import Http2Output

CALL_WINDOW = 1 << 20
"""Bytes that a client may send of one call before they are taken; they are taken at once."""
CONNECTION_WINDOW = 16 << 20
TURN_SECONDS = 0.01
"""For so long one connection is served; then all else has its turn."""
_EMPTY_FRAMES_MAX = 20_000  # between two sweeps (CVE-2019-9512 to 9518)
_RESETS_MIN = 1_000
log = logging.getLogger("headway.gateway")


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """Bounds of connections.

    Attributes:
        connections: open at once.
        calls: of one connection, open at once.
        head_seconds: to the first settings, to the end of a block of headers, and to the first message of a call.
        stalled_seconds: in which a client may read nothing.
    """

    connections: int
    calls: int
    head_seconds: float
    stalled_seconds: float


class FrameBounds:
    """Counts frames that bring nothing, of which a client may send only so many between two sweeps."""

    __slots__ = ("_empty", "_resets", "_resets_max")

    def __init__(self, calls_max: int) -> None:
        """`calls_max`: so many calls may be reset at once, as their clients leave."""
        self._resets_max = max(_RESETS_MIN, calls_max)
        self._empty = self._resets = 0

    def forget(self) -> None:
        """Count from 0 again."""
        self._empty = self._resets = 0

    def count(self, frames: int = 1) -> None:
        """Such frames came: pings, or data of no bytes. Raises Http2Fault if they are too many."""
        self._empty += frames
        if self._empty > _EMPTY_FRAMES_MAX:
            raise Http2Fault(Http2Error.ENHANCE_YOUR_CALM, "too many frames that bring nothing")

    def count_reset(self) -> None:
        """A stream was reset (CVE-2023-44487). Raises Http2Fault if too many are."""
        self._resets += 1
        if self._resets > self._resets_max:
            raise Http2Fault(Http2Error.ENHANCE_YOUR_CALM, "too many streams are reset")


class Http2Calls:
    """The calls of one connection.

    Attributes:
        last: the highest stream that was opened.
        peer: address of the client.
    """

    def __init__(
        self,
        output: Http2Output,
        frames: FrameBounds,
        begin: Callable[[bytes, GrpcCall], CallHandler | None],
        limits: Http2Limits,
        hold: Callable[[int], bool],
        clock: Callable[[], float],
    ) -> None:
        """As `Http2Connection`."""
        self._output = output
        self._frames = frames
        self._begin = begin
        self._limits = limits
        self._hold = hold
        self._clock = clock
        self._open: dict[int, GrpcCall] = {}
        self._reader = CallHeadReader()
        self._credit = CONNECTION_WINDOW  # bytes that the client may send
        self._drained: Callable[[], None] | None = None
        self.last = 0
        self.peer = ""
        output.serve(self._ended, self._go_on)

    def take_data(self, flags: int, number: int, payload: bytes) -> None:
        """A DATA frame."""
        size, call, ends = len(payload), self._open.get(number), bool(flags & END_STREAM)
        self._credit -= size
        if self._credit < 0:
            raise Http2Fault(Http2Error.FLOW_CONTROL_ERROR, "more data than the connection's window")
        if self._credit < CONNECTION_WINDOW // 2:
            self._output.write(window_frame(0, CONNECTION_WINDOW - self._credit))
            self._credit = CONNECTION_WINDOW
        if flags & PADDED:
            payload = without_padding(payload)
        if not payload and not ends:
            self._frames.count()
        if call is None:
            self._check_was_open(number)  # it is over here, which the client did not know yet
        elif call.has_ended_sending:
            self._reset_for_fault(call, Http2Error.STREAM_CLOSED)
        elif call.credit < size:
            self._reset_for_fault(call, Http2Error.FLOW_CONTROL_ERROR)
        else:
            call.credit -= size
            if payload:
                self._guarded(call, call.take, payload)
            if ends:
                self._half_close(call)
            elif call.credit < CALL_WINDOW // 2 and not call.is_over:
                self._output.write(window_frame(number, CALL_WINDOW - call.credit))
                call.credit = CALL_WINDOW

    def _check_was_open(self, number: int) -> None:
        if number > self.last or not number & 1:
            raise Http2Fault(Http2Error.PROTOCOL_ERROR, f"stream {number} was not opened")
        self._frames.count()

    def take_headers(self, headers: HeaderBlock) -> None:
        """Headers have come, perhaps not all of them."""
        whole = headers.whole()
        if whole is None:
            return
        number, block, ends = whole
        head = self._reader.read(block)  # always, since later blocks build on it
        if number <= self.last:
            self._take_trailers(number, ends=ends)
            return
        self.last = number
        self._output.count_reply()  # each stream has a head, an end or a reset, which no window bounds
        if self._drained is not None or len(self._open) >= self._limits.calls:
            self._refuse(number, Http2Error.REFUSED_STREAM)
        elif not head.is_well_formed:
            self._refuse(number, Http2Error.PROTOCOL_ERROR)
        elif not head.is_grpc:
            self._frames.count()
            self._output.refuse(number, cuts=not ends)
        else:
            call = self._open[number] = GrpcCall(self._output, number, self.peer, CALL_WINDOW, self._hold)
            now = self._clock()
            call.gives_up_at = now + head.timeout_seconds
            call.ends_at = min(call.gives_up_at, now + self._limits.head_seconds)
            self._guarded(call, self._begin_call, call, head.path)
            if ends:
                self._half_close(call)

    def _refuse(self, number: int, error: Http2Error) -> None:
        """Begin no call. It counts, or a client could send such heads without end and read no reset."""
        self._frames.count()
        self._output.write(reset_frame(number, error))

    def _begin_call(self, call: GrpcCall, path: bytes) -> None:
        handler = self._begin(path, call)
        if handler is None:
            call.finish(GrpcStatus.UNIMPLEMENTED, "no such method here")
        else:
            call.begin(handler)

    def _take_trailers(self, number: int, *, ends: bool) -> None:
        call = self._open.get(number)
        if call is None:
            self._frames.count()
        elif not ends or call.has_ended_sending:
            self._reset_for_fault(call, Http2Error.PROTOCOL_ERROR)
        else:
            self._half_close(call)

    def _half_close(self, call: GrpcCall) -> None:
        self._guarded(call, call.half_close)
        if not call.is_over:
            call.ends_at = min(call.ends_at, self._clock() + self._limits.stalled_seconds)

    def _guarded(self, call: GrpcCall, act: Callable[..., None], *arguments: object) -> None:
        """A fault in our own code ends one call, and no other."""
        try:
            act(*arguments)
        except Exception:
            log.exception("a call of Envoy ended by an internal error")
            self._reset(call, Http2Error.INTERNAL_ERROR)

    def _go_on(self, call: GrpcCall) -> None:
        self._guarded(call, call.go_on)

    def _ended(self, call: GrpcCall) -> None:
        self._open.pop(call.id, None)
        if self._drained is not None and not self._open:
            self._drained()

    def _reset(self, call: GrpcCall, error: Http2Error) -> None:
        if not call.is_over:
            self._output.write(reset_frame(call.id, error))
        self._drop(call)

    def _reset_for_fault(self, call: GrpcCall, error: Http2Error) -> None:
        """Its client broke a rule: that counts as a reset of its own, which it stands for (CVE-2025-8671)."""
        self._frames.count_reset()
        self._reset(call, error)

    def _drop(self, call: GrpcCall) -> None:
        self._output.forget(call)
        self._ended(call)
        if not call.is_over:
            self._guarded(call, call.gone)

    def take_reset(self, number: int) -> None:
        """A RST_STREAM frame."""
        self._frames.count_reset()
        call = self._open.get(number)
        if call is None:
            self._check_was_open(number)
        else:
            self._drop(call)

    def take_window(self, number: int, more_bytes: int) -> None:
        """A WINDOW_UPDATE frame."""
        self._frames.count()
        call = self._open.get(number)
        if not number:
            self._output.widen(more_bytes)
        elif call is None:
            self._check_was_open(number)
        else:
            call.window += more_bytes
            if not more_bytes or call.window + self._output.first_window > WINDOW_MAX:
                self._reset_for_fault(call, Http2Error.FLOW_CONTROL_ERROR)
            else:
                self._go_on(call)

    # All of them

    def go_on(self) -> None:
        """There may be room for what waits."""
        for call in list(self._open.values()):
            self._go_on(call)

    def sweep(self, now: float) -> None:
        """End those whose time is up."""
        for call in [one for one in self._open.values() if now >= one.ends_at]:
            self._guarded(call, call.finish, GrpcStatus.DEADLINE_EXCEEDED, "it took too long")

    def drain(self, drained: Callable[[], None]) -> None:
        """Begin no more; `drained` is called when none is open."""
        self._drained = drained
        if not self._open:
            drained()

    def end_all(self, ended: Callable[[], None]) -> None:
        """Their client is gone: end some at each turn of the event loop; `ended` is called when all are."""
        until = time.monotonic() + TURN_SECONDS
        while self._open:
            _, call = self._open.popitem()
            self._output.forget(call)
            self._guarded(call, call.gone)
            if time.monotonic() >= until:
                asyncio.get_running_loop().call_soon(self.end_all, ended)
                return
        ended()
