"""Sliced answer: a long response of our own, written a slice at each turn of the event loop.

Law: between two slices every other connection has its turn; a client that does not read on gets no further slice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from headway.gateway.wire.client_connection import ClientConnection


class SlicedAnswer:
    """A `PendingAnswer`. Begin it with `begin` once; the rest follows by itself."""

    def __init__(self, client: ClientConnection, slices: Iterator[bytes], content_type: bytes) -> None:
        self._client = client
        self._slices = slices
        self._content_type = content_type
        self._is_over = False
        self._is_planned = False

    def begin(self) -> None:
        """Send the head, and soon the first slice."""
        self._client.start(200, [(b"content-type", self._content_type)], None, more=True)
        self._plan()

    def client_left(self) -> None:
        """Write no more."""
        self._is_over = True

    def client_full(self) -> None:
        """Nothing to do: the next slice looks whether the client reads."""

    def client_ready(self) -> None:
        """Write on."""
        self._plan()

    def _plan(self) -> None:
        if not self._is_planned:
            self._is_planned = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._is_planned = False
        if self._is_over or not self._client.writable:
            return
        try:
            piece = next(self._slices, None)
        except Exception:
            self._is_over = True
            self._client.abort()  # the client must see that it is not whole
            raise
        if piece is None:
            self._is_over = True
            self._client.finish()
        else:
            if piece:  # an empty chunk would end the answer
                self._client.write(piece)
            self._plan()
