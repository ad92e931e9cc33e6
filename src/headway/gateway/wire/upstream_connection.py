"""Connection to a replica: a request out, its answer back; llhttp finds the answer's end.

Laws: bytes after an answer's end never reach a client, and end the connection. An answer that breaks off differs from
one that ends. Nothing is sent on a connection whose last answer is not whole.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Iterator
from typing import Protocol, cast

import httptools

from headway.gateway.wire.messages import Headers
from headway.gateway.wire.read_pacing import ReadPacer

LARGE_PACKET_BYTES = 1 << 14
"""From this size on a packet waits for its turn. A token's is some 300 bytes."""
_WITH_BODY = frozenset([b"content-length", b"transfer-encoding"])


class ResponseSink(Protocol):
    """Receives an answer. After `upstream_end` or `upstream_failed` nothing more comes."""

    def upstream_head(self, status: int, headers: Headers, length: int | None, more: bool) -> None:
        """The status and the headers arrived.

        Args:
            status: of the answer.
            headers: all of them.
            length: of the body; None if only its end will tell.
            more: the body or some of it came with the head, and follows at once.
        """

    def upstream_data(self, body: bytes) -> None:
        """Some of the body arrived."""

    def upstream_end(self, body: bytes) -> None:
        """The answer is whole; `body` arrived with its end, and may be empty."""

    def upstream_failed(self, why: str) -> None:
        """The answer will never be whole."""

    def upstream_broke(self, error: Exception) -> None:
        """One of the calls above raised; the connection is gone."""


