"""Router of a simulated fleet: where requests wait, and to which replica each of them goes.

It decides and knows no engine: a clock (`fleet.py`, or `reference_fleet.py` for reading) tells it what happens and asks
at every instant what is to be sent. At one instant the tokens of steps that end come first, then arrivals, then what is
sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from headway.domain.costs import ServiceCosts
from headway.domain.event import Listener
from headway.domain.replica_view import ReplicaView
from headway.domain.request import Request
from headway.policies.admission.greedy import Greedy
from headway.policies.contracts import DispatchListener, ReschedulingPolicy, RoutingPolicy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.policies.rescheduling.stay import Stay
from headway.scheduling.scheduler import Policies, Scheduler
from headway.simulator.arrivals import FOREVER, RequestFactory, why_never
from headway.simulator.fleet_members import FleetMember
from headway.simulator.fleet_rescheduling import KvLink, MoveOrder, Rescheduler
from headway.simulator.replica_ledger import Instant, ReplicaLedger, ReportedLedger
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS
from headway.simulator.trace import Trace

Queueing: TypeAlias = Literal["gateway", "replicas"]
"""Where requests wait: in one queue in front of the fleet, as in `headway serve`, or where they are sent on arrival."""

PREFILL_TOKENS_MAX = 16_384
"""Prompt tokens sent to a replica and not computed yet, at most, with one queue in front: the gateway's default."""


TRIES_MAX = 2
"""Replicas at which a request is tried, at most: the gateway's rule."""

_VIEWS = (ReplicaLedger, ReportedLedger)


@dataclass(frozen=True, slots=True)
class FleetPolicies:
    """The policies of a fleet's queues, fresh for one day.

    Attributes:
        in_front: of the queue in front of the replicas; where requests wait at the replicas, only its predictor is
            asked, for what routing expects.
        at_replica: makes those of the queue of a replica with such costs.
    """

    in_front: Policies
    at_replica: Callable[[ServiceCosts], Policies]


@dataclass(frozen=True, slots=True)
class Routing:
    """How a fleet is asked.

    Attributes:
        policy: where a request goes; fresh for each day.
        queue: where requests wait.
        signal_seconds: how often each replica reports the figures that routing reads; 0 for figures that are exact.
        rescheduling: which requests go elsewhere after that; fresh for each day.
        link: over which running requests go with their KV memory.
    """

    policy: RoutingPolicy
    queue: Queueing = "gateway"
    signal_seconds: float = 0.0
    rescheduling: ReschedulingPolicy = field(default_factory=Stay)
    link: KvLink = field(default_factory=KvLink)


