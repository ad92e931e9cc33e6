"""Connection of one client: requests in, one at a time; answers out, framed by us.

Laws: an ambiguous or oversized request is answered with an error and the connection ends. Answers leave in the order
of the requests. A client that leaves, stalls or sends too slowly is noticed. What a replica sent never decides how our
bytes are framed. One file because reading and answering take turns on one state.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from io import BytesIO
from typing import Protocol, cast

import httptools

from headway.gateway.wire.head_rules import (
    body_too_long,
    headers_too_long,
    judge_head,
    judge_length,
    not_http,
    too_far_ahead,
    trailers_too_long,
)
from headway.gateway.wire.limits import WireLimits
from headway.gateway.wire.messages import (
    COMMON_NAMES,
    BodySink,
    Headers,
    HttpRequest,
    Response,
    header_lines,
    status_line,
)
from headway.gateway.wire.peer_names import peer_names
from headway.gateway.wire.shared_limits import ConnectionPlace, SharedLimits

_CHUNK_HEADS = [b"%x\r\n" % size for size in range(2_048)]  # of tokens: to format one takes three times as long
_BODILESS = (204, 304)
"""Statuses whose answers end with their head, whatever it says of a length (RFC 9112, section 6.3)."""
_NO_ROOM = "the bodies of all requests fill the memory set aside for them (`wire.bodies_bytes`)"
_TURN_SECONDS = 0.01
"""How long requests that were sent together may be answered at once; then all other connections have their turn."""
_FORGOTTEN_BYTES = 65_536
"""A body that nobody needs is read and forgotten up to this size: a new connection costs both sides more."""
_SLICE_BYTES = 8_192
"""Read at once: a long body in many of these, one after the other; of small requests some 200 at a turn of the loop."""


class PendingAnswer(Protocol):
    """An answer that is still to come; hears what its client does meanwhile."""

    def client_left(self) -> None:
        """The client is gone: stop the work for it."""

    def client_full(self) -> None:
        """The client reads more slowly than it is sent to: stop sending."""

    def client_ready(self) -> None:
        """The client has read on: send again."""


class AnsweredClient(Protocol):
    """What an answer is written to: a client's connection, or a client inside this process."""

    @property
    def writable(self) -> bool:
        """Whether it takes more now."""

    @property
    def has_unsent(self) -> bool:
        """Whether some of an answer waits for the client to read on."""

    def start(self, status: int, headers: Headers, length: int | None, *, more: bool = False) -> None:
        """The head of an answer; see `ClientConnection.start`."""

    def write(self, body: bytes) -> None:
        """Some of the answer's body (not empty)."""

    def write_last(self, body: bytes) -> None:
        """The rest of the answer's body, perhaps nothing; `finish` follows."""

    def finish(self) -> None:
        """The answer is whole."""

    def respond(self, response: Response) -> None:
        """A whole answer at once."""

    def abort(self) -> None:
        """Cut the answer short: the client must see that it is not whole."""


