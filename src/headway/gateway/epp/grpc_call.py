"""One call of gRPC: a stream of HTTP/2 whose data are messages, each after five bytes that say how long it is.

Laws: the handler hears each message once, in order, then once that no more will come. Nothing is sent beyond the
windows that the client gave: what waits is taken from where it comes from only when there is room for it.
Source: gRPC over HTTP/2 (its document PROTOCOL-HTTP2).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from struct import Struct
from typing import Protocol

from headway.gateway.epp.http2_frames import PAYLOAD_MAX, data_head

MESSAGE_BYTES_MAX = 16 << 20
"""Of one message that comes. Envoy's are as large as its buffer of a connection, by default 1 MiB."""
_UNSENT_MAX = 1_000  # answers of one call that wait for its client to read; an Envoy's window is 16 MiB or more
_PREFIX = Struct(">BI")
_PREFIX_BYTES = 5


class GrpcStatus(IntEnum):
    """How a call ended, as its client reads it."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13


class CallHandler(Protocol):
    """What a method does with one call."""

    def came(self, message: bytes) -> None:
        """One message of the client."""

    def over(self) -> None:
        """The client sends no more, or is gone: called once, and nothing comes after it."""


class CallConnection(Protocol):
    """The connection of a call.

    Attributes:
        first_window: bytes that each call may send from its beginning.
        window: bytes that all calls may send now.
        is_writable: not too much waits to be sent already.
    """

    first_window: int
    window: int
    is_writable: bool

    def write(self, data: bytes) -> None:
        """Send these bytes, soon."""

    def wait_for_room(self, call: GrpcCall) -> None:
        """Have its `go_on` called when there may be room for its data."""

    def send_head(self, call: GrpcCall) -> None:
        """The head of its answer."""

    def send_end(self, call: GrpcCall, status: GrpcStatus, message: str) -> None:
        """Its trailers, after which it is over."""


class GrpcCall:
    """The server's side of one call.

    Attributes:
        id: of its stream.
        peer: address of its client.
        window: bytes that it may send, less the connection's `first_window`.
        credit: bytes that its client may send.
        gives_up_at: when its client gives it up, on the connection's clock.
        ends_at: when the server does: until its first message has come, that may be sooner.
        has_ended_sending: its client sends no more.
        has_head: the head of its answer was sent.
        is_over: nothing more is sent.
    """

    __slots__ = (
        "_connection",
        "_end",
        "_handler",
        "_hold",
        "_is_told",
        "_is_waiting",
        "_messages",
        "_partial",
        "_rest",
        "_unsent_bytes",
        "credit",
        "ends_at",
        "gives_up_at",
        "has_ended_sending",
        "has_head",
        "id",
        "is_over",
        "peer",
        "window",
    )

    def __init__(
        self, connection: CallConnection, number: int, peer: str, credit: int, hold: Callable[[int], bool]
    ) -> None:
        """`hold` counts bytes of messages that wait, to be whole or to be sent, and says whether there is room."""
        self._connection = connection
        self._handler: CallHandler | None = None
        self._hold = hold
        self._partial = bytearray()
        self._messages: deque[tuple[Iterator[bytes], int]] = deque()  # with their bytes, where those are there already
        self._unsent_bytes = 0  # the sum of those
        self._rest: bytes | memoryview = b""  # of the message that is being sent
        self._end: tuple[GrpcStatus, str] | None = None  # once all is sent
        self._is_waiting = False  # for room
        self._is_told = False  # the handler, that it is over
        self.id = number
        self.peer = peer
        self.window = 0
        self.credit = credit
        self.gives_up_at = self.ends_at = math.inf
        self.has_ended_sending = False
        self.has_head = False
        self.is_over = False

    # From the client

    def begin(self, handler: CallHandler) -> None:
        """Give its messages to this handler."""
        self._handler = handler

    def take(self, data: bytes) -> None:
        """Some of its data."""
        if self._partial:
            self._keep(data)
            if self._is_partial_still() or self.is_over:
                return
            data = bytes(self._partial)
            self._drop_partial()
        at, size = 0, len(data)
        while size - at >= _PREFIX_BYTES and not self.is_over:
            is_packed, length = _PREFIX.unpack_from(data, at)
            if is_packed:
                self.finish(GrpcStatus.UNIMPLEMENTED, "messages cannot be compressed here")
            elif length > MESSAGE_BYTES_MAX:
                self.finish(GrpcStatus.RESOURCE_EXHAUSTED, f"a message is above {MESSAGE_BYTES_MAX} bytes")
            elif at + _PREFIX_BYTES + length > size or self._handler is None:
                break
            else:
                self.ends_at = self.gives_up_at
                self._handler.came(data[at + _PREFIX_BYTES : at + _PREFIX_BYTES + length])
                at += _PREFIX_BYTES + length
        if at < size and not self.is_over:
            self._keep(data[at:])

    def _keep(self, data: bytes) -> None:
        self._partial += data
        if not self._hold(len(data)):
            self.finish(GrpcStatus.RESOURCE_EXHAUSTED, "too many bytes of messages that are not whole wait already")

    def _is_partial_still(self) -> bool:
        if len(self._partial) < _PREFIX_BYTES:
            return True
        is_packed, length = _PREFIX.unpack_from(self._partial)
        return not is_packed and length <= MESSAGE_BYTES_MAX and len(self._partial) < _PREFIX_BYTES + length

    def _drop_partial(self) -> None:
        self._hold(-len(self._partial))
        self._partial = bytearray()

    def half_close(self) -> None:
        """Its client sends no more."""
        self.has_ended_sending = True
        if self._partial:
            self.finish(GrpcStatus.INTERNAL, "the call ended within a message")
        self._tell()

    def gone(self) -> None:
        """Its client wants no answer any more, or its connection is lost."""
        self.is_over = True
        self._let_go()

    # To the client

    def send(self, messages: Iterable[bytes]) -> None:
        """Messages, taken one by one as there is room for them; nothing if the call is over."""
        if self.is_over:
            return
        size = sum(map(len, messages)) if isinstance(messages, list) else 0
        self._messages.append((iter(messages), size))
        self._unsent_bytes += size
        has_room = self._hold(size)
        if not self._is_waiting:
            self.go_on()
        elif len(self._messages) > _UNSENT_MAX or (size and not has_room):
            self.finish(GrpcStatus.RESOURCE_EXHAUSTED, "too many answers wait for their client to read them")

    def finish(self, status: GrpcStatus, message: str = "") -> None:
        """End it: when all is sent, or if it failed at once."""
        if self.is_over or (self._end is not None and status is GrpcStatus.OK):
            return
        self._end = (status, message)
        if status is not GrpcStatus.OK:
            self._forget_messages()
        if not self._is_waiting or status is not GrpcStatus.OK:
            self.go_on()

    def go_on(self) -> None:
        """Send what there is room for."""
        connection = self._connection
        self._is_waiting = False
        while not self.is_over:
            if not self._rest:
                message = self._next_message()
                if message is None:
                    break
                self._rest = _PREFIX.pack(0, len(message)) + message
                if len(self._rest) > PAYLOAD_MAX:
                    self._rest = memoryview(self._rest)
                if not self.has_head:
                    connection.send_head(self)
            room = min(PAYLOAD_MAX, self.window + connection.first_window, connection.window)
            if room <= 0 or not connection.is_writable:
                self._is_waiting = True
                connection.wait_for_room(self)
                return
            part, self._rest = self._rest[:room], self._rest[room:]
            self.window -= len(part)
            connection.window -= len(part)
            connection.write(data_head(len(part), self.id) + part)
        if self._end is not None and not self.is_over:
            self.is_over = True
            connection.send_end(self, *self._end)
            self._let_go()

    def _next_message(self) -> bytes | None:
        while self._messages:
            message = next(self._messages[0][0], None)
            if message is not None:
                return message
            size = self._messages.popleft()[1]
            self._unsent_bytes -= size
            self._hold(-size)
        return None

    def _forget_messages(self) -> None:
        self._hold(-self._unsent_bytes)
        self._messages.clear()
        self._unsent_bytes = 0
        self._rest = b""

    def _let_go(self) -> None:
        self._forget_messages()
        if self._partial:
            self._drop_partial()
        self._tell()

    def _tell(self) -> None:
        if not self._is_told:
            self._is_told = True
            if self._handler is not None:
                self._handler.over()
