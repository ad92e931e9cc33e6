"""TLS listener: accepts the connections of one address, and does their handshakes.

Laws: a connection counts in the limits from its first moment, not only after its handshake; a handshake ends in time.
However many come at once, all others have turns of the event loop between them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from headway.gateway.wire.shared_limits import ConnectionPlace, SharedLimits

BACKLOG = 4_096
"""Connections that wait in the kernel, on any address."""
_ACCEPTED_A_TURN = 64  # each takes some 20 us
_HANDSHAKES_A_TURN = 8  # begun; each takes a millisecond or so with an RSA key
_SHORTAGE_SECONDS = 0.25  # between two tries to accept while descriptors or memory are lacking
_LOGGED_SECONDS = 60.0  # between two log lines of that
log = logging.getLogger("headway.gateway")


@dataclass(eq=False, slots=True)
class _Accepted:
    """A connection that has no protocol yet."""

    socket: socket.socket
    place: ConnectionPlace
    ends_at: float  # seconds of the loop's clock: its handshake, at the latest
    timer: asyncio.TimerHandle | None = None  # until the first byte of its handshake
    has_transport: bool = False  # which closes the socket

    def give_up(self) -> None:
        """It will not become a connection."""
        if not self.has_transport:
            self.socket.close()
        self.place.leave()


class TlsListener:
    """One listening address; `listen`, then `close`."""

    def __init__(
        self,
        connect: Callable[[ConnectionPlace], asyncio.BaseProtocol],
        shared: SharedLimits,
        tls: ssl.SSLContext,
        handshake_seconds: float,
    ) -> None:
        """`connect` makes the protocol of a connection; `handshake_seconds` bounds a TLS handshake."""
        self._connect = connect
        self._shared = shared
        self.tls = tls  # of the handshakes from now on
        self._handshake_seconds = handshake_seconds
        self._loop = asyncio.get_running_loop()
        self.sockets: list[socket.socket] = []  # that listen
        self._silent: set[_Accepted] = set()  # that have sent nothing of their handshake
        self._greeted: deque[_Accepted] = deque()  # whose handshake can begin
        self._opening: set[asyncio.Task[None]] = set()
        self._logged_at = -math.inf

    async def listen(self, host: str, port: int) -> None:
        """Listen on all addresses of the host. Raises OSError if one cannot be listened on."""
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, kind, protocol, _, address in dict.fromkeys(found):
                self.sockets.append(socket.socket(family, kind, protocol))
                _bind(self.sockets[-1], address)
        except OSError:
            self.close()
            raise
        for one in self.sockets:
            self._loop.add_reader(one, self._accept, one)

    def close(self) -> None:
        """Accept no more, and end what is in its handshake. Connections stay."""
        for one in self.sockets:
            self._loop.remove_reader(one)
            one.close()
        self.sockets.clear()
        for accepted in list(self._silent):
            self._end_silence(accepted)
            self._greeted.append(accepted)
        for accepted in self._greeted:
            accepted.give_up()
        self._shared.handshakes -= len(self._greeted)
        self._greeted.clear()
        for task in self._opening:
            task.cancel()

    # Accepting

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTED_A_TURN):
            try:
                accepted, address = listening.accept()
            except BlockingIOError:
                return
            except (ConnectionError, InterruptedError):
                continue  # that client has left meanwhile
            except OSError as error:
                self._wait_for_descriptors(listening, error)
                return
            accepted.setblocking(False)
            self._take(accepted, self._shared.take(str(address[0])))

    def _wait_for_descriptors(self, listening: socket.socket, error: OSError) -> None:
        """Try again a little later: clients wait in the kernel meanwhile, and this loop does not spin."""
        now = self._loop.time()
        if now - self._logged_at >= _LOGGED_SECONDS:
            self._logged_at = now
            log.error("connections of clients have to wait: %s; raise this process's limit of file descriptors", error)
        self._loop.remove_reader(listening)
        self._loop.call_later(_SHORTAGE_SECONDS, self._accept_again, listening)

    def _accept_again(self, listening: socket.socket) -> None:
        if listening in self.sockets:
            self._loop.add_reader(listening, self._accept, listening)

    def _take(self, client: socket.socket, place: ConnectionPlace) -> None:
        accepted = _Accepted(client, place, self._loop.time() + self._handshake_seconds)
        if place.fault is not None and not place.may_be_told:
            accepted.give_up()
        else:
            self._await_first_byte(accepted)

    def _begin(self, accepted: _Accepted) -> None:
        task = self._loop.create_task(self._open(accepted))
        self._opening.add(task)
        task.add_done_callback(partial(self._opened, accepted))

    async def _open(self, accepted: _Accepted) -> None:
        make, seconds = partial(self._connect, accepted.place), max(0.001, accepted.ends_at - self._loop.time())
        accepted.has_transport = True
        await self._loop.connect_accepted_socket(make, accepted.socket, ssl=self.tls, ssl_handshake_timeout=seconds)

    def _opened(self, accepted: _Accepted, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            accepted.give_up()
        self._end_handshake(failed=error is not None)
        if not isinstance(error, OSError | asyncio.CancelledError | None):
            raise error

    # Handshakes. One begins with its client's first byte: who sends none costs a descriptor and little memory, and of
    # many that come at once only some have their turn, since each costs more time than anything else here.

    def _await_first_byte(self, accepted: _Accepted) -> None:
        self._shared.handshakes += 1
        self._silent.add(accepted)
        accepted.timer = self._loop.call_at(accepted.ends_at, self._stayed_silent, accepted)
        self._loop.add_reader(accepted.socket, self._first_byte, accepted)

    def _end_silence(self, accepted: _Accepted) -> None:
        self._silent.discard(accepted)
        self._loop.remove_reader(accepted.socket)
        if accepted.timer is not None:
            accepted.timer.cancel()

    def _stayed_silent(self, accepted: _Accepted) -> None:
        self._end_silence(accepted)
        accepted.give_up()
        self._end_handshake(failed=True)

    def _first_byte(self, accepted: _Accepted) -> None:
        self._end_silence(accepted)
        if not self._greeted:
            self._loop.call_soon(self._begin_handshakes)
        self._greeted.append(accepted)

    def _begin_handshakes(self) -> None:
        for _ in range(min(len(self._greeted), _HANDSHAKES_A_TURN)):
            self._begin(self._greeted.popleft())
        if self._greeted:
            self._loop.call_soon(self._begin_handshakes)

    def _end_handshake(self, *, failed: bool) -> None:
        self._shared.handshakes -= 1
        self._shared.handshakes_failed += failed


def _bind(one: socket.socket, address: object) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind(address)  # type: ignore[arg-type]
    one.listen(BACKLOG)
    one.setblocking(False)
