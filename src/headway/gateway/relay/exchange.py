"""One request's exchange: sends it to a replica and passes the answer on to its client as it comes.

Laws: a request ends once; it is tried on at most two replicas, and never again after its client was sent a byte, nor
where it may have been executed and must not be twice; when the client leaves, all work for it stops at once.
"""

from __future__ import annotations

import asyncio

from headway.gateway.openai.answer_readers import AnswerFault, StreamReader
from headway.gateway.openai.error_responses import Reason
from headway.gateway.openai.stored_objects import makes_object
from headway.gateway.queueing.counts import Outcome, RetryCause
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.engine_queues import STAY
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.request_state import GatewayRequest, RequestMove, RequestStage
from headway.gateway.relay.answer_errors import error_answer, error_event, status_of
from headway.gateway.relay.answer_headers import answer_headers, answer_reader, note_load
from headway.gateway.relay.connection_opening import opened
from headway.gateway.relay.early_stream import EarlyStream, after_keep_alives, keep_alive_of, needs_keep_alive
from headway.gateway.relay.held_head import HeldHead
from headway.gateway.relay.token_times import TokenTimes
from headway.gateway.relay.upstream_request import LOAD_HEADER, send_request
from headway.gateway.replicas.replica_state import Health
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.wire.client_connection import AnsweredClient, ClientConnection
from headway.gateway.wire.messages import Headers
from headway.gateway.wire.upstream_connection import UpstreamConnection

# Bound once: on Python 3.11 a member of an enum takes forty times as long through its class.
_MOVE_SENT, _MOVE_ANSWERED = RequestMove.SENT, RequestMove.ANSWERED
_COMPLETED, _FAILED = Outcome.COMPLETED, Outcome.FAILED
_REFUSED, _ERROR, _NO_ANSWER = RetryCause.REFUSED, RetryCause.ERROR, RetryCause.NO_ANSWER
TRIES_MAX = 2
STALE_SECONDS = 0.5
"""A kept connection that the replica closed before the request shows within a round trip; later it broke with it."""
NOT_FOUND = 404
_TRY_ELSEWHERE = frozenset([429, 500, 502, 503, 504, 529])
FULL = frozenset([429, 503, 529])
UNABLE = frozenset([501, 505])  # to do what was asked, which tells nothing of the replica's health
BROKE = "the gateway failed at this request; its log names the cause"


