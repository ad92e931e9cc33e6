"""Awaited answer: its work is done in a task, beside the traffic, and it is sent when that is done.

Laws: a client that leaves hears nothing more; an exception ends the one request that it belongs to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import BinaryIO, Protocol

from headway.gateway.wire.messages import Headers, Response

_PIECE_BYTES = 1 << 18


class WritableClient(Protocol):
    """A client that a long answer is written to in pieces."""

    @property
    def writable(self) -> bool:
        """Whether it takes more now."""

    def start(self, status: int, headers: Headers, length: int | None, *, more: bool = False) -> None:
        """The head of an answer."""

    def write(self, body: bytes) -> None:
        """Some of its body."""

    def finish(self) -> None:
        """It is whole."""

    def abort(self) -> None:
        """Cut it short: the client must see that it is not whole."""

    def respond(self, response: Response) -> None:
        """A whole answer at once."""

    def break_off(self, response: Response) -> None:
        """End the request after an internal error."""


class AwaitedAnswer:
    """A `PendingAnswer`."""

    def __init__(
        self,
        client: WritableClient,
        work: Callable[[AwaitedAnswer], Awaitable[None]],
        broke: Callable[[Exception], None],
    ) -> None:
        """`work` answers through this object; `broke` hears of what it raises."""
        self._client = client
        self._is_over = False
        self._readable, self._has_left = asyncio.Event(), asyncio.Event()
        self._broke = broke
        self._task = asyncio.ensure_future(self._run(work))

    async def _run(self, work: Callable[[AwaitedAnswer], Awaitable[None]]) -> None:
        try:
            await work(self)
        except Exception as error:
            if not self._is_over:
                self._broke(error)

    def respond(self, response: Response) -> None:
        """A whole answer."""
        if not self._is_over:
            self._is_over = True
            self._client.respond(response)

    async def send(self, file: BinaryIO, size: int, headers: Headers) -> None:
        """So many bytes of a file, as fast as the client reads them. Its pieces are read in threads.

        Raises:
            OSError: the file cannot be read on; the answer is cut short, and nothing more may be said in it.
        """
        if self._is_over:
            return
        self._client.start(200, headers, size)
        try:
            await self._send_pieces(file, size)
        except OSError:
            if not self._is_over:
                self._is_over = True
                self._client.abort()
            raise

    async def _send_pieces(self, file: BinaryIO, size: int) -> None:
        client, left = self._client, size
        while left:
            piece = await asyncio.to_thread(file.read, min(_PIECE_BYTES, left))
            if not piece:
                raise OSError("the file is shorter than its entry says")
            if not client.writable:
                self._readable.clear()
                await self._readable.wait()
            if self._has_left.is_set():
                return
            client.write(piece)
            left -= len(piece)
        self._is_over = True
        client.finish()

    def client_left(self) -> None:
        """Send nothing more; what was begun is still done."""
        self._is_over = True
        self._has_left.set()
        self._readable.set()

    def client_full(self) -> None:
        """The next piece looks whether the client reads."""

    def client_ready(self) -> None:
        """Write on."""
        self._readable.set()