class FleetRouter:
    """The router of one day.

    Attributes:
        ledgers: one for each replica, in order.
        has_news: whether there is something to send, or to ask again: a request came, or one waits and a first or a
            last token came.
        rescheduler: what sends requests elsewhere afterwards.
        report_ps: when the replicas report next, picoseconds; `FOREVER` where figures are exact.
    """

    def __init__(
        self,
        trace: Trace,
        requests: RequestFactory,
        members: Sequence[FleetMember],
        routing: Routing,
        policies: Policies,
        listeners: Sequence[Listener] = (),
    ) -> None:
        """`policies`: of the queue in front; with requests waiting at the replicas, only their predictor is asked."""
        self._requests = requests
        self._prefix_ids = trace.prefix_ids
        self._output_tokens: list[int] = trace.output_tokens.tolist()
        self._members = members
        self._policy = routing.policy
        self._listener = routing.policy if isinstance(routing.policy, DispatchListener) else None
        self._instant = Instant()
        self.ledgers = [
            ReplicaLedger(member.id, index, member.rules, member.costs, self._instant)
            for index, member in enumerate(members)
        ]
        self._reported = [ReportedLedger(ledger) for ledger in self.ledgers] if routing.signal_seconds else None
        self._signal_ps = round(routing.signal_seconds * PS_PER_SECOND)
        self.report_ps = self._signal_ps if routing.signal_seconds else FOREVER
        self.has_news = False
        self._late = routing.queue == "gateway"
        self._predictor = policies.prediction
        stock = Policies(Fcfs(), Greedy(), LatestAdmitted(), policies.prediction)
        self._scheduler = Scheduler(policies if self._late else stock, listeners=listeners)
        self._pushed: deque[tuple[int, Request]] = deque()
        self._context_tokens = min(member.rules.context_tokens for member in members)
        # Else each replica has each adapter that is asked for.
        self._asks_adapters = any(not member.rules.serves(name) for member in members for name in trace.adapters)
        self._views: list[ReplicaView] = [*(self._reported or self.ledgers)]
        self._all_up = True
        self.rescheduler = Rescheduler(
            routing.rescheduling,
            self.ledgers,
            self._views,
            self._instant,
            self._could_take,
            trace.prefix_ids,
            max(member.kv_bytes_per_token for member in members),
            routing.link,
        )
        self._failed_at: dict[int, int] = {}  # row → index of the replica that lost it; it is tried elsewhere

    # What happens

    def arrive(self, row: int, at_ps: int) -> str | None:
        """A request comes in; the reason if no replica can ever serve it."""
        now = at_ps * SECONDS_PER_PS
        self.has_news = True
        request = self._requests.make(row, now, now, 0)
        able = self._able(row, request)
        if not able:
            reason = self._why_never(row, request)
            if reason is None:
                reason = "no replica that could serve it is up"
            self._scheduler.refuse(request, now, reason)
            return reason
        if self._late:
            self._scheduler.arrive(request, now)
        else:
            request.estimate = self._predictor.predict(request)
            self._pushed.append((row, request))
        return None

    def dispatch(self, now_ps: int) -> list[tuple[int, int]]:
        """(row, index of its replica) of the requests to send at this instant, in order; once where `has_news`."""
        sent: list[tuple[int, int]] = []
        self.has_news = False
        self._stand_at(now_ps)
        if self._late:
            while (head := self._next()) is not None:
                assert isinstance(head.id, int)
                room = self._with_room(head)
                if not room or not self._send(head.id, head, room, sent):
                    break
                self._scheduler.take(head.id, self._instant.now)
        else:
            while self._pushed:
                row, request = self._pushed[0]
                if not self._send(row, request, self._able(row, request), sent):
                    break
                self._pushed.popleft()
        self.rescheduler.sent(now_ps)
        return sent

    # What goes elsewhere

    def moves(self, now_ps: int) -> list[MoveOrder]:
        """What is to be done at this instant so that requests go elsewhere; where `rescheduler.next_ps` is reached."""
        self._stand_at(now_ps)
        orders = self.rescheduler.orders(now_ps)
        self.has_news = self.has_news or (bool(orders) and self.waiting > 0)
        return orders

    def _could_take(self, index: int, request: Request) -> bool:
        """Whether a request may go to a replica now: it fits there, and its queue is there or there is room."""
        assert isinstance(request.id, int)
        ledger = self.ledgers[index]
        fits = request.prompt_tokens + self._output_tokens[request.id] <= ledger.rules.context_tokens
        has_room = not self._late or ledger.has_room(request, PREFILL_TOKENS_MAX)
        return ledger.takes_requests and fits and ledger.rules.serves(request.adapter) and has_room

    def _next(self) -> Request | None:
        """The head; where replicas have different adapters, the first request that some replica has room for."""
        if not self._asks_adapters:
            return self._scheduler.head(self._instant.now)
        return self._scheduler.first_that(lambda request: bool(self._with_room(request)), self._instant.now)

    def _with_room(self, request: Request) -> list[ReplicaLedger]:
        assert isinstance(request.id, int)
        return [one for one in self._able(request.id, request) if one.has_room(request, PREFILL_TOKENS_MAX)]

    def report(self, now_ps: int) -> None:
        """The replicas report what had happened by the last time before this instant at which they were to.

        To be called at the first instant after `report_ps`, before anything happens there.
        """
        at_ps = (now_ps - 1) // self._signal_ps * self._signal_ps
        self._stand_at(at_ps)
        for reported in self._reported or ():
            reported.report()
        self.rescheduler.report()
        self.report_ps = at_ps + self._signal_ps

    def _stand_at(self, now_ps: int) -> None:
        self._instant.now_ps = now_ps
        self._instant.now = now_ps * SECONDS_PER_PS

    def _able(self, row: int, request: Request) -> list[ReplicaLedger]:
        """The replicas that are up and can serve a request whole, without the one that lost it."""
        total = request.prompt_tokens + self._output_tokens[row]
        if total <= self._context_tokens and self._all_up and not self._failed_at and not self._asks_adapters:
            return self.ledgers
        lost_by = self._failed_at.get(row)
        return [
            ledger
            for ledger in self.ledgers
            if ledger.takes_requests
            and ledger.index != lost_by
            and total <= ledger.rules.context_tokens
            and ledger.rules.serves(request.adapter)
        ]

    def _send(self, row: int, request: Request, able: list[ReplicaLedger], sent: list[tuple[int, int]]) -> bool:
        """Choose a replica for a request and book it there; False if there is none, or the policy lets it wait."""
        views = self._views if able is self.ledgers else [self._views[ledger.index] for ledger in able]
        if not views:
            return False
        prefix = () if self._prefix_ids is None else self._prefix_ids[row]
        chosen = self._policy.choose(request, prefix, views, self._instant.now)
        if chosen is None:
            return False
        index = chosen.index if isinstance(chosen, _VIEWS) else -1
        is_offered = able is self.ledgers or (index >= 0 and self.ledgers[index] in able)
        if index < 0 or self._views[index] is not chosen or not is_offered:
            raise ValueError(f"the routing policy chose {chosen!r} for request {row}, which is not among its replicas")
        self.ledgers[index].enter(row, request)
        if self._listener is not None:
            self._listener.routed(request, prefix, chosen)
        sent.append((row, index))
        return True

    def first_token(self, index: int, row: int, now: float) -> None:
        """A request's first token came out at a replica."""
        request = self.ledgers[index].first_token(row)
        if self._late:
            self._scheduler.first_token(request, now)
            self.has_news = self.has_news or len(self._scheduler.queue) > 0
        elif self._pushed:
            self.has_news = True

    def ended(self, index: int, row: int, now: float) -> None:
        """A request's last token came out at a replica."""
        if self._late:
            self.has_news = self.has_news or len(self._scheduler.queue) > 0
        elif self._pushed:
            self.has_news = True
        ledger = self.ledgers[index]
        request = ledger.leave(row)
        request.produced_tokens = self._output_tokens[row]
        ledger.completed += 1
        if self._failed_at:
            self._failed_at.pop(row, None)
        self.rescheduler.ended(row)
        self._scheduler.complete(request, now)

    # Replicas that fail

    def fail(self, index: int, now_ps: int) -> dict[int, str]:
        """A replica fails. Row → reason of the requests that fail with it; the others there are tried elsewhere.

        As the gateway does it: a request is tried at two replicas, and only while it has no token.
        """
        self._stand_at(now_ps)
        ledger = self.ledgers[index]
        ledger.is_up, self._all_up = False, False
        lost: dict[int, str] = {}
        self.rescheduler.failed(index)
        # The last is put in front first, so that they keep their order.
        for row in reversed(ledger.inside()):
            began = ledger.has_begun(row)
            request = ledger.leave(row)
            request.produced_tokens = 0
            if began:
                lost[row] = f"{ledger.id} failed after its first token"
            elif row in self._failed_at:
                lost[row] = f"{TRIES_MAX} replicas failed, {ledger.id} the last"
            elif self.rescheduler.was_moved(row):
                lost[row] = f"{ledger.id} failed, the second replica that it was sent to"
            else:
                self.rescheduler.lost(row)
                self._failed_at[row] = index
                self._take_back(row, request)
                continue
            self._failed_at.pop(row, None)
            self.rescheduler.ended(row)
            self._scheduler.left(request, self._instant.now)
        self.has_news = self.waiting > 0
        return lost

    def _take_back(self, row: int, request: Request) -> None:
        if self._late:
            self._scheduler.taken_back(request, self._instant.now)
        else:
            self._pushed.appendleft((row, request))

    def give_up(self, now_ps: int) -> dict[int, str]:
        """Row → reason of waiting requests that fail because only the replica that lost them is left."""
        self._stand_at(now_ps)
        lost: dict[int, str] = {}
        for row, index in list(self._failed_at.items()):
            request = self._request_waiting(row)
            if request is not None and not self._able(row, request):
                lost[row] = f"{self.ledgers[index].id} failed, and no other is up"
                self._forget(row, request)
        return lost

    def _request_waiting(self, row: int) -> Request | None:
        if not self._late:
            return next((request for other, request in self._pushed if other == row), None)
        return next((request for request in self._scheduler.queue if request.id == row), None)

    def _forget(self, row: int, request: Request) -> None:
        del self._failed_at[row]
        if self._late:
            self._scheduler.cancel(row, self._instant.now)
        else:
            self._pushed.remove((row, request))
            self._scheduler.left(request, self._instant.now)

    def drain(self, index: int) -> None:
        """A replica is sent nothing new any more; what it has it serves."""
        self.ledgers[index].is_draining = True
        self._all_up = False

    def recover(self, index: int) -> None:
        """A replica serves again, with an empty cache."""
        self.ledgers[index].is_up, self.ledgers[index].is_draining = True, False
        self._all_up = all(ledger.takes_requests for ledger in self.ledgers)
        self.has_news = self.waiting > 0

    def is_next_servable(self) -> bool:
        """Whether a replica that is up could serve the request that waits in front of the others."""
        head = self._pushed[0][1] if self._pushed else self._scheduler.head(self._instant.now)
        return head is not None and isinstance(head.id, int) and bool(self._able(head.id, head))

    def abandon(self, now_ps: int) -> dict[int, str]:
        """Row → reason of all requests that still wait: no replica will serve any more."""
        self._stand_at(now_ps)
        waiting = [request for _, request in self._pushed] or list(self._scheduler.queue)
        lost = {int(request.id): "no replica came back" for request in waiting}
        for request in waiting:
            if self._late:
                self._scheduler.cancel(request.id, self._instant.now)
        self._pushed.clear()
        return lost

    @property
    def waiting(self) -> int:
        """Requests that wait in front of the replicas."""
        return len(self._scheduler.queue) + len(self._pushed)

    def _why_never(self, row: int, request: Request) -> str | None:
        """Why not even the replica that holds the longest requests for its adapter can serve one; None if it could."""
        every = [member.rules for member in self._members]
        serving = [rules for rules in every if rules.serves(request.adapter)] or every
        rules = max(serving, key=lambda rules: rules.context_tokens)
        return why_never(rules, request.prompt_tokens, self._output_tokens[row], request.adapter)