class RequestHandler(Protocol):
    """Answers the requests of all connections of one address."""

    def bad_request(self, status: int, message: str, headers: Headers) -> Response:
        """The response to a request that is not valid HTTP, or beyond a limit of the wire.

        `headers` are those that were read of it; of the one before it, where it was not read at all.
        """

    def refuse_head(self, request: HttpRequest) -> Response | None:
        """A response that needs no body (to a wrong API key, say); None to read on.

        What is refused in the handler's own way, whatever the body says, gets its `refusal` here and comes to `answer`.
        """

    def takes_body(self, request: HttpRequest) -> bool:
        """Whether the body is needed for the answer; else its bytes are read and forgotten."""

    def refused(self, response: Response, address: str) -> None:
        """The client at this address is sent this response instead of its request being taken."""

    def shaped(self, response: Response, path: str) -> Response:
        """The response as a client that asked this path reads it; "" where the path is not known."""

    def answer(self, request: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        """Take a whole request. None if it was answered at once."""


class ClientConnection(asyncio.Protocol):
    """The server's side of one connection; `handler` answers its requests."""

    __slots__ = (
        "_ahead",
        "_answering",
        "_answers_head",
        "_begun",
        "_body",
        "_body_bytes",
        "_chunked",
        "_clock",
        "_closes_by",
        "_closing",
        "_deadline",
        "_deferred",
        "_framing_bytes",
        "_handler",
        "_head_bytes",
        "_head_done",
        "_headers",
        "_held",
        "_held_bytes",
        "_is_going",
        "_is_resuming",
        "_keeps_body",
        "_limits",
        "_looping",
        "_offers_upgrade",
        "_opened",
        "_parsed",
        "_parser",
        "_pending",
        "_place",
        "_refusal",
        "_refused_target",
        "_refuses_head",
        "_request",
        "_shared",
        "_sink",
        "_started",
        "_target",
        "_trailer_bytes",
        "_transport",
        "address",
        "certificate_names",
        "writable",
    )

    def __init__(
        self,
        handler: RequestHandler,
        limits: WireLimits,
        opened: set[ClientConnection],
        clock: Callable[[], float],
        shared: SharedLimits | None = None,
        place: ConnectionPlace | None = None,
    ) -> None:
        """`place` is its place in `shared`, where it has one already."""
        self._handler = handler
        self._limits = limits
        self._shared = shared or SharedLimits(limits)
        self._place = place
        self._opened = opened
        self._clock = clock
        self._parser = httptools.HttpRequestParser(self)
        self._pending: list[HttpRequest] = []  # parsed and not yet begun to be answered
        self._deferred = b""  # came with too many packets of others, and is read a few turns later
        self._ahead = bytearray()  # came while a request was being answered
        self.address = ""
        self.certificate_names: tuple[str, ...] = ()
        self._is_going = False  # the server is
        self._is_resuming = False
        self._held_bytes = 0  # of bodies, as counted in `shared`
        self._refusal: Response | None = None
        self._refuses_head = False  # what is refused is a HEAD request, whose answer has no body
        self._refused_target = b""  # of the request that is refused, as far as it was read
        self._request: HttpRequest | None = None  # being answered
        self._answering: PendingAnswer | None = None
        self._chunked = False
        self._held = b""  # the head of an answer whose body follows at once: one write for both
        self._closing = False
        self._closes_by = 0.0  # when a connection that is closing ends at the latest, though its client still sends
        self._looping = False
        self._started = False  # the head of the present answer was sent
        self.writable = True
        self._begin()
        self._deadline: float | None = clock() + limits.idle_seconds

    def _begin(self) -> None:
        """Forget the request that was parsed last."""
        self._target = b""
        self._headers: Headers = []
        self._parsed: HttpRequest | None = None  # its head, once it was judged
        self._body: bytes | BytesIO = b""
        self._body_bytes = 0
        self._keeps_body = True
        self._sink: BodySink | None = None  # takes the body as it comes
        self._answers_head = False  # it is answered before its body came
        self._framing_bytes = 0  # since the latest byte of the body
        self._trailer_bytes = 0
        self._offers_upgrade = False
        self._head_bytes = 0
        self._head_done = False
        self._begun = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._limits.buffer_bytes)
        self._opened.add(self)
        if self._place is None:
            peer = transport.get_extra_info("peername")
            self._place = self._shared.take(str(peer[0]) if peer else "")
        self.address = self._place.address
        self.certificate_names = peer_names(transport.get_extra_info("peercert"))
        fault = self._place.fault
        if fault is None:
            return
        if self._place.may_be_told:
            self._refuse(self._bad_request(503, fault))
        else:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left, or we closed."""
        self._opened.discard(self)
        self._closing = True
        self._release_bodies()
        self._abandon_body()
        if self._place is not None:
            self._place.leave()
        del self._parser  # they name each other
        for request in self._pending:
            if request.sink is not None:
                request.sink.abandon()
        self._pending.clear()
        answering, self._answering = self._answering, None
        if answering is not None:
            answering.client_left()

    def eof_received(self) -> bool:
        """A client that closes its sending side has left; its place is free."""
        return False

    def pause_writing(self) -> None:
        """Too much is waiting to be sent."""
        self.writable = False
        self._deadline = self._clock() + self._limits.stalled_seconds
        if self._answering is not None:
            self._answering.client_full()

    def resume_writing(self) -> None:
        """The client has read on."""
        self.writable = True
        self._deadline = None
        if self._closing:
            self._deadline = self._gone_by()
        elif self._request is None:  # its answer was whole before it had read it
            self._deadline = self._clock() + self._limits.idle_seconds
        if self._answering is not None:
            self._answering.client_ready()
        self._serve()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, or of the next one."""
        if self._closing:
            self._forget()
            return
        if self._deferred:
            self._deferred += data  # a transport that had read it already
        elif self._request is not None or self._pending or self._ahead:
            # Reading goes on, or the client's leaving would not be noticed.
            self._keep_ahead(data)
        elif (pacer := self._shared.pacer) is None or pacer.may_read():
            self._feed(data)
        else:
            self._deferred = data
            self._transport.pause_reading()
            pacer.wait(self._read_deferred)

    def _forget(self) -> None:
        """Bytes that nobody needs have come: a client that writes its whole body before it reads gets to the answer."""
        if not self.has_unsent:
            self._deadline = min(self._clock() + self._limits.linger_seconds, self._closes_by)

    def _read_deferred(self) -> None:
        """The turn of a packet that came with too many others."""
        data, self._deferred = self._deferred, b""
        if not self._closing:
            self._transport.resume_reading()
            self._feed(data)

    # Reading

    def _keep_ahead(self, data: bytes) -> None:
        """Keep what was sent before its turn, within its bound."""
        if self._refusal is None:
            self._ahead += data
            if len(self._ahead) > self._limits.ahead_bytes:
                self._ahead = bytearray()
                self._refusal = self._bad_request(*too_far_ahead(self._limits))

    def _feed(self, data: bytes) -> None:
        """Read until a request is whole. What follows it waits: a packet may hold thousands of small requests."""
        if len(data) <= _SLICE_BYTES:
            self._feed_slice(data)
        else:
            at = 0
            while at < len(data) and not self._pending and self._refusal is None:
                self._feed_slice(data[at : at + _SLICE_BYTES])
                at += _SLICE_BYTES
            if at < len(data):
                self._keep_ahead(data[at:])
        self._serve()

    def _feed_slice(self, data: bytes) -> None:
        if not self._begun and data.lstrip(b"\r\n"):  # blank lines before a request are none of it
            self._begun = True
            self._deadline = self._clock() + self._limits.head_seconds
        was_in_body, body_bytes = self._head_done, self._body_bytes
        if not was_in_body:
            self._head_bytes += len(data)
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self._ignore_offer(offer, data)
        except httptools.HttpParserCallbackError as error:
            self.abort()
            raise error.__context__ or error from None  # a fault of ours, which says nothing of the request
        except httptools.HttpParserError as error:
            self._refusal = self._refusal or self._bad_request(*not_http(data, error))
        if self._refusal is None:
            if not self._head_done:
                if self._head_bytes > self._limits.head_bytes:
                    self._refusal = self._bad_request(*headers_too_long(self._limits))
            elif was_in_body and self._body_bytes == body_bytes:
                self._framing_bytes += len(data)
                if self._framing_bytes > self._limits.head_bytes:
                    self._refusal = self._bad_request(*trailers_too_long(self._limits))
            else:
                self._framing_bytes = 0

    def _ignore_offer(self, offer: httptools.HttpParserUpgrade, data: bytes) -> None:
        """Read on after an offer of another protocol in the head, which is ignored (RFC 9110, section 7.8).

        The parser cannot ignore it: it takes the body for that protocol. So a fresh one reads the same head without the
        offer, and goes on from there. The connection ends after the answer, for what follows the body might be of that
        protocol.
        """
        rest = memoryview(data)
        while self._offers_upgrade:  # else it is CONNECT, which was refused
            rest = rest[offer.args[0] :]
            line = self._parser.get_method(), self._target, self._parser.get_http_version().encode()
            headers = [pair for pair in self._headers if pair[0] not in (b"upgrade", b"connection")]
            connection = [value for name, value in self._headers if name == b"connection"]
            headers.append((b"connection", b", ".join([b"close", *connection])))
            head = b"%b %b HTTP/%b\r\n%b\r\n" % (*line, header_lines(headers))
            self._begin()
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(head)
            try:
                self._parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as next_offer:  # of a request pipelined behind it
                offer = next_offer

    def on_message_begin(self) -> None:
        """A request begins (httptools)."""
        self._begun = True

    def on_url(self, url: bytes) -> None:
        """The request target, perhaps in pieces (httptools)."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header (httptools). Trailers come here too, after the body, and are counted and dropped."""
        if not self._head_done:
            name = name.lower()
            self._headers.append((COMMON_NAMES.get(name, name), value.rstrip(b" \t")))  # the parser leaves blanks
            return
        self._trailer_bytes += len(name) + len(value) + 4
        if self._trailer_bytes > self._limits.head_bytes and self._refusal is None:
            self._refusal = self._bad_request(*trailers_too_long(self._limits))

    def on_headers_complete(self) -> None:
        """The head is whole (httptools): judge it before a byte of the body is kept."""
        self._head_done = True
        self._deadline = self._clock() + self._limits.body_seconds
        if self._refusal is not None:
            return
        method = self._parser.get_method()
        if self._parser.should_upgrade() and method != b"CONNECT":
            self._offers_upgrade = True
            return
        version = self._parser.get_http_version()
        request = self._parsed = HttpRequest(method, self._target, self._headers)
        request.speaks_chunked = version == "1.1"
        request.certificate_names, request.client_address = self.certificate_names, self.address
        self._refusal = self._refusal_of(request, version)
        self._refuses_head = method == b"HEAD"
        self._refused_target = request.target
        self._keeps_body = self._refusal is None and self._handler.takes_body(request)
        if self._keeps_body and request.sink is not None:
            self._sink = request.sink
            self._deadline = self._clock() + request.sink.seconds_max
            request.sink.begin(self._read_on)
        expects = request.named.get(b"expect")
        waits = expects is not None and expects.lower() == b"100-continue" and version == "1.1"
        if self._refusal is None and request.refusal is not None and (waits or not _is_short(request)):
            self._answers_head = True
            request.keep_alive = False
            self._pending.append(request)
        elif waits and self._refusal is None and self._request is None and not self._pending:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refusal_of(self, request: HttpRequest, version: str) -> Response | None:
        fault = judge_head(request, version, self._limits)
        if fault is not None:
            return self._bad_request(*fault)
        refusal = self._handler.refuse_head(request)
        if refusal is not None:
            return refusal
        fault = judge_length(request, self._limits) if request.sink is None else None
        if fault is not None:
            return self._bad_request(*fault)
        too_many = self._place.change_owner(request.owner) if self._place is not None else None
        if too_many is not None:
            return self._bad_request(429, too_many)
        length = request.named.get(b"content-length")
        is_kept = length is not None and request.sink is None and self._handler.takes_body(request)
        if is_kept and not self._shared.has_room(int(length or b"0")):
            return self._bad_request(503, _NO_ROOM)
        return None

    def on_body(self, body: bytes) -> None:
        """Some of the body (httptools)."""
        if self._refusal is not None:
            return
        self._body_bytes += len(body)
        if self._sink is not None:
            self._pass_to_sink(self._sink, body)
        elif self._body_bytes > self._limits.body_bytes:
            self._refuse_body(self._bad_request(*body_too_long(self._limits)))
        elif self._keeps_body:
            self._held_bytes += len(body)
            self._shared.body_bytes += len(body)
            held = self._body
            if not held:
                self._body = body
            elif isinstance(held, BytesIO):
                held.write(body)
            else:
                self._body = BytesIO()
                self._body.write(held)
                self._body.write(body)
            if not self._shared.has_room():
                self._refuse_body(self._bad_request(503, _NO_ROOM))

    def _pass_to_sink(self, sink: BodySink, body: bytes) -> None:
        if self._body_bytes > sink.bytes_max:
            self._refuse_body(self._bad_request(413, f"the body is longer than {sink.bytes_max} bytes"))
        elif sink.fault is not None:
            self._refuse_body(sink.fault)
        elif not sink.take(body):
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if not self._closing:
            self._transport.resume_reading()

    def _abandon_body(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.abandon()
            self._read_on()  # what still comes is read past

    def _bad_request(self, status: int, message: str) -> Response:
        headers = self._headers
        if not headers and self._request is not None:
            headers = self._request.headers
        return self._handler.bad_request(status, message, headers)

    def _refuse_body(self, refusal: Response) -> None:
        self._refusal = refusal
        self._body = b""
        self._release_bodies()
        self._abandon_body()

    def _release_bodies(self) -> None:
        """Their bytes are not kept any more."""
        self._shared.body_bytes -= self._held_bytes
        self._held_bytes = 0

    def on_message_complete(self) -> None:
        """The request is whole (httptools)."""
        if self._offers_upgrade:
            return  # it is read again without the offer
        request = self._parsed
        if self._refusal is None and request is not None and not self._answers_head:
            body = self._body
            request.body = body.getvalue() if isinstance(body, BytesIO) else body  # neither is copied
            request.keep_alive = self._parser.should_keep_alive() and not self._is_going
            self._pending.append(request)
            self._sink = None  # it has the whole body
        self._begin()

    # Answering

    def _serve(self) -> None:
        """Answer what is pending, one after the other, until one takes its time or is not read."""
        if self._looping:
            return
        self._looping = True
        try:
            until = self._clock() + _TURN_SECONDS if len(self._pending) > 1 else math.inf
            while not self._closing and self._request is None and self.writable:
                if self._pending:
                    self._answer(self._pending.pop(0))
                    if until < math.inf and self._clock() >= until:
                        self._resume_soon()
                        break
                elif self._refusal is not None:
                    self._refuse(self._refusal)
                else:
                    if self._ahead:
                        self._resume_soon()
                    break
        finally:
            self._looping = False

    def _answer(self, request: HttpRequest) -> None:
        self._request = request
        self._deadline = None
        try:
            answering = self._handler.answer(request, self)
        except Exception:
            self.abort()
            raise
        if self._request is not None:
            self._answering = answering

    def _resume_soon(self) -> None:
        if not self._is_resuming:
            self._is_resuming = True
            asyncio.get_running_loop().call_soon(self._resume)

    def _resume(self) -> None:
        """Go on with what was sent ahead, after all other connections had a turn."""
        self._is_resuming = False
        if self._closing or self._request is not None or not self.writable:
            return  # `_serve` comes back to it
        if self._pending or not self._ahead:
            self._serve()
            return
        data, self._ahead = bytes(self._ahead), bytearray()
        self._feed(data)

    def respond(self, response: Response) -> None:
        """A whole answer at once."""
        if self._request is not None:
            response = self._handler.shaped(response, self._request.path)
        head = [(b"content-type", response.content_type), *response.headers]
        self.start(response.status, head, len(response.body), more=True)
        headless = self._request is not None and self._request.method == b"HEAD"
        self.write_last(b"" if headless else response.body)
        self.finish()

    def break_off(self, response: Response) -> None:
        """End the present request after an internal error: `response` if nothing was sent yet, else a cut."""
        if self._request is None:
            return  # it was answered whole
        if self._started:
            self.abort()
        else:
            self.respond(response)

    def start(
        self, status: int, headers: Headers, length: int | None, *, more: bool = False, keeps_body: bool = False
    ) -> None:
        """The head of an answer. Connection headers are ours.

        Args:
            status: of the answer.
            headers: of the answer, none of them about the connection or the length.
            length: of its body; None if only its end will tell.
            more: some of the body follows at once, and the head leaves with it.
            keeps_body: that of the request may still be sent on; `release_body` follows.
        """
        request = self._request
        keep_alive = request is not None and request.keep_alive
        if request is not None and request.reply_headers:
            headers = [*headers, *request.reply_headers]
        if status in _BODILESS:
            framing = b""
        elif length is not None:
            framing = b"content-length: %d\r\n" % length
        elif request is not None and request.speaks_chunked:
            framing, self._chunked = b"transfer-encoding: chunked\r\n", True
        else:
            framing, keep_alive = b"", False
            if request is not None:
                request.keep_alive = False
        ending = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
        if request is not None and keep_alive and not request.speaks_chunked:
            ending = b"connection: keep-alive\r\n\r\n"  # HTTP/1.0 else waits for the connection's end
        head = b"".join([status_line(status), header_lines(headers), framing, ending])
        self._started = True
        if not keeps_body:
            self.release_body()
        if more:
            self._held = head
        else:
            self._transport.write(head)

    def release_body(self) -> None:
        """The body of the present request is not sent on any more."""
        if self._held_bytes and not self._pending:
            self._release_bodies()

    def write(self, body: bytes) -> None:
        """Some of the answer's body (not empty), sent at once."""
        if self._chunked:
            try:
                body = _CHUNK_HEADS[len(body)] + body + b"\r\n"
            except IndexError:
                body = b"%x\r\n%b\r\n" % (len(body), body)
        if self._held:
            body, self._held = self._held + body, b""
        self._transport.write(body)

    def write_last(self, body: bytes) -> None:
        """The rest of the answer's body, perhaps nothing; `finish` follows."""
        if self._chunked:
            self._chunked = False
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        if self._held:
            body, self._held = self._held + body, b""
        if body:
            self._transport.write(body)

    def finish(self) -> None:
        """The answer is whole."""
        if self._chunked or self._held:
            self.write_last(b"")
        request, self._request, self._answering = self._request, None, None
        if request is None or not request.keep_alive:
            self.close()
            return
        limits = self._limits
        self._deadline = self._clock() + (limits.idle_seconds if self.writable else limits.stalled_seconds)
        self._serve()

    def abort(self) -> None:
        """Cut the answer short: the client must see that it is not whole."""
        self._answering = None
        self._closing = True
        self._transport.abort()

    def close(self) -> None:
        """Send what is waiting, then end. Input is still read for a while, or the client might lose the answer."""
        self._closing = True
        self._closes_by = self._clock() + self._limits.body_seconds
        self._deadline = self._gone_by()
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        elif not self._head_done:  # TLS ends in both directions at once: a body that still comes is read past first
            self._transport.close()

    def _gone_by(self) -> float:
        """When a connection that is closing ends at the latest; an unread answer gets as long as any other."""
        seconds = self._limits.stalled_seconds if self.has_unsent else self._limits.linger_seconds
        return self._clock() + seconds

    @property
    def has_unsent(self) -> bool:
        """Whether some of an answer waits here for the client to read on."""
        return self._transport.get_write_buffer_size() > 0

    @property
    def is_served(self) -> bool:
        """Whether a request of it has no whole answer, perhaps because it is not whole itself, or some is unsent."""
        return self._has_request or self.has_unsent

    @property
    def _has_request(self) -> bool:
        """Whether some of a request is here that has no whole answer."""
        return self._request is not None or self._begun or bool(self._pending or self._ahead or self._deferred)

    def close_when_idle(self) -> None:
        """The server is going: answer the request that has begun to come, and take no further one."""
        self._is_going = True
        for request in [*self._pending, *([self._request] if self._request is not None else [])]:
            request.keep_alive = False
        if not self._has_request:
            self.close()

    def hang_up(self) -> None:
        """The server ends now: an answer that is not whole is cut off, one that is still leaves."""
        if self._answering is not None:
            self._closing = True
            self._transport.abort()
        else:
            self._closing = True
            self._transport.close()

    def sweep(self, now: float) -> None:
        """End what took too long; called about once a second."""
        if self._deadline is None or now < self._deadline:
            return
        self._deadline = None
        if self._closing or not self.writable:
            self._transport.abort()
        elif not self._begun:
            self.close()
        else:
            limits = self._limits
            if self._head_done:
                late = f"body of the request did not arrive within {limits.body_seconds:g} s (`wire.body_seconds`)"
            else:
                late = f"headers of the request did not arrive within {limits.head_seconds:g} s (`wire.head_seconds`)"
            self._refuse(self._bad_request(408, f"the {late}"))

    def _refuse(self, response: Response) -> None:
        self._refusal = None
        self._abandon_body()
        method, target = b"HEAD" if self._refuses_head else b"", self._refused_target
        if self._target and not self._head_done:
            target = self._target
        self._request = HttpRequest(method, target, [], keep_alive=False)
        self._handler.refused(response, self.address)
        self.respond(response)


def _is_short(request: HttpRequest) -> bool:
    """Whether a body that nobody needs is read to its end, so that the connection can go on."""
    named = request.named
    return b"transfer-encoding" not in named and int(named.get(b"content-length", b"0")) <= _FORGOTTEN_BYTES
