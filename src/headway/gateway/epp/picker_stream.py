"""One request as Envoy shows it: a stream of messages, read until the request is whole, answered when it is its turn.

The queue is the delayed answer: Envoy holds the request until it hears where it goes. Laws: each message that Envoy
waits for is answered once, in order; the stream ends with its request, and the request with its stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Protocol

from google.protobuf.message import DecodeError

from headway.gateway.api_routes import ApiRoutes
from headway.gateway.epp import ext_proc_messages as pb
from headway.gateway.epp import picker_messages as messages
from headway.gateway.epp.envoy_messages import (
    BESIDE_BODY_MAX,
    DIGITS_MAX,
    FIELDS_MAX,
    allowed_endpoints,
    answer_head,
    bytes_beside_body,
    client_of,
    read_headers,
)
from headway.gateway.epp.grpc_call import GrpcStatus
from headway.gateway.openai.allowed_paths import is_of_the_api
from headway.gateway.openai.error_responses import Reason, bad_request, error_response, not_found
from headway.gateway.openai.error_shapes import shaped
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.relay.exchange import BROKE
from headway.gateway.relay.picked_exchange import PickedExchange
from headway.gateway.relay.picked_request import picked_request
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.wire.client_connection import PendingAnswer
from headway.gateway.wire.head_rules import body_too_long, judge_head, judge_length
from headway.gateway.wire.messages import Headers, HttpRequest, Response
from headway.gateway.wire.shared_limits import SharedLimits

_NO_ROOM = "the bodies of all requests are as large as this gateway may hold, the limit `wire.bodies_bytes`; try again"
_NOT_THE_API = "through Envoy this gateway serves the API under /v1/ alone; its own paths are at its own address"
_WRONG_MODE = (
    "Envoy's external processing must have request_body_mode FULL_DUPLEX_STREAMED and request_trailer_mode SEND: "
    "in other modes a request cannot wait in the queue"
)
log = logging.getLogger("headway.gateway")


class EnvoyCall(Protocol):
    """The way to Envoy for the messages of one stream."""

    def send(self, messages: Iterable[bytes]) -> None:
        """Send messages, taken one by one as there is room for them."""

    def finish(self, status: GrpcStatus, message: str = "") -> None:
        """End the stream when they are sent, or at once if it failed."""


class PickerStream:
    """One request. It is a client of the API's routes, and the side of Envoy for its exchange."""

    def __init__(self, api: ApiRoutes, shared: SharedLimits, call: EnvoyCall, peer: str, fallbacks: int = 0) -> None:
        """A stream.

        Args:
            api: the routes that its request goes to.
            shared: what all streams hold together.
            call: takes what Envoy is told.
            peer: address of Envoy.
            fallbacks: how many further endpoints Envoy gets, for the case that it cannot reach the first.
        """
        self.address = peer
        self._api = api
        self._shared = shared
        self._call = call
        self._place = shared.take(peer)
        self._fallbacks = fallbacks
        self._http: HttpRequest | None = None
        self._came: Headers = []
        self._target = b""
        self._body: bytes | BytesIO = b""
        self._held_bytes = 0
        self._is_whole = False
        self._reads_answer = False
        self._is_answer_over = False
        self._has_trailers = False
        self._is_answered = False  # by us
        self._exchange: PickedExchange | None = None
        self._pending: PendingAnswer | None = None  # of a large body that is read before there is an exchange
        self._late: asyncio.TimerHandle | None = None

    # As the handler of a call

    def came(self, message: bytes) -> None:
        """A message of Envoy."""
        if self._place.fault is not None:
            self._refuse(503, self._place.fault)
        elif not self._is_answered:
            self._take_safely(message)

    def over(self) -> None:
        """Envoy is done with the request."""
        if self._late is not None:
            self._late.cancel()
        if self._exchange is not None:
            self._api.dispatcher.errors.guard("relay", self._exchange.ended)
        elif self._pending is not None:
            self._pending.client_left()
        self._release_body()
        self._place.leave()
        self._call.finish(GrpcStatus.OK)

    def _take_safely(self, message: bytes) -> None:
        if bytes_beside_body(message) > BESIDE_BODY_MAX:
            self._call.finish(GrpcStatus.RESOURCE_EXHAUSTED, f"a message has above {BESIDE_BODY_MAX} bytes but a body")
            return
        try:
            self._take(pb.ProcessingRequest.FromString(message))
        except DecodeError:
            self._call.finish(GrpcStatus.INVALID_ARGUMENT, "a message is no ProcessingRequest")
        except Exception as error:  # this request ends, and no other
            self._api.dispatcher.errors.contained("routes", error)
            self.break_off(error_response(500, BROKE, Reason.INTERNAL_ERROR))

    def _take(self, message: pb.ProcessingRequest) -> None:
        kind = message.WhichOneof("request")
        fault = self._fault_of(kind, message)
        if fault:
            self._call.finish(GrpcStatus.INVALID_ARGUMENT, fault)
        elif kind == "request_body":
            self._more(message.request_body)
        elif kind == "request_headers":
            self._begin(message)
        elif kind == "response_headers":
            self._answer_begins(message)
        elif kind == "response_body":
            self._pass_on(message.response_body.body, is_last=message.response_body.end_of_stream)
        elif kind == "response_trailers":
            self._pass_on_trailers()
        elif kind == "request_trailers" and not self._is_whole:
            self._has_trailers = True
            self._whole()

    def _fault_of(self, kind: str | None, message: pb.ProcessingRequest) -> str:
        """Why this message may not come now; "" if it may. A second head would make a second request of the stream."""
        if kind == "request_headers" and self._http is not None:
            return "a stream has one request, and its headers come once"
        if kind in ("request_body", "request_trailers") and self._http is None:
            return "the headers of a request come before its body"
        if kind in ("request_headers", "response_headers"):
            listed = len(getattr(message, kind).headers.headers)
            return f"a message has {listed} headers, above {FIELDS_MAX}" if listed > FIELDS_MAX else ""
        return ""

    # The request comes

    def _begin(self, message: pb.ProcessingRequest) -> None:
        headers, pseudo = read_headers(message.request_headers.headers)
        ends = message.request_headers.end_of_stream
        self._came, self._target = headers, pseudo.get(":path", b"")
        http = self._http = HttpRequest(pseudo.get(":method", b""), self._target, headers)
        self._reads_answer = message.protocol_config.response_body_mode == pb.FULL_DUPLEX_STREAMED
        http.endpoints = allowed_endpoints(message)
        self.address = client_of(http.named.get(b"x-forwarded-for")) or self.address
        if len(http.endpoints) > FIELDS_MAX:
            self._refuse(400, f"the subset of endpoints names more than {FIELDS_MAX}; name fewer")
            return
        if not ends and message.protocol_config.request_body_mode != pb.FULL_DUPLEX_STREAMED:
            log.error(_WRONG_MODE)
            self._reject(error_response(500, _WRONG_MODE, Reason.INTERNAL_ERROR))
            return
        refusal = self._refusal_of_head(http)
        if refusal is not None:
            self._reject(refusal)
        elif ends:
            self._whole()
        else:
            seconds = self._shared.limits.body_seconds
            self._late = asyncio.get_running_loop().call_later(seconds, self._too_slow)

    def _refusal_of_head(self, http: HttpRequest) -> Response | None:
        length = http.named.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > DIGITS_MAX:
            return bad_request(400, f"content-length must be a number of {DIGITS_MAX} digits at most")
        fault = judge_head(http, "1.1", self._shared.limits) or judge_length(http, self._shared.limits)
        if fault is not None:
            return bad_request(*fault)
        if not is_of_the_api(http.path):
            return not_found(_NOT_THE_API)
        refusal = self._api.refuse_head(http)
        if refusal is None and http.refusal is None and not self._shared.has_room(int(length)):
            return bad_request(503, _NO_ROOM)
        return refusal

    def _more(self, part: pb.HttpBody) -> None:
        if self._is_whole:  # Envoy may tell the end of a body above 1 MB twice (its issue 46237)
            return
        body, http = part.body, self._http
        if body and http is not None and http.refusal is None:
            self._keep(body)
        if part.end_of_stream and not self._is_answered:
            self._whole()

    def _keep(self, body: bytes) -> None:
        shared, held = self._shared, self._body
        self._held_bytes += len(body)
        shared.hold(len(body))
        if self._held_bytes > shared.limits.body_bytes:
            self._reject(bad_request(*body_too_long(shared.limits)))
        elif not shared.has_room():
            self._reject(bad_request(503, _NO_ROOM))
        elif isinstance(held, BytesIO):
            held.write(body)
        elif not held:
            self._body = body
        else:
            self._body = BytesIO()
            self._body.write(held)
            self._body.write(body)

    def _too_slow(self) -> None:
        seconds = self._shared.limits.body_seconds
        self._refuse(408, f"the body of the request did not arrive within {seconds:g} s (`wire.body_seconds`)")

    def _whole(self) -> None:
        self._is_whole = True
        if self._late is not None:
            self._late.cancel()
        http, body = self._http, self._body
        if http is not None and not self._is_answered:
            http.body = body.getvalue() if isinstance(body, BytesIO) else body  # neither is copied
            self._body = b""
            self._pending = self._api.answer(http, self)

    def _refuse(self, status: int, message: str) -> None:
        self._reject(bad_request(status, message))

    def _reject(self, response: Response) -> None:
        if not self._is_answered:
            self._api.refused(response, self.address)
            self.respond(response)

    # As a client of the API's routes

    def exchange(self, request: GatewayRequest) -> PickedExchange:
        """What carries its request."""
        reads = self._reads_answer
        self._exchange = PickedExchange(request, self, self._api.dispatcher, reads_answer=reads)
        return self._exchange

    def respond(self, response: Response) -> None:
        """A whole answer of our own; Envoy cuts one that has begun."""
        if self._is_answered:
            return
        self._is_answered = True
        self._release_body()
        http = self._http
        more = () if http is None else http.reply_headers
        path, is_headless = ("", False) if http is None else (http.path, http.method == b"HEAD")
        self._call.send([messages.instead(shaped(response, path), more, is_headless=is_headless)])

    def break_off(self, response: Response) -> None:
        """End the request after an internal error."""
        if self._exchange is not None:
            self._exchange.break_off()
        self.respond(response)

    # As the side of Envoy

    def pick(self, request: GatewayRequest, replica: UpstreamReplica) -> None:
        """Tell Envoy where the request goes, and let it go on."""
        reads = self._reads_answer
        picked = picked_request(request, replica, self._came, self._target, reads_answer=reads)
        endpoints = [replica.pool.endpoint, *self._stand_ins(request, replica)]
        self._call.send(self._go_on(messages.destination(endpoints, picked), picked.body))

    def _stand_ins(self, request: GatewayRequest, picked: UpstreamReplica) -> list[str]:
        """Endpoints that Envoy may go on to if it cannot reach the one that was picked; the least loaded first."""
        if not self._fallbacks or request.arrived.stored_object is not None:
            return []
        arrived = request.arrived
        others = [
            one
            for one in self._api.dispatcher.replicas
            if one.is_up and one is not picked and one.serves(arrived.model, arrived.endpoints)
        ]
        others.sort(key=lambda one: one.ledger.requests / one.ledger.requests_max)
        return [one.pool.endpoint for one in others[: self._fallbacks]]

    def _go_on(self, head: bytes, body: list[bytes | memoryview]) -> Iterator[bytes]:
        yield head
        if any(body):
            yield from messages.body_parts(body, ends=not self._has_trailers)
        if self._has_trailers:
            yield messages.REQUEST_TRAILERS
        self._release_body()

    def _release_body(self) -> None:
        """Its bytes are not kept any more."""
        self._shared.hold(-self._held_bytes)
        self._held_bytes = 0
        self._body = b""

    # The answer comes

    def _answer_begins(self, message: pb.ProcessingRequest) -> None:
        told: Headers = []
        if self._exchange is not None:
            told = self._exchange.answered(answer_head(message, with_all_headers=self._reads_answer))
        more = self._http.reply_headers if self._http is not None else ()
        self._call.send([messages.answer_with([*told, *more])])

    def _pass_on(self, body: bytes, *, is_last: bool) -> None:
        self._is_answer_over = is_last
        if self._exchange is not None:
            body = self._exchange.shown(body, is_last=is_last)
        self._call.send([messages.answer_part(body, ends=is_last)])

    def _pass_on_trailers(self) -> None:
        """Trailers end an answer as its last part does; what was held back of it goes before them."""
        if self._reads_answer and self._exchange is not None and not self._is_answer_over:
            held = self._exchange.shown(b"", is_last=True)
            if held:
                self._call.send([messages.answer_part(held, ends=False)])
        self._call.send([messages.ANSWER_TRAILERS])
