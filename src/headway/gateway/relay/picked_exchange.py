"""One request's exchange behind Envoy: it names the replica, and Envoy carries the bytes there and back.

Laws: a request ends once; it is given to one replica, because Envoy has sent it there by the time a failure shows; when
its client leaves the queue, or its stream at Envoy ends, all work for it stops at once.

Where Envoy does not show the body of an answer, neither its tokens nor whether it was whole are known. Then lengths and
costs are not learned from it, and a stream's prompt counts as computed when that is expected.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

from headway.gateway.openai.answer_readers import StreamReader
from headway.gateway.openai.error_responses import Reason
from headway.gateway.openai.stored_objects import makes_object
from headway.gateway.queueing.answer_forecast import expected_seconds
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.request_routing import reroute
from headway.gateway.queueing.request_state import GatewayRequest, RequestMove, RequestStage
from headway.gateway.relay.answer_errors import error_answer, error_event, status_of
from headway.gateway.relay.answer_headers import answer_reader, media_type, own_headers
from headway.gateway.relay.exchange import BROKE, FULL, NOT_FOUND, UNABLE
from headway.gateway.relay.token_times import TokenTimes
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.wire.messages import Headers, Response

# Bound once: on Python 3.11 a member of an enum takes forty times as long through its class.
_SENT, _ANSWERING, _ENDED = RequestStage.SENT, RequestStage.ANSWERING, RequestStage.ENDED
_MOVE_SENT, _MOVE_ANSWERED = RequestMove.SENT, RequestMove.ANSWERED
_STREAM_TYPE = b"text/event-stream"
_COMPLETED, _FAILED = Outcome.COMPLETED, Outcome.FAILED
_OF_REPLICA, _OVERFLOW = ("upstream_", "no_healthy_upstream"), "{overflow"
"""Beginnings of Envoy's response code details that blame a replica, but for Envoy's own limit (circuit breaker)."""


class ProxyStream(Protocol):
    """The side of Envoy: it does with one request what it is told."""

    def pick(self, request: GatewayRequest, replica: UpstreamReplica) -> None:
        """Send the request to this replica, or to one that may stand in for it."""

    def respond(self, response: Response) -> None:
        """Answer the request with this instead; one whose answer has begun is cut short."""


class AnswerHead(NamedTuple):
    """The head of an answer, as far as Envoy tells of it.

    Attributes:
        status: of the answer.
        headers: of the answer; only the content type where its body is not shown.
        failure: why Envoy answered itself; None where the replica did, or where Envoy does not tell.
        endpoint: host:port that it went to last; "" where Envoy does not tell.
    """

    status: int
    headers: Headers
    failure: str | None = None
    endpoint: str = ""


class PickedExchange:
    """The relay of one request behind Envoy: a `Relay` for the dispatcher."""

    __slots__ = (
        "__weakref__",
        "_dispatcher",
        "_is_of_envoy",
        "_is_stream",
        "_prefill",
        "_reads",
        "_reason",
        "_stream",
        "_token_times",
        "request",
    )

    def __init__(
        self, request: GatewayRequest, stream: ProxyStream, dispatcher: Dispatcher, *, reads_answer: bool
    ) -> None:
        """`reads_answer`: Envoy shows the body of the answer."""
        self.request = request
        self._reads = reads_answer
        self._is_of_envoy = False  # the answer: no replica gave it
        self._is_stream = False
        self._token_times: TokenTimes | None = None  # of a stream that is shown
        self._stream = stream
        self._dispatcher = dispatcher
        self._prefill: asyncio.TimerHandle | None = None
        self._reason: Reason | None = None

    def __repr__(self) -> str:
        return f"<picked exchange of {self.request!r}>"

    # From the dispatcher

    def dispatch(self, replica: UpstreamReplica) -> None:
        """Name the replica to Envoy."""
        self.request.move(_MOVE_SENT)
        self._stream.pick(self.request, replica)
        self.request.arrived.let_go_of_body()

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error; nothing was sent to the client before."""
        self._answer_error(refusal, Outcome.REFUSED)

    def cut_off(self, refusal: Refusal) -> None:
        """End the request now: with this refusal, or by cutting an answer that has begun."""
        if self.request.stage is not _ENDED:
            was_sent = self.request.stage in (_SENT, _ANSWERING)
            self._answer_error(refusal, _FAILED if was_sent else Outcome.REFUSED)

    def break_off(self) -> None:
        """End the request after an internal error: answer 500, or cut the answer short."""
        if self.request.stage is not _ENDED:
            self._answer_error(Refusal(500, BROKE, Reason.INTERNAL_ERROR), _FAILED)

    def withdraw(self, destination: UpstreamReplica) -> bool:
        """False: Envoy has sent it to its replica already."""
        return False

    def check_silence(self, now: float) -> None:
        """Give up on a replica whose answer has not begun for too long; once it has, Envoy alone sees its silence."""
        bound, dispatched_at = self._dispatcher.settings.health.first_byte_seconds, self.request.queued.dispatched_at
        if self.request.stage is _SENT and now - (dispatched_at or now) >= bound:
            why = f"the replica did not answer within {bound:g} s"
            self._replica().failed(why)
            self._answer_error(Refusal(status_of(Reason.REPLICA_TIMEOUT), why, Reason.REPLICA_TIMEOUT), _FAILED)

    def _answer_error(self, refusal: Refusal, outcome: Outcome) -> None:
        if self.request.stage is not _ANSWERING:
            self.request.relayed.status = refusal.status
        self._end(outcome, refusal.reason)
        self._stream.respond(error_answer(self.request, refusal))

    # From Envoy

    def answered(self, head: AnswerHead) -> Headers:
        """The answer begins; returns the headers that its client is to get besides."""
        if self.request.stage is not _SENT:
            return []
        replica, relayed = self._served_by(head.endpoint), self.request.relayed
        self._judge(replica, head)
        self.request.move(_MOVE_ANSWERED)
        relayed.status = head.status
        if head.failure is None and head.status == NOT_FOUND and self.request.arrived.model:
            self._dispatcher.doubt_models()
        named = dict(reversed(head.headers))
        self._is_stream = media_type(named.get(b"content-type", b"")) == _STREAM_TYPE
        if self._reads:
            length = named.get(b"content-length", b"")
            relayed.reader = answer_reader(self.request, replica, named, int(length) if length.isdigit() else None)
            if isinstance(relayed.reader, StreamReader):
                self._token_times = TokenTimes(relayed, replica.token_latency, self._dispatcher.now)
        elif self._is_stream and head.status == 200:  # engines begin a stream before its first token
            self._assume_prefill_in(replica)
        else:
            relayed.first_byte_at = self._dispatcher.now()
            self._note_prefilled()
        return own_headers(self.request, replica, is_stream=self._is_stream)

    def shown(self, body: bytes, *, is_last: bool) -> bytes:
        """A part of the answer; returns what its client is to get for it."""
        relayed, arrived = self.request.relayed, self.request.arrived
        if self.request.stage is not _ANSWERING:
            return body
        if relayed.first_byte_at is None and (is_last or not self._is_stream or body.find(b"data:") >= 0):
            relayed.first_byte_at = self._dispatcher.now()
            if relayed.status < 300 and makes_object(arrived.http):
                self._dispatcher.object_made(self.request, body)
            self._dispatcher.first_byte(self.request)
        self._replica().made_progress()
        if relayed.reader is None:
            relayed.unread_pieces += 1
        elif body:
            body = relayed.reader.pass_on(body)
            if self._token_times is not None:
                self._token_times.came(body)
        return body + self._whole() if is_last else body

    def _whole(self) -> bytes:
        """The answer is over: learn from it. Returns what its client gets besides."""
        relayed, endpoint, replica = self.request.relayed, self.request.arrived.endpoint, self._replica()
        reader, held, fault = relayed.reader, b"", None
        if reader is not None:
            held, relayed.usage = reader.rest(), reader.usage
            if relayed.status == 200 and endpoint.is_generation:
                fault = reader.fault(endpoint.stream_end)
        if fault is not None:
            reason = Reason.REPLICA_FAILED if fault.is_of_replica or fault.is_cut else None
            if reason is not None:
                replica.failed(fault.why)
            if fault.is_cut and self._is_stream:
                why = f"replica {replica.shown_as} failed: {fault.why}"
                held += error_event(self.request, status_of(Reason.REPLICA_FAILED), why, Reason.REPLICA_FAILED)
            self._end(_FAILED, reason)
        elif relayed.status < 500 and not self._is_of_envoy:
            replica.completed(is_generation=endpoint.is_generation)
            self._end(_COMPLETED, None)
        else:
            self._end(_FAILED, self._reason)
        return held

    def _served_by(self, endpoint: str) -> UpstreamReplica:
        """The replica that answers: another one than was picked, if Envoy could not reach that."""
        picked = self._replica()
        if endpoint in ("", picked.pool.endpoint):
            return picked
        other = next((one for one in self._dispatcher.replicas if one.pool.endpoint == endpoint), None)
        if other is None:
            return picked
        picked.failed(f"Envoy went on to {other.shown_as}")
        reroute(self.request, other)
        return other

    def _judge(self, replica: UpstreamReplica, head: AnswerHead) -> None:
        if head.failure is not None:
            self._is_of_envoy = True
            if head.failure.startswith(_OF_REPLICA) and _OVERFLOW not in head.failure:
                self._reason = Reason.REPLICA_FAILED
                replica.failed(f"Envoy had no answer of it: {head.failure}")
        elif head.status in FULL:
            replica.refused()
        elif head.status >= 500 and head.status not in UNABLE:
            replica.failed(f"it answered with status {head.status}")

    def _assume_prefill_in(self, replica: UpstreamReplica) -> None:
        queued = self.request.queued
        seconds = expected_seconds(queued, 0, replica.ledger.costs)
        passed = self._dispatcher.now() - (queued.dispatched_at or 0.0)
        self._prefill = asyncio.get_running_loop().call_later(max(0.0, seconds - passed), self._note_prefilled)

    def _note_prefilled(self) -> None:
        self._prefill = None
        try:
            self._dispatcher.prefilled(self.request)
            self._dispatcher.pump()
        except Exception as error:
            self._dispatcher.contain(self, "relay", error)

    def ended(self) -> None:
        """Envoy is done with the request: its answer is over, or its client left."""
        stage = self.request.stage
        if stage is _ENDED:
            return
        if stage is not _ANSWERING:
            self._end(Outcome.CANCELLED, None)
        elif self._reads:
            self._left()
        else:
            self._passed_unread()

    def _passed_unread(self) -> None:
        self._dispatcher.counts.unread += 1
        if self.request.relayed.status < 500 and not self._is_of_envoy:
            # Not how well it did for its size, which no one saw; only that it answered.
            self._replica().completed(is_generation=False)
            self._end(_COMPLETED, None)
        else:
            self._end(_FAILED, self._reason)

    def _left(self) -> None:
        """It ended before its last part. Many clients leave at a stream's last event: these have the whole answer."""
        relayed, endpoint = self.request.relayed, self.request.arrived.endpoint
        reader = relayed.reader
        if self._reason is not None:
            self._end(_FAILED, self._reason)
        elif relayed.status == 200 and reader is not None and reader.has_passed_all(endpoint.last_event):
            relayed.usage = reader.usage
            self._replica().completed(is_generation=endpoint.is_generation)
            self._end(_COMPLETED, None)
        else:
            self._end(Outcome.CANCELLED, None)

    # As a pending answer

    def client_left(self) -> None:
        """The client is gone."""
        self.ended()

    def client_full(self) -> None:
        """Envoy alone sees how fast its client reads."""

    def client_ready(self) -> None:
        """As `client_full`."""

    def _end(self, outcome: Outcome, reason: Reason | None) -> None:
        if self._prefill is not None:
            self._prefill.cancel()
        self._dispatcher.end(self.request, outcome, reason)

    def _replica(self) -> UpstreamReplica:
        replica = self.request.queued.replica
        assert replica is not None, "only a dispatched request has a replica"
        return replica
