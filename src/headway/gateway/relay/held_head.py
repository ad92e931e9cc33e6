"""The head of a stream, held back until the stream's first byte: until then its request may go to another replica.

An engine sends the head before it begins. Once the client has it there is no way back.
"""

from __future__ import annotations

from headway.gateway.wire.messages import Headers
from headway.gateway.wire.upstream_connection import ResponseSink

_OK = 200


class HeldHead:
    """Stands between a replica's connection and the one that takes its answer (`ResponseSink`)."""

    __slots__ = ("_answer", "_head")

    def __init__(self, answer: ResponseSink) -> None:
        self._answer = answer
        self._head: tuple[int, Headers, int | None] | None = None

    def upstream_head(self, status: int, headers: Headers, length: int | None, more: bool) -> None:
        """Hold the head of an answer of which nothing has come yet; pass any other on."""
        if status == _OK and not more:
            self._head = status, headers, length
        else:
            self._answer.upstream_head(status, headers, length, more)

    def upstream_data(self, body: bytes) -> None:
        """Pass a piece on, behind the head."""
        if self._head is not None:
            self._pass_head()
        self._answer.upstream_data(body)

    def upstream_end(self, body: bytes) -> None:
        """Pass the rest on, behind the head."""
        if self._head is not None:
            self._pass_head()
        self._answer.upstream_end(body)

    def upstream_failed(self, why: str) -> None:
        """Pass it on: a head that was held back is as if it had never come."""
        self._answer.upstream_failed(why)

    def upstream_broke(self, error: Exception) -> None:
        """Pass it on."""
        self._answer.upstream_broke(error)

    def _pass_head(self) -> None:
        assert self._head is not None
        (status, headers, length), self._head = self._head, None
        self._answer.upstream_head(status, headers, length, True)
