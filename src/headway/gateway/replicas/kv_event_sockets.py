"""Sockets of KV events: the subscription to an engine's publisher, and its replay of batches that were missed.

Needs pyzmq, which is an extra: it is imported when a replica has `kv_events`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from enum import Enum, auto
from itertools import count
from typing import Any

from headway.gateway.replicas.kv_event_messages import END_OF_REPLAY, MalformedEvents, Message, read_message

_MESSAGE_BYTES_MAX = 8 << 20  # a larger one ends the connection, and is then missed
_WAITING_MAX = 1_000  # messages that wait to be read; those beyond it are dropped, and are then a gap
_RECONNECT_MS, _RECONNECT_MS_MAX = 200, 5_000
_HEARTBEAT_MS = 5_000  # so that a connection to a machine that is gone ends
_NUMBERS = count()  # of the sockets of this process
_REPLY_SECONDS = 5.0  # a publisher answers between two batches, and looks at least each 0.1 s


class Link(Enum):
    """What became of the connection."""

    UP = auto()
    DOWN = auto()
    FAILED = auto()  # what answers there is no publisher


class EventSocket:
    """The subscription to one publisher; `close` it."""

    def __init__(self, endpoint: str) -> None:
        """Connect, in the background. Raises ValueError, one sentence, if the endpoint cannot be understood."""
        import zmq  # noqa: PLC0415 - an extra
        import zmq.asyncio  # noqa: PLC0415

        self._zmq = zmq
        self._socket: Any = _context().socket(zmq.SUB)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IPV6, 1),
            (zmq.RCVHWM, _WAITING_MAX),
            (zmq.MAXMSGSIZE, _MESSAGE_BYTES_MAX),
            (zmq.RECONNECT_IVL, _RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, _RECONNECT_MS_MAX),
            (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, 2 * _HEARTBEAT_MS),
        ):
            self._socket.setsockopt(option, value)
        self._socket.subscribe(b"")
        news = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        news |= zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        self._monitor: Any = self._socket.get_monitor_socket(news, f"inproc://kv-events-{next(_NUMBERS)}")
        self._message: asyncio.Future[list[bytes]] | None = None
        self._link: asyncio.Future[list[bytes]] | None = None
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"{endpoint!r} is no address of a publisher ({error})") from None

    async def next(self, seconds: float) -> Message | Link | None:
        """The next message, or news of the connection, whichever is there; None if neither comes in time.

        Raises MalformedEvents if what came is no message of KV events.
        """
        if self._message is None:
            self._message = asyncio.ensure_future(self._socket.recv_multipart())
        if self._link is None:
            self._link = asyncio.ensure_future(self._monitor.recv_multipart())
        await asyncio.wait({self._message, self._link}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._link.done():
            news, self._link = self._link.result(), None
            return self._news(news)
        if self._message.done():
            frames, self._message = self._message.result(), None
            return read_message(frames)
        return None

    def _news(self, frames: list[bytes]) -> Link:
        zmq, event = self._zmq, int.from_bytes(frames[0][:2], "little")
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            return Link.UP
        return Link.DOWN if event == zmq.EVENT_DISCONNECTED else Link.FAILED

    def close(self) -> None:
        """Read no more."""
        for waiting in (self._message, self._link):
            if waiting is not None:
                waiting.cancel()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)


async def replayed(endpoint: str, start: int) -> AsyncGenerator[Message | None, None]:
    """The batches from number `start` on that the engine still has, in order; None at their end.

    It ends without that None if the engine says nothing for five seconds, or what it says is no replay.
    """
    import zmq  # noqa: PLC0415 - an extra

    socket: Any = _context().socket(zmq.DEALER)  # REQ takes one reply only
    for option, value in ((zmq.LINGER, 0), (zmq.IPV6, 1), (zmq.RCVHWM, 10 * _WAITING_MAX)):
        socket.setsockopt(option, value)
    socket.setsockopt(zmq.MAXMSGSIZE, _MESSAGE_BYTES_MAX)
    try:
        socket.connect(endpoint)
        await asyncio.wait_for(socket.send_multipart([b"", start.to_bytes(8, "big")]), _REPLY_SECONDS)
        while True:
            frames: Sequence[bytes] = await asyncio.wait_for(socket.recv_multipart(), _REPLY_SECONDS)
            message = read_message(frames)
            if message.sequence == END_OF_REPLAY:
                yield None
                return
            yield message
    except (TimeoutError, MalformedEvents, zmq.ZMQError):
        return
    finally:
        socket.close(0)


def _context() -> Any:
    import zmq.asyncio  # noqa: PLC0415 - an extra

    return zmq.asyncio.Context.instance()