class Exchange:
    """The relay of one request: a `Relay` for the dispatcher, a `PendingAnswer` and a `ResponseSink` for the wire."""

    __slots__ = (
        *("__weakref__", "_client", "_connecting", "_connection", "_dispatcher", "_mark_seen", "_relayed", "_seen_at"),
        *("_sends", "_sent_at", "_suspect", "_token_times", "_was_kept", "_was_kept_open", "request"),
    )

    def __init__(self, request: GatewayRequest, client: AnsweredClient, dispatcher: Dispatcher) -> None:
        self.request = request
        self._relayed = request.relayed
        self._client: AnsweredClient = client
        self._dispatcher = dispatcher
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._was_kept = False  # the connection had carried a request before
        self._token_times: TokenTimes | None = None  # of a stream
        self._was_kept_open = False  # its client was sent a keep-alive
        self._suspect: tuple[UpstreamReplica, str] | None = None  # it answered 5xx: the next answer shows whose fault
        self._mark_seen = -1  # at the latest sweep, to notice silence
        self._seen_at = 0.0
        self._sends = 0  # after each of which the request may have been executed
        self._sent_at = 0.0

    def __repr__(self) -> str:
        return f"<exchange of {self.request!r}>"

    # To the replica

    def dispatch(self, replica: UpstreamReplica) -> None:
        """Send the request; the answer comes back by itself."""
        # A second try takes no kept connection: if that was stale, there would be no third. Nor does an only try.
        connection = replica.pool.take() if not self._sends and self.request.arrived.may_be_repeated else None
        if connection is None:
            self._connect_to(replica)
        else:
            self._was_kept = True
            self._send(connection, replica)

    def _connect_to(self, replica: UpstreamReplica) -> None:
        self._was_kept = False
        self._connecting = asyncio.ensure_future(self._connect(replica))

    async def _connect(self, replica: UpstreamReplica) -> None:
        connection = None
        try:
            connection = await opened(self.request, replica, self._dispatcher)
            self._connecting = None
            if connection is None:
                self._fail(f"replica {replica.shown_as} cannot be reached")
            else:
                self._send(connection, replica)
        except Exception as error:
            self._connecting = None
            if connection is not None:
                connection.close()
            self._dispatcher.contain(self, "dispatch", error)

    def _send(self, connection: UpstreamConnection, replica: UpstreamReplica) -> None:
        self.request.move(_MOVE_SENT)
        self._connection = connection
        self._sends += 1
        self._sent_at = self._dispatcher.now()
        # Before an engine begins it sends a stream's head, after which there is no way back.
        is_held = self.request.arrived.streams and self._dispatcher.settings.policies.rescheduling != STAY
        send_request(self.request, replica, connection, HeldHead(self) if is_held else self)

    # From the replica

    def upstream_head(self, status: int, headers: Headers, length: int | None, more: bool) -> None:
        """Judge the status: retry on another replica, or pass the head of the answer on."""
        replica, named = self._replica(), dict(headers)
        if LOAD_HEADER in named:
            note_load(replica, named[LOAD_HEADER])
        if status in FULL:
            replica.refused()
            self._sends -= 1  # it was not executed
        if status >= 500 or self._suspect is not None:
            self._judge(replica, status)
        if status in _TRY_ELSEWHERE and self._retry_elsewhere(_REFUSED if status in FULL else _ERROR):
            return
        if status == NOT_FOUND and self.request.arrived.model:
            self._dispatcher.doubt_models()
        self.request.move(_MOVE_ANSWERED)
        relayed, arrived = self._relayed, self.request.arrived
        relayed.status = status
        relayed.reader = answer_reader(self.request, replica, named, length)
        if isinstance(relayed.reader, StreamReader):
            self._token_times, length = TokenTimes(relayed, replica.token_latency, self._dispatcher.now), None
        arrived.let_go_of_body()
        self._client.start(status, answer_headers(self.request, replica, headers, named), length, more=more)

    def _judge(self, replica: UpstreamReplica, status: int) -> None:
        """Find whose failure a 5xx answer is: not the replica's if another one answers the same request so too."""
        why = f"it answered with status {status}"
        is_failure = status >= 500 and status not in UNABLE and status not in FULL
        if is_failure and self._suspect is not None:
            self._suspect = None
        elif is_failure and status in _TRY_ELSEWHERE and self._may_retry(answered=True):
            self._suspect = replica, why
        elif is_failure:
            replica.failed(why)
        elif status < 400 or status in FULL:
            self._blame_suspect()
        else:
            self._suspect = None

    def _blame_suspect(self) -> None:
        """No other replica was seen to fail at this request."""
        suspect, self._suspect = self._suspect, None
        if suspect is not None:
            replica, why = suspect
            replica.failed(why)

    def upstream_data(self, body: bytes) -> None:
        """Pass a piece of the answer on: the path of every token."""
        relayed = self._relayed
        if relayed.first_byte_at is None and (self._token_times is None or body.find(b"data:") >= 0):
            self._first_byte(body)
            if self._was_kept_open:
                body = after_keep_alives(self.request, body)
        reader = relayed.reader
        if reader is None:
            relayed.unread_pieces += 1
        elif not (body := reader.pass_on(body)):
            return
        self._client.write(body)
        if self._token_times is not None:
            self._token_times.came(body)

    def upstream_end(self, body: bytes) -> None:
        """Pass the rest of the answer on, and end the request."""
        self._connection = None
        relayed, endpoint, replica = self._relayed, self.request.arrived.endpoint, self._replica()
        reader, is_good = relayed.reader, relayed.status < 500
        fault, held = None, b""
        if self._was_kept_open and relayed.first_byte_at is None:
            body = after_keep_alives(self.request, body)
        if reader is not None:
            body = reader.pass_on(body) if body else body
            held = reader.rest()
            relayed.usage = reader.usage
            if relayed.status == 200 and endpoint.is_generation:
                fault = reader.fault(endpoint.stream_end)
        if fault is not None and fault.is_cut:
            self._end_cut(body, fault)
            return
        self._client.write_last(body + held)
        if self._token_times is not None:
            self._token_times.came(body)
        if fault is not None:
            is_good = False
            if fault.is_of_replica:
                replica.failed(fault.why)
        elif is_good:
            replica.completed(is_generation=endpoint.is_generation)
        if relayed.first_byte_at is None:
            self._first_byte(body)
        reason = Reason.REPLICA_FAILED if fault is not None and fault.is_of_replica else None
        self._dispatcher.end(self.request, _COMPLETED if is_good else _FAILED, reason)
        self._client.finish()

    def _end_cut(self, body: bytes, fault: AnswerFault) -> None:
        """Pass on what came of an answer that just stops, and tell the client, who could not know."""
        if body:
            self._client.write(body)
        replica = self._replica()
        replica.failed(fault.why)
        self._fail(f"replica {replica.shown_as} failed: {fault.why}")

    def upstream_failed(self, why: str) -> None:
        """Send the request once more over a new connection, retry it on another replica, or give up."""
        connection, self._connection = self._connection, None
        replica = self._replica()
        if connection is not None and self._was_stale(connection):
            # The replica closed a kept connection at that moment, which says nothing of its health.
            self.request.move(RequestMove.RECONNECTED)
            self._connect_to(replica)
            return
        replica.failed(why)
        self._fail(f"replica {replica.shown_as} failed: {why}")

    def _was_stale(self, connection: UpstreamConnection) -> bool:
        """Whether the replica had closed the connection before the request, which may then be sent once more."""
        is_open = self.request.stage is RequestStage.SENT and self._sends < TRIES_MAX
        was_used = self._was_kept and connection.answered > 0
        # Closed, that is: a replica that answers nonsense has executed it.
        return is_open and was_used and connection.is_lost and self._dispatcher.now() - self._sent_at < STALE_SECONDS

    def check_silence(self, now: float) -> None:
        """Give up on a replica that has sent nothing for too long; called about once a second."""
        health, relayed = self._dispatcher.settings.health, self._relayed
        stage = self.request.stage
        if stage in (RequestStage.CONNECTING, RequestStage.SENT) and self._replica().state.health is Health.EJECTED:
            self._retry_elsewhere(_NO_ANSWER)  # it produced nothing, and its replica is not trusted to
            stage = self.request.stage
        is_answering = stage is RequestStage.ANSWERING
        is_unbegun_stream = is_answering and self._token_times is not None and relayed.first_byte_at is None
        is_due = stage is RequestStage.SENT or is_unbegun_stream
        if is_due and now - (self.request.queued.dispatched_at or now) >= health.first_byte_seconds:
            self._give_up(f"the replica did not answer within {health.first_byte_seconds:g} s")
        elif is_answering:
            if relayed.pieces_mark != self._mark_seen or not self._client.writable:
                self._mark_seen, self._seen_at = relayed.pieces_mark, now
                self._replica().made_progress()
            elif now - self._seen_at >= health.silent_seconds:
                self._give_up(f"the replica sent nothing for {health.silent_seconds:g} s in the middle of its answer")

    def _give_up(self, why: str) -> None:
        self._stop_replica()
        self._replica().failed(why)
        self._fail(why, Reason.REPLICA_TIMEOUT)

    def _fail(self, why: str, reason: Reason = Reason.REPLICA_FAILED) -> None:
        """No answer, or no more of it, will come from this replica."""
        stage = self.request.stage
        if stage is RequestStage.ENDED:
            return
        self._blame_suspect()
        if stage is not RequestStage.ANSWERING:
            if not self._retry_elsewhere(_NO_ANSWER):
                self._answer_error(Refusal(status_of(reason), why, reason), _FAILED)
            return
        self._break_off(why, reason)

    def _break_off(self, why: str, reason: Reason) -> None:
        """End an answer that has begun: a stream with an error event, else by cutting its connection."""
        self._dispatcher.end(self.request, _FAILED, reason)
        if self._token_times is not None:
            self._client.write(error_event(self.request, status_of(reason), why, reason))
            self._client.finish()
        else:
            self._client.abort()

    def _retry_elsewhere(self, cause: RetryCause) -> bool:
        """Give the request back, for another replica. False if it may not be tried again."""
        if not self._may_retry(answered=cause is _ERROR):
            return False
        self._stop_replica()
        self._dispatcher.take_back(self.request, cause)
        return True

    def withdraw(self, destination: UpstreamReplica) -> bool:
        """Take the request back from its replica, for another one. False if it may not be sent once more."""
        is_unanswered = self.request.stage in (RequestStage.CONNECTING, RequestStage.SENT)
        may = is_unanswered and self._may_retry(answered=False)
        if may:
            self._stop_replica()
            self._dispatcher.take_back(self.request, destination=destination)
        return may

    def _may_retry(self, *, answered: bool) -> bool:
        is_left = max(self.request.queued.tries, self._sends) < TRIES_MAX
        may = not self._sends or self.request.arrived.may_be_repeated
        return is_left and may and self._dispatcher.may_try_again(self.request, answered=answered)

    def _first_byte(self, body: bytes) -> None:
        self._relayed.first_byte_at = self._dispatcher.now()
        if self._relayed.status < 300 and makes_object(self.request.arrived.http):
            self._dispatcher.object_made(self.request, body)
        self._dispatcher.first_byte(self.request)

    def _replica(self) -> UpstreamReplica:
        replica = self.request.queued.replica
        assert replica is not None, "only a dispatched request has a replica"
        return replica

    def _stop_replica(self) -> None:
        """Stop all work for the request at its replica."""
        if self._connecting is not None:
            self._connecting.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop()

    def upstream_broke(self, error: Exception) -> None:
        """Our own handling of the answer raised: end this request, and no other."""
        self._dispatcher.contain(self, "relay", error)

    def break_off(self) -> None:
        """End the request after an internal error: answer 500, or cut the answer short."""
        stage = self.request.stage
        self._stop_replica()
        if stage is RequestStage.ENDED:  # it broke while the end was sent to the client
            self._client.abort()
        elif stage is RequestStage.ANSWERING:
            self._break_off(BROKE, Reason.INTERNAL_ERROR)
        else:
            self._answer_error(Refusal(500, BROKE, Reason.INTERNAL_ERROR), _FAILED)

    # To the client

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error instead of sending the request; nothing was sent to the client before."""
        self._blame_suspect()
        self._answer_error(refusal, Outcome.REFUSED)

    def cut_off(self, refusal: Refusal) -> None:
        """End the request now: with this refusal, or an answer that has begun with an error."""
        stage = self.request.stage
        self._stop_replica()
        if stage is RequestStage.ANSWERING:
            self._break_off(refusal.message, refusal.reason)
        elif stage is not RequestStage.ENDED:
            was_sent = stage in (RequestStage.CONNECTING, RequestStage.SENT, RequestStage.HELD)
            self._answer_error(refusal, _FAILED if was_sent else Outcome.REFUSED)

    def _answer_error(self, refusal: Refusal, outcome: Outcome) -> None:
        self._relayed.status = refusal.status
        self._dispatcher.end(self.request, outcome, refusal.reason)
        self._client.respond(error_answer(self.request, refusal))

    def keep_alive(self) -> bool | None:
        """Send a stream that waits for its first token a keep-alive; None once it needs none, False while it cannot."""
        client = self._client
        if not needs_keep_alive(self.request):
            return None
        if not client.writable or client.has_unsent:
            return False
        if self.request.stage is not RequestStage.ANSWERING and isinstance(client, ClientConnection):
            client = self._client = EarlyStream(client, self.request)
        client.write(keep_alive_of(self.request))
        self._was_kept_open = True
        self._dispatcher.counts.keep_alives += 1
        return True

    # From the client

    def client_left(self) -> None:
        """Stop all work for the request. Many clients leave at a stream's last event: these have the whole answer."""
        if self.request.stage is RequestStage.ENDED:
            return
        self._stop_replica()
        outcome, reader, endpoint = Outcome.CANCELLED, self._relayed.reader, self.request.arrived.endpoint
        if self._relayed.status == 200 and reader is not None and reader.has_passed_all(endpoint.last_event):
            self._relayed.usage, outcome = reader.usage, _COMPLETED
            self._replica().completed(is_generation=endpoint.is_generation)
        self._dispatcher.end(self.request, outcome)

    def client_full(self) -> None:
        """Read no more from the replica for now."""
        if self._connection is not None:
            self._connection.pause()

    def client_ready(self) -> None:
        """Read on from the replica."""
        if self._connection is not None:
            self._connection.resume()
