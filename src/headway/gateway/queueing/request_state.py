"""The state of one request in the gateway: three values, each with one writer, and the table its stage moves through.

`ArrivedRequest` is fixed at arrival. `QueuedRequest` is written by `queueing` only, `RelayedAnswer` by `relay` only
(a test reads the source for it). All rooms read them through `GatewayRequest`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from headway.domain.later_deadlines import LaterDeadlines
from headway.domain.request import Request, RequestClass
from headway.gateway.budgets.key_budget import KeyBudget
from headway.gateway.openai.answer_readers import JsonReader, SequencesReader, StreamReader
from headway.gateway.openai.endpoints import Endpoint
from headway.gateway.openai.prompt_count import NO_PROMPT, Counted, PromptFacts
from headway.gateway.openai.request_body import Body
from headway.gateway.openai.usage import Usage
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.wire.messages import HttpRequest
from headway.scheduling.lifecycle import StageTable
from headway.scheduling.scheduler import Scheduler

_NOTHING = msgspec.Raw(b"")


class RequestStage(StrEnum):
    """Where a request stands."""

    ARRIVING = "arriving"  # its prompt is counted, or it waits for its turn to enter the queue
    QUEUED = "queued"
    CONNECTING = "connecting"  # to its replica
    SENT = "sent"
    HELD = "held"  # its first try failed, and the second is to begin in a moment
    ANSWERING = "answering"  # the head of the answer came, and was passed on
    ENDED = "ended"


class RequestMove(StrEnum):
    """What happens to a request."""

    QUEUED = "queued"
    DISPATCHED = "dispatched"
    SENT = "sent"
    RECONNECTED = "reconnected"
    HELD = "held"
    TAKEN_BACK = "taken back"
    ANSWERED = "answered"
    ENDED = "ended"


REQUEST_STAGES: StageTable[RequestStage, RequestMove] = StageTable(
    {
        (RequestStage.ARRIVING, RequestMove.QUEUED): RequestStage.QUEUED,
        (RequestStage.ARRIVING, RequestMove.ENDED): RequestStage.ENDED,  # refused, or its client left
        (RequestStage.QUEUED, RequestMove.DISPATCHED): RequestStage.CONNECTING,
        (RequestStage.QUEUED, RequestMove.ENDED): RequestStage.ENDED,
        (RequestStage.CONNECTING, RequestMove.SENT): RequestStage.SENT,
        (RequestStage.CONNECTING, RequestMove.HELD): RequestStage.HELD,  # to try another replica
        (RequestStage.CONNECTING, RequestMove.ENDED): RequestStage.ENDED,
        (RequestStage.SENT, RequestMove.RECONNECTED): RequestStage.CONNECTING,  # the kept connection was just closed
        (RequestStage.SENT, RequestMove.HELD): RequestStage.HELD,
        (RequestStage.HELD, RequestMove.TAKEN_BACK): RequestStage.QUEUED,
        (RequestStage.HELD, RequestMove.ENDED): RequestStage.ENDED,
        (RequestStage.SENT, RequestMove.ANSWERED): RequestStage.ANSWERING,
        (RequestStage.SENT, RequestMove.ENDED): RequestStage.ENDED,
        (RequestStage.ANSWERING, RequestMove.ENDED): RequestStage.ENDED,
    }
)
"""Refines `scheduling.lifecycle.LIFE`: a retry is its preemption. Once the client got a byte there is no way back."""
_NEXT = REQUEST_STAGES.moves
_SMALL_BYTES = 1_024  # a body that is not worth the time to free it before its request ends
_ARRIVING = RequestStage.ARRIVING  # bound once: on Python 3.11 it takes forty times as long through its class


@dataclass(slots=True, eq=False)
class ArrivedRequest:
    """What is known of a request when it arrives; never changed, but that its body is freed in time.

    Its fields are `Final`, which mypy checks; a frozen dataclass would cost 5 us more per request.

    Attributes:
        number: counted from 1, the request's id in the scheduler.
        request_id: the client's `x-request-id`, else ours.
        http: as it was parsed.
        endpoint: the row of its path.
        body: the fields of its JSON body; None if it has none.
        body_bytes: size of the body.
        streams: whether the client asked for a stream.
        model: to which it goes; "" if it names none.
        asked_model: as the client names it: `model`, an alias of it, or a model that it is the fallback of.
        tenant: for fairness: the tenant of its key and the fairness id it named.
        payer: whose queue bounds it counts against: its key's tenant, else `tenant`. The holder of a key can name ever
            new fairness ids, but cannot change the payer.
        session: of its hints.
        deadline: time of the first token as its client wants it, seconds on the dispatcher's clock.
        later_deadlines: what its client wants after the first token, and its program; they order and refuse nothing.
        ends_by: time by which it has to end, answered or not, likewise; None without a bound.
        priority: in vLLM's sign, lower sooner.
        hinted_output_tokens: of its hints.
        service_tier: at which it is served; None where its client names none.
        request_class: online, or offline: it runs in what online requests leave.
        endpoints: of the replicas that it may be sent to, host:port each; () where any will do.
        never_waits: it is refused rather than queued.
        prompt: what was read of its prompt.
        arrived_at: seconds on the dispatcher's clock.
        traceparent: W3C header of our own span; None where the request is not traced.
        stored_object: id of the object it is about, which only the replica that made it knows; None without one.
        may_be_repeated: it does no harm if it is executed twice.
    """

    number: Final[int]
    request_id: Final[bytes]
    http: Final[HttpRequest]
    endpoint: Final[Endpoint]
    body: Final[Body | None]
    body_bytes: Final[int]
    streams: Final[bool]
    model: Final[str]
    tenant: Final[str]
    payer: Final[str]
    session: Final[str | None]
    deadline: Final[float | None]
    priority: Final[int]
    hinted_output_tokens: Final[int | None]
    arrived_at: Final[float]
    traceparent: Final[bytes | None]
    asked_model: Final[str] = ""
    ends_by: Final[float | None] = None
    later_deadlines: Final[LaterDeadlines | None] = None
    service_tier: Final[str | None] = None
    request_class: Final[RequestClass] = "online"
    never_waits: Final[bool] = False
    endpoints: Final[tuple[str, ...]] = ()
    prompt: Final[PromptFacts] = NO_PROMPT
    stored_object: Final[str | None] = None
    may_be_repeated: Final[bool] = True

    @property
    def is_renamed(self) -> bool:
        """Whether its client gave another name than that of the model to which it goes."""
        return bool(self.asked_model) and self.asked_model != self.model

    def let_go_of_body(self) -> None:
        """Free its body, which is not sent again: the client has the beginning of an answer."""
        if self.body_bytes <= _SMALL_BYTES:
            return
        self.http.body = b""
        self.http.fields = None
        if self.body is not None:
            for name in self.body.raw_fields:
                setattr(self.body, name, _NOTHING)


class QueueKey(NamedTuple):
    """Which requests share a queue.

    `kind` keeps embeddings apart: their lengths teach nothing about generation. `home` is the replica that alone can
    serve them, because it stored what they are about; "" where any may. `is_over_budget`: their keys have used up their
    budgets, and they are served after all others. `replicas` are those that list its adapter, by name, where others
    have the base model without it; () where all do.
    """

    model: str
    kind: str
    home: str = ""
    is_over_budget: bool = False
    replicas: tuple[str, ...] = ()

    def may_be_at(self, replica: str) -> bool:
        """Whether its requests may be sent to the replica of this name, if it has the model."""
        return self.home in ("", replica) and (not self.replicas or replica in self.replicas)


class PromptSize(NamedTuple):
    """How long a prompt is.

    Attributes:
        tokens: of the whole prompt.
        cached_tokens: those that its replica is expected to have in its prefix cache.
        counted: what was counted; None where `tokens` is an estimate.
    """

    tokens: int
    cached_tokens: int
    counted: Counted | None


class QueuedRequest(Request):
    """A request as the scheduler keeps it, and all that queueing decides about it. Written by `queueing` only.

    Attributes:
        arrived: what is known of it from its arrival.
        counted: see `PromptSize`.
        queue_key: its queue; None before it enters one.
        entry: which request to enter its queue it was, counted from 1.
        came_in_outage: no healthy replica could serve it when it came, and it waits since.
        work: expected work when it entered its queue, in weighted tokens (`wait_forecast`).
        rank: which dispatch of its queue it was, counted from 1; 0 while it waits.
        has_waited: it was not dispatched at the moment of its arrival.
        waiting_at_arrival: requests in its queue when it entered.
        dispatches_at_arrival: how many requests had left its queue by then.
        predicted_wait_seconds: forecast when it entered; None without one.
        drain_seconds: forecast of when the queue ahead of it will be empty; None without one.
        replica: where it was sent last.
        failed_replica: which replica a retry avoids.
        wanted_replica: where it was taken back for; it goes there if there is room, else where any may go.
        tries: how often it was sent.
        dispatched_at: when it was sent last, seconds.
        prefill_tokens_there: prompt tokens that its replica had to compute then, its own included.
        prefill_since: since when its replica computed the first of those prompts, seconds.
        confirmed_tokens: of its prompt, that its replica had confirmed to hold then.
        admitted_by: the scheduler that let it go last, which hears of its end.
        wait_explanation: why it waited, in words.
        budget: of its key; None without one.
        charged_tokens: tokens predicted for it, as its budget counts them.
        is_debited: its budget was debited with them.
        is_over_budget: it waits, or was sent, beyond its budget.
    """

    __slots__ = (
        "admitted_by",
        "arrived",
        "budget",
        "came_in_outage",
        "charged_tokens",
        "confirmed_tokens",
        "counted",
        "dispatched_at",
        "dispatches_at_arrival",
        "drain_seconds",
        "entry",
        "failed_replica",
        "has_waited",
        "is_debited",
        "is_over_budget",
        "predicted_wait_seconds",
        "prefill_since",
        "prefill_tokens_there",
        "queue_key",
        "rank",
        "replica",
        "tries",
        "wait_explanation",
        "waiting_at_arrival",
        "wanted_replica",
        "work",
    )

    def __init__(self, arrived: ArrivedRequest, prompt: PromptSize) -> None:
        body = arrived.body
        super().__init__(
            arrived.number,
            arrived.arrived_at,
            prompt.tokens,
            tenant=arrived.tenant,
            session=arrived.session,
            max_output_tokens=body.output_tokens_max if body is not None else None,
            deadline=arrived.deadline,
            priority=arrived.priority,
            cached_prompt_tokens=prompt.cached_tokens,
            sequences=body.sequences(arrived.prompt.prompts) if body is not None else 1,
            is_offline=arrived.request_class == "offline",
            later_deadlines=arrived.later_deadlines,
        )
        self.prefix_hashes = arrived.prompt.hashes
        self.arrived = arrived
        self.counted = prompt.counted
        self.queue_key: QueueKey | None = None
        self.entry = 0
        self.came_in_outage = False
        self.work = 0.0
        self.rank = 0
        self.has_waited = False
        self.waiting_at_arrival = 0
        self.dispatches_at_arrival = 0
        self.predicted_wait_seconds: float | None = None
        self.drain_seconds: float | None = None
        self.replica: UpstreamReplica | None = None
        self.failed_replica: UpstreamReplica | None = None
        self.wanted_replica: UpstreamReplica | None = None
        self.tries = 0
        self.dispatched_at: float | None = None
        self.prefill_tokens_there = 0
        self.prefill_since = 0.0
        self.confirmed_tokens = 0
        self.admitted_by: Scheduler | None = None
        self.wait_explanation = ""
        self.budget: KeyBudget[QueuedRequest] | None = None
        self.charged_tokens = 0
        self.is_debited = False
        self.is_over_budget = False

    @property
    def hinted_output_tokens(self) -> int | None:
        """Output tokens as its client expects them; read by predictors that take hints."""
        return self.arrived.hinted_output_tokens


class RelayedAnswer:
    """The answer so far. Written by `relay` only.

    Attributes:
        status: HTTP status that the client got; 0 before.
        first_byte_at: when the replica produced something, seconds on the dispatcher's clock.
        latest_token_at: when a stream's latest token came, likewise; None before the first one, and of another answer.
        unread_pieces: parts that came of an answer without a reader.
        reader: of the answer's usage; None where the answer is neither JSON nor a stream.
        usage: tokens as the replica counted them, once the answer is whole.
    """

    __slots__ = ("first_byte_at", "latest_token_at", "reader", "status", "unread_pieces", "usage")

    def __init__(self) -> None:
        self.status = 0
        self.first_byte_at: float | None = None
        self.latest_token_at: float | None = None
        self.unread_pieces = 0
        self.reader: StreamReader | JsonReader | None = None
        self.usage: Usage | None = None

    @property
    def pieces_mark(self) -> int:
        """A number that grows with every part that comes: one that stands still is a silent replica."""
        return self.unread_pieces if self.reader is None else self.reader.pieces_mark

    @property
    def events(self) -> int:
        """Events of a stream that came so far: about its output tokens."""
        return self.reader.events if self.reader is not None else 0

    @property
    def sequence_tokens(self) -> int:
        """Of a stream of several sequences: tokens that came by now of each that has not ended; 0 of another answer."""
        return self.reader.sequence_tokens if isinstance(self.reader, SequencesReader) else 0

    @property
    def output_tokens(self) -> int:
        """As counted by the replica, else by the events that came."""
        return self.usage.output_tokens if self.usage is not None else self.events


class GatewayRequest:
    """One request inside the gateway: its three values and its stage, which `move` alone changes."""

    __slots__ = ("arrived", "queued", "relayed", "stage")

    def __init__(self, arrived: ArrivedRequest, prompt: PromptSize) -> None:
        self.arrived: Final = arrived
        self.queued: Final = QueuedRequest(arrived, prompt)
        self.relayed: Final = RelayedAnswer()
        self.stage = _ARRIVING

    def move(self, move: RequestMove) -> None:
        """Go on to the next stage. Raises ValueError if the table does not allow it."""
        # The table is looked up here, without a call; where it has no entry, its sentence says what may follow.
        self.stage = _NEXT.get((self.stage, move)) or REQUEST_STAGES.after(self.stage, move, self.arrived.number)

    def __repr__(self) -> str:
        queued, replica = self.queued, self.queued.replica
        where = f" at {replica.name}" if replica is not None else ""
        return (
            f"<request {queued.id}: {self.stage}{where}, tries={queued.tries}, status={self.relayed.status}, "
            f"model={self.arrived.model!r}, prompt_tokens={queued.prompt_tokens}>"
        )


def id_text(request_id: bytes) -> str:
    """A request's id as text, for logs, pages and JSON."""
    return request_id.decode("utf-8", "replace")
