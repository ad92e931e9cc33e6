"""Early stream: one whose head was sent before its replica answered, to keep the connection alive.

Its client has status 200 and `text/event-stream` from then on. So whatever is no stream becomes the last event: an
error in the shape of its API. It stands between an exchange and its connection, and does what the connection does.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from headway.gateway.openai.answer_readers import StreamReader
from headway.gateway.openai.error_responses import ErrorResponse, Reason
from headway.gateway.openai.error_shapes import shape_of
from headway.gateway.queueing.request_state import GatewayRequest, RequestStage
from headway.gateway.relay.answer_errors import error_event
from headway.gateway.relay.answer_headers import UNBUFFERED, chosen_headers
from headway.gateway.wire.client_connection import ClientConnection
from headway.gateway.wire.messages import Headers, Response

_ERROR_BYTES_MAX = 1 << 16  # of an answer that is no stream; of a longer one only the status is told
_MESSAGE_CHARACTERS_MAX = 2_000
_ANYTHING = msgspec.json.Decoder()


class EarlyStream:
    """Begun at the first keep-alive."""

    def __init__(self, client: ClientConnection, request: GatewayRequest) -> None:
        """Send the head; `write` sends it with the first bytes."""
        self._client = client
        self._request = request
        self._instead: bytearray | None = None  # an answer that is no stream
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            UNBUFFERED,  # a proxy that holds events back would make keep-alives useless
            (b"x-request-id", request.arrived.request_id),
            *chosen_headers(request),
        ]
        client.start(HTTPStatus.OK, headers, None, more=True, keeps_body=True)

    @property
    def writable(self) -> bool:
        """Whether the client reads on."""
        return self._client.writable

    @property
    def has_unsent(self) -> bool:
        """Whether some of the stream waits for the client to read on."""
        return self._client.has_unsent

    def start(self, status: int, headers: Headers, length: int | None, *, more: bool = False) -> None:
        """The replica answers; its head cannot be passed on any more."""
        self._client.release_body()
        if status != HTTPStatus.OK or not isinstance(self._request.relayed.reader, StreamReader):
            self._instead = bytearray()

    def write(self, body: bytes) -> None:
        """Some of the replica's answer."""
        if self._instead is None:
            self._client.write(body)
        elif len(self._instead) <= _ERROR_BYTES_MAX:
            self._instead += body

    def write_last(self, body: bytes) -> None:
        """The rest of it; `finish` follows."""
        if self._instead is None:
            self._client.write_last(body)
        else:
            self.write(body)
            told, self._instead = bytes(self._instead), None
            self._client.write_last(self._event_instead(told))

    def respond(self, response: Response) -> None:
        """An error in place of an answer."""
        self._client.release_body()
        if isinstance(response, ErrorResponse):
            error = response.error
            self._client.write_last(error_event(self._request, error.status, error.message, error.reason))
        self._client.finish()

    def finish(self) -> None:
        """The answer is whole, or as much of it as there will be."""
        if self._instead is not None:
            self.write_last(b"")
        self._client.finish()

    def abort(self) -> None:
        """Cut the answer short. One that is no stream becomes the last event all the same, with what came of it."""
        if self._instead is None:
            self._client.abort()
        else:
            self.finish()

    def _event_instead(self, answer: bytes) -> bytes:
        """The last event in place of a whole answer of the replica."""
        status = self._request.relayed.status
        if status < HTTPStatus.BAD_REQUEST:
            what = "the replica answered without the stream that was asked for, after this one had begun"
            return error_event(self._request, HTTPStatus.BAD_GATEWAY, what, Reason.REPLICA_FAILED)
        message = _message_in(answer) or f"the replica answered with status {status}"
        reason = Reason.MALFORMED if status < HTTPStatus.INTERNAL_SERVER_ERROR else Reason.REPLICA_FAILED
        return error_event(self._request, status, message, reason)


def _message_in(answer: bytes) -> str:
    """The message of a replica's error, in whichever shape; "" where none is found."""
    try:
        content = _ANYTHING.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError):
        return ""
    error = content.get("error", content) if isinstance(content, dict) else ""
    message = error.get("message", error.get("detail", "")) if isinstance(error, dict) else error
    return message[:_MESSAGE_CHARACTERS_MAX] if isinstance(message, str) else ""


def needs_keep_alive(request: GatewayRequest) -> bool:
    """Whether the stream of this request is silent still, and something may be written into it."""
    reader = request.relayed.reader
    if request.stage is RequestStage.ENDED or request.relayed.first_byte_at is not None:
        return False
    is_open = isinstance(reader, StreamReader) and reader.is_between_events
    return is_open or request.stage is not RequestStage.ANSWERING


def keep_alive_of(request: GatewayRequest) -> bytes:
    """What keeps a stream of this request open, and means nothing to its client."""
    return shape_of(request.arrived.http.path).keep_alive


def after_keep_alives(request: GatewayRequest, first: bytes) -> bytes:
    """The packet with a stream's first event, as a client that was sent keep-alives gets it.

    `vllm bench serve` (0.32) takes the line ends off each packet. A comment that came alone has no end for it then, and
    all events after it are part of it. An empty comment in the packet of the first event ends it there.
    """
    reader = request.relayed.reader
    if isinstance(reader, StreamReader) and reader.is_between_events and keep_alive_of(request).startswith(b":"):
        return b":\n\n" + first
    return first
