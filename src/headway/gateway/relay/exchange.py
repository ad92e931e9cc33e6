"""One request from a client to its end: queued, sent to a replica, its answer passed on as it comes.

Laws: a request ends once; it is tried elsewhere at most once, and never after its client was sent a byte; when the
client leaves, whatever is being done for it stops at once.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from headway.gateway.openai.endpoints import endpoint_of
from headway.gateway.openai.error_responses import REASON_HEADER, Reason, error_response
from headway.gateway.openai.request_body import Body
from headway.gateway.openai.upstream_request import (
    LOAD_HEADER,
    asks_for_load,
    hides_usage,
    upstream_request,
)
from headway.gateway.openai.usage import JsonUsageReader, StreamUsageReader, Usage
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.queued_request import QueuedRequest
from headway.gateway.replicas.load_report import read_load_header
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.wire.client_connection import ClientConnection
from headway.gateway.wire.messages import HOP_BY_HOP, Headers, HttpRequest
from headway.gateway.wire.upstream_connection import UpstreamConnection
from headway.gateway.wire.upstream_pool import is_ours
from headway.scheduling.scheduler import Scheduler

if TYPE_CHECKING:
    from headway.gateway.queueing.model_queue import ModelQueue

TRIES_MAX = 2
_TRY_ELSEWHERE = frozenset([429, 500, 502, 503, 504, 529])
_FULL = frozenset([429, 503, 529])
_UNABLE = frozenset([501, 505])  # of what was asked, which says nothing of its health
_NOT_RETURNED = frozenset([b"content-length", b"x-request-id", REASON_HEADER])


class ExchangeStage(Enum):
    """Where it is."""

    QUEUED = auto()
    CONNECTING = auto()
    SENT = auto()
    ANSWERING = auto()
    ENDED = auto()


class Dispatching(Protocol):
    """What an exchange tells the brain."""

    def now(self) -> float:
        """The clock, seconds."""

    def first_byte(self, exchange: Exchange) -> None:
        """The replica produced something."""

    def retry(self, exchange: Exchange, why: str) -> bool:
        """Take the request back to try it elsewhere; False if there is nowhere."""

    def ended(self, exchange: Exchange, outcome: Outcome, reason: Reason | None) -> None:
        """It is over, wherever it stood: its place is free."""


class Exchange:
    """See the module. `request` is what the scheduler sees; times are seconds on the dispatcher's clock."""

    __slots__ = (
        "_connecting",
        "_connection",
        "_is_stream",
        "_was_kept",
        "_watch",
        "arrived_at",
        "avoid",
        "body",
        "brain",
        "client",
        "dispatched_at",
        "dispatches_at_arrival",
        "drain_seconds",
        "endpoint",
        "first_byte_at",
        "has_waited",
        "http",
        "is_queued",
        "line",
        "model",
        "pieces",
        "pieces_seen",
        "predicted_wait_seconds",
        "replica",
        "request",
        "request_id",
        "scheduler",
        "seen_at",
        "stage",
        "status",
        "story",
        "traceparent",
        "tries",
        "usage",
        "waiting_at_arrival",
    )

    def __init__(
        self,
        brain: Dispatching,
        client: ClientConnection,
        http: HttpRequest,
        body: Body | None,
        request: QueuedRequest,
        request_id: bytes,
    ) -> None:
        self.brain = brain
        self.client = client
        self.http = http
        self.endpoint = endpoint_of(http.path)
        self.body = body
        self.request = request
        self.request_id = request_id
        self.model = body.model if body is not None else ""
        self.stage = ExchangeStage.QUEUED
        self.replica: UpstreamReplica | None = None
        self.avoid: UpstreamReplica | None = None
        self.tries = 0
        self.arrived_at = request.arrived_at
        self.dispatched_at: float | None = None
        self.first_byte_at: float | None = None
        self.predicted_wait_seconds: float | None = None
        self.drain_seconds: float | None = None
        self.status = 0
        self.usage: Usage | None = None
        self.pieces = 0  # of the answer; the sweep compares it with what it saw last, to notice silence
        self.pieces_seen = -1
        self.seen_at = 0.0
        self.story = ""
        self.traceparent: bytes | None = None  # of our own span, where requests are traced
        self.waiting_at_arrival = 0
        self.dispatches_at_arrival = 0
        self.is_queued = False
        self.has_waited = False  # it was not sent in the moment in which it came
        self.line: ModelQueue | None = None
        self.scheduler: Scheduler | None = None  # the one that admitted it, told of its end
        self._watch: StreamUsageReader | JsonUsageReader | None = None
        self._is_stream = False
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._was_kept = False

    @property
    def streams(self) -> bool:
        """Whether the client asked for a stream."""
        return self.body is not None and bool(self.body.stream)

    @property
    def is_generation(self) -> bool:
        """Whether output tokens are what it is about; embeddings and the rest have queues of their own."""
        return self.endpoint.is_generation

    @property
    def output_tokens(self) -> int:
        """As counted by the replica, or by the events that came."""
        if self.usage is not None:
            return self.usage.output_tokens
        return self._watch.events if self._watch is not None else 0

    # To the replica

    def dispatch(self, replica: UpstreamReplica) -> None:
        """Send it; the answer comes back by itself."""
        self.replica = replica
        self.tries += 1
        self.dispatched_at = self.brain.now()
        self._send()

    def _send(self, *, anew: bool = False) -> None:
        """On a kept connection if there is one; `anew` on none that was used before."""
        assert self.replica is not None
        connection = None if anew else self.replica.pool.take()
        if connection is not None:
            self._was_kept = True
            self._write(connection)
        else:
            self._was_kept = False
            self.stage = ExchangeStage.CONNECTING
            self._connecting = asyncio.ensure_future(self._connect(self.replica))

    async def _connect(self, replica: UpstreamReplica) -> None:
        try:
            connection = await replica.pool.open()
        except (OSError, TimeoutError) as error:
            self._connecting = None
            if not is_ours(error):
                replica.failed(f"it cannot be reached: {error or 'no answer in time'}", at_once=True)
            self._failed(f"replica {replica.name} cannot be reached")
            return
        self._connecting = None
        self._write(connection)

    def _write(self, connection: UpstreamConnection) -> None:
        self.stage = ExchangeStage.SENT
        self._connection = connection
        assert self.replica is not None
        connection.send(upstream_request(self, self.replica), self)

    # From the replica

    def upstream_head(self, status: int, headers: Headers, length: int | None, more: bool) -> None:
        """Of `Sink`."""
        replica, connection = self.replica, self._connection
        assert replica is not None
        self._note_load(replica, headers)
        if status in _FULL:
            replica.refused()
        elif status >= 500 and status not in _UNABLE:
            replica.failed(f"it answered with status {status}")
        if status in _TRY_ELSEWHERE and self.tries < TRIES_MAX and self._try_elsewhere(f"status {status}"):
            if connection is not None:
                connection.drop()
            return
        self.status = status
        self.stage = ExchangeStage.ANSWERING
        named = dict(headers)
        kind = named.get(b"content-type", b"").partition(b";")[0].strip().lower()
        encoded = b"content-encoding" in named
        self._is_stream = kind == b"text/event-stream" and not encoded
        if self._is_stream:
            self._watch = StreamUsageReader(hide_usage=hides_usage(self, replica), fields=self.endpoint.usage)
            length = None
        elif kind == b"application/json" and not encoded:
            self._watch = JsonUsageReader(self.endpoint.usage)
        forwarded = [
            (name, value)
            for name, value in headers
            if name not in HOP_BY_HOP
            and name not in _NOT_RETURNED
            and not (name == LOAD_HEADER and asks_for_load(self, replica))
        ]
        self.client.start(status, [*forwarded, *self._our_headers(replica)], length, more=more)

    def _our_headers(self, replica: UpstreamReplica) -> Headers:
        waited = ((self.dispatched_at or self.arrived_at) - self.arrived_at) * 1000
        return [
            (b"x-request-id", self.request_id),
            (b"x-headway-replica", replica.name.encode("latin-1", "replace")),
            (b"x-headway-queue-ms", b"%d" % waited),
        ]

    def upstream_data(self, body: bytes) -> None:
        """Of `Sink`: the path of every token."""
        self.pieces += 1
        if self.first_byte_at is None and (not self._is_stream or b"data:" in body):
            self._first_byte()
        watch = self._watch
        if watch is not None:
            body = watch.pass_on(body)
            if not body:
                return
        self.client.write(body)

    def upstream_end(self, body: bytes) -> None:
        """Of `Sink`."""
        self._connection = None
        watch = self._watch
        if watch is not None:
            body = (watch.pass_on(body) if body else body) + watch.rest()
            self.usage = watch.usage
        self.client.write_last(body)
        if self.replica is not None and self.status < 500:
            self.replica.worked(is_generation=self.is_generation)
        if self.first_byte_at is None:
            self._first_byte()
        self.stage = ExchangeStage.ENDED
        self.brain.ended(self, Outcome.COMPLETED if self.status < 500 else Outcome.FAILED, None)
        self.client.finish()

    def upstream_failed(self, why: str) -> None:
        """Of `Sink`."""
        connection, self._connection = self._connection, None
        replica = self.replica
        assert replica is not None
        if self.stage is ExchangeStage.SENT and self._was_kept and connection is not None and connection.answered:
            self._send(anew=True)  # it had closed a kept connection at that moment, which says nothing of its health
            return
        replica.failed(why)
        self._failed(f"replica {replica.name} failed: {why}")

    def gave_up(self, why: str) -> None:
        """The replica took too long."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop()
        if self.replica is not None:
            self.replica.failed(why)
        self._failed(why, Reason.REPLICA_TIMEOUT)

    def _failed(self, why: str, reason: Reason = Reason.REPLICA_FAILED) -> None:
        if self.stage is ExchangeStage.ENDED:
            return
        if self.stage is not ExchangeStage.ANSWERING:
            if self.tries < TRIES_MAX and self._try_elsewhere(why):
                return
            status = 504 if reason is Reason.REPLICA_TIMEOUT else 502
            self.answer_error(status, why, reason, Outcome.FAILED)
            return
        if self._watch is not None and not self._watch.events:
            self.usage = None
        self.stage = ExchangeStage.ENDED
        self.brain.ended(self, Outcome.FAILED, reason)
        if self._is_stream:
            self.client.write(self.endpoint.stream_error(why, reason))
            self.client.finish()
        else:
            self.client.abort()

    def answer_error(
        self, status: int, message: str, reason: Reason, outcome: Outcome, retry_seconds: float | None = None
    ) -> None:
        """End it with an error of ours; nothing was sent to the client before."""
        self.stage = ExchangeStage.ENDED
        self.status = status
        self.brain.ended(self, outcome, reason)
        response = error_response(status, message, reason, retry_seconds=retry_seconds)
        headers = (*response.headers, (b"x-request-id", self.request_id))
        self.client.respond(type(response)(status, response.body, response.content_type, headers))

    def _try_elsewhere(self, why: str) -> bool:
        self.avoid = self.replica
        stage, self.stage = self.stage, ExchangeStage.QUEUED
        connection, self._connection = self._connection, None
        if self.brain.retry(self, why):
            return True
        self.stage, self._connection = stage, connection
        return False

    def _first_byte(self) -> None:
        self.first_byte_at = self.brain.now()
        self.brain.first_byte(self)

    def _note_load(self, replica: UpstreamReplica, headers: Headers) -> None:
        said = next((value for name, value in headers if name == LOAD_HEADER), None)
        report = read_load_header(said) if said is not None else None
        if report is not None:
            replica.spoke(report)

    # From the client

    def client_left(self) -> None:
        """Of `Answering`."""
        if self.stage is ExchangeStage.ENDED:
            return
        if self._connecting is not None:
            self._connecting.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop()
        self.stage = ExchangeStage.ENDED
        self.brain.ended(self, Outcome.CANCELLED, None)

    def client_full(self) -> None:
        """Of `Answering`."""
        if self._connection is not None:
            self._connection.pause()

    def client_ready(self) -> None:
        """Of `Answering`."""
        if self._connection is not None:
            self._connection.resume()

    def produced(self) -> int:
        """Output tokens so far, as far as events tell."""
        return self._watch.events if self._watch is not None else 0


def id_text(request_id: bytes) -> str:
    """A request's id where people read it."""
    return request_id.decode("utf-8", "replace")