class UpstreamConnection(asyncio.Protocol):
    """A connection of the pool. `on_free` is called when it may carry the next request, `on_lost` when it is gone."""

    def __init__(
        self,
        on_free: Callable[[UpstreamConnection], None],
        on_lost: Callable[[UpstreamConnection], None],
        head_bytes: int,
        pacer: ReadPacer | None = None,
    ) -> None:
        """`head_bytes` bounds the head of an answer, and its trailers; `pacer` gives large packets their turns."""
        self._on_free = on_free
        self._on_lost = on_lost
        self._head_bytes = head_bytes
        self._sink: ResponseSink | None = None
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # of httptools; a C function, so that a token costs no Python call here
        self._parser = httptools.HttpResponseParser(self)
        self._reset()
        self.answered = 0  # whole answers so far; a fresh connection that fails is the replica's fault, a kept one not
        self.is_lost = False
        self._paused = False  # by who reads the answer
        self._pacer = pacer
        self._deferred = b""  # a large packet that waits for its turn; nothing is read meanwhile
        self._is_its_turn = False
        self._unsent: Iterator[memoryview] | None = None  # of the request
        self._is_full = False  # the transport has enough to send
        self._is_sending = False  # the next piece is planned
        self._readable: select.poll | None = None  # made when it is first asked

    def _reset(self) -> None:
        self._headers: Headers = []
        self._status = 0
        self._length: int | None = None
        self._until_eof = False
        self._head_ready = False
        self._head_passed = False
        self._complete = False
        self._whole_pieces = 0
        self._keeps_alive = False
        self._messages = 0
        self._framing_bytes = 0  # that came since the latest byte of the body: headers, trailers, chunk extensions

    def send(self, request: bytes, sink: ResponseSink, more: Iterator[memoryview] | None = None) -> None:
        """Write one whole request; its answer goes to `sink`. Of `more` a piece is written at a turn of the loop."""
        assert self._sink is None, "a connection carries one request at a time"
        self._sink = sink
        self._reset()
        self._transport.write(request)
        if more is not None:
            self._unsent = more
            self._send_more()

    def _send_more(self) -> None:
        """The next piece, unless the replica does not read on or has answered already."""
        self._is_sending = False
        if self._unsent is None or self._is_full or self._sink is None or self.is_lost:
            return
        piece = next(self._unsent, None)
        if piece is None:
            self._unsent = None
            return
        self._transport.write(piece)
        self._is_sending = True
        asyncio.get_running_loop().call_soon(self._send_more)

    def pause_writing(self) -> None:
        """The replica reads more slowly than it is sent to."""
        self._is_full = True

    def resume_writing(self) -> None:
        """It has read on."""
        self._is_full = False
        if not self._is_sending:
            self._send_more()

    def drop(self) -> None:
        """Abandon the answer: the connection ends, so the replica stops computing."""
        self._sink = None
        self._transport.abort()

    def close(self) -> None:
        """End an idle connection."""
        self._transport.close()

    def pause(self) -> None:
        """Read no more for now."""
        if not self.is_lost and not self._paused:
            self._paused = True
            if not self._deferred:
                self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if not self.is_lost and self._paused:
            self._paused = False
            if not self._deferred:
                self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing came after the last answer: neither bytes, which no request asked for, nor its end."""
        if self.is_lost:
            return False
        if self._readable is None:
            self._readable = select.poll()
            self._readable.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not self._readable.poll(0)

    def data_received(self, data: bytes) -> None:  # noqa: PLR0912 - no further call for each token
        """Parse, and pass on what came: the path of every token."""
        sink = self._sink
        if sink is None:
            self._transport.abort()  # no request is open
            return
        if (len(data) >= LARGE_PACKET_BYTES or self._deferred) and self._must_wait(data):
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if not self._complete:
                self._fail("it switched protocols without being asked")
                return
        except httptools.HttpParserError as error:
            if not self._complete:
                self._fail(f"its answer is not valid HTTP/1.1: {error.__context__ or error}")
                return
        try:
            if self._head_ready:
                if not 200 <= self._status <= 599:
                    self._fail(f"its answer has the invalid status {self._status:03}")
                    return
                if self._framing_bytes + len(data) > self._head_bytes < _size_of(self._headers):
                    self._fail(f"the headers of its answer are longer than {self._head_bytes} bytes")
                    return
                self._head_ready, self._head_passed = False, True
                sink.upstream_head(self._status, self._headers, self._length, bool(self._pieces) or self._complete)
                if self._sink is not sink:
                    return  # it was dropped: the request goes to another replica
            pieces = self._pieces
            if self._complete:
                self._end()
            elif pieces:
                self._framing_bytes = 0
                body = pieces.pop() if len(pieces) == 1 else self._body()
                sink.upstream_data(body)
            else:
                self._framing_bytes += len(data)
                if self._framing_bytes > self._head_bytes:
                    self._fail(f"the headers or trailers of its answer are longer than {self._head_bytes} bytes")
        except Exception as error:
            self._broke(sink, error)

    def _must_wait(self, data: bytes) -> bool:
        """Whether a large packet is kept for another turn of the loop, for others of the replica came in this one."""
        if self._deferred:
            self._deferred += data  # TLS may still hand on what it had decrypted
            return True
        if self._is_its_turn or self._pacer is None or self._pacer.may_read():
            return False
        self._deferred = data
        if not self._paused:
            self._transport.pause_reading()
        self._pacer.wait(self._read_deferred)
        return True

    def _read_deferred(self) -> None:
        """It is the turn of the packet that waits, unless it was read when the connection was lost."""
        data, self._deferred = self._deferred, b""
        if not data:
            return
        self._is_its_turn = True
        try:
            self.data_received(data)
        finally:
            self._is_its_turn = False
        if not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        """The replica closed."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; that ends an answer without a length."""
        self._read_deferred()
        self.is_lost = True
        del self._parser  # they name each other
        self._on_lost(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        try:
            if self._head_passed and self._until_eof and exc is None:
                sink.upstream_end(b"")
            else:
                where = "in the middle of its answer" if self._head_passed else "before its answer"
                sink.upstream_failed(f"it closed the connection {where}")
        except Exception as error:
            self._broke(sink, error)

    # httptools

    def on_message_begin(self) -> None:
        """A message begins (httptools); also called when bytes follow an answer's end."""
        self._messages += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header (httptools); trailers are dropped."""
        if not self._head_ready and not self._head_passed and not self._complete:
            self._headers.append((name.lower(), value.rstrip(b" \t")))  # the parser leaves blanks

    def on_headers_complete(self) -> None:
        """The head is whole (httptools)."""
        if self._complete:
            return
        self._status = self._parser.get_status_code()
        if 100 <= self._status < 200:
            if not _WITH_BODY.isdisjoint(name for name, _ in self._headers):
                raise ValueError("an interim answer has no body (RFC 9110, section 15.2)")  # the parser would read one
            self._headers = []
            return
        names = dict(self._headers)
        length = names.get(b"content-length")
        if self._status in (204, 304):
            self._length = 0
        elif b"transfer-encoding" in names:  # of several codings the last one frames
            self._until_eof = not names[b"transfer-encoding"].strip().lower().endswith(b"chunked")
        else:
            self._length = None if length is None else int(length)
            self._until_eof = length is None
        self._head_ready = True

    def on_message_complete(self) -> None:
        """The message is whole (httptools)."""
        if not self._complete and not 100 <= self._status < 200:
            self._complete = True
            self._whole_pieces = len(self._pieces)
            self._keeps_alive = self._parser.should_keep_alive()  # known only now

    # Handing on

    def _body(self) -> bytes:
        """The body's bytes since the last call."""
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return body

    def _end(self) -> None:
        """The answer is whole: the connection may be used again, unless either side closes it."""
        sink, self._sink = self._sink, None
        self.answered += 1
        del self._pieces[self._whole_pieces :]  # of what follows the end
        body = self._body() if self._pieces else b""
        reusable = self._messages == 1 and not self._until_eof and self._keeps_alive and self._unsent is None
        if reusable and not self._transport.is_closing():
            if self._paused:
                self.resume()
            self._on_free(self)
        else:
            self._transport.close()
        if sink is not None:
            sink.upstream_end(body)

    def _broke(self, sink: ResponseSink, error: Exception) -> None:
        """The sink raised: end its answer. If it had ended, the connection may serve another request already."""
        if self._sink is sink:
            self._sink = None
            self._pieces.clear()
            self._transport.abort()
        sink.upstream_broke(error)

    def _fail(self, why: str) -> None:
        sink, self._sink = self._sink, None
        self._pieces.clear()
        self._transport.abort()
        if sink is not None:
            sink.upstream_failed(why)


def _size_of(headers: Headers) -> int:
    return sum([len(name) + len(value) + 4 for name, value in headers])
