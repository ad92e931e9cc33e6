"""Scheduler of one queue: predicts and queues what arrives, and answers engines: what is next, and may it come in?

An engine pulls. It asks for the head when it has a seat, checks its own gates, and takes the head or leaves it. That is
how vLLM's loop works, how the simulator imitates it, and what several replicas behind one queue need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from headway.domain.event import (
    Admitted,
    Arrived,
    Cancelled,
    Completed,
    Event,
    FirstToken,
    Listener,
    Preempted,
    Refused,
    heard_by,
)
from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import NEVER_LOOKED_UP, Request, RequestId
from headway.policies.admission.greedy import Greedy
from headway.policies.contracts import (
    AdmissionPolicy,
    BackfillingAdmission,
    LengthPredictor,
    OrderingPolicy,
    PreemptionPolicy,
)
from headway.policies.event_fanout import EventFanout
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.class_queue import ClassQueue
from headway.scheduling.offline_gate import OfflineGate
from headway.scheduling.online_views import without_offline
from headway.scheduling.queue import Resumed, WaitingQueue
from headway.scheduling.switch_line import SwitchLine

_STEPPED_OVER_MAX = 64  # requests behind a head that cannot run; vLLM steps over any number, which costs O(waiting)


@dataclass(frozen=True, slots=True)
class OfflinePolicies:
    """The order and the predictor of offline requests: what online requests teach is kept apart from them."""

    ordering: OrderingPolicy = field(default_factory=Fcfs)
    prediction: LengthPredictor = field(default_factory=RunningMean)

    def fanout(self) -> EventFanout:
        """The delivery of events about offline requests."""
        return EventFanout(self.prediction, self.ordering)


@dataclass(frozen=True, slots=True)
class Policies:
    """The four policies that make up one bundle. They hold state: make fresh ones for every run.

    They judge online requests and hear of no others. `offline` orders the rest, which gives way to them.
    """

    ordering: OrderingPolicy
    admission: AdmissionPolicy
    preemption: PreemptionPolicy
    prediction: LengthPredictor
    offline: OfflinePolicies = field(default_factory=OfflinePolicies)

    def fanout(self) -> EventFanout:
        """The delivery of events to those that listen. The predictor comes first: others may read its estimates."""
        return EventFanout(self.prediction, self.ordering, self.admission, self.preemption)


class Scheduler:
    """One queue and the policies that rule it; every method takes the shell's `now`, in seconds.

    Attributes:
        queue: online requests, and behind them offline ones.
        suspended: first come, first served rules instead of the chosen policies.
        has_offline: whether an offline request ever came.
        gate: bounds offline work in an engine; None where the shell bounds it itself.
    """

    def __init__(self, policies: Policies, *, resumed: Resumed = "front", listeners: Sequence[Listener] = ()) -> None:
        offline = policies.offline
        self.queue = ClassQueue(
            WaitingQueue(policies.ordering, resumed, policies.prediction.predict),
            WaitingQueue(offline.ordering, resumed, offline.prediction.predict),
        )
        self.suspended = False
        self.has_offline = False
        self.gate: OfflineGate | None = None
        self.line: SwitchLine | None = None  # since a switch of the order, until all have left that waited then
        self._others = listeners
        self._offline_listeners: list[Listener] = [*offline.fanout().listeners, *listeners]
        self._choose(policies)

    def _choose(self, policies: Policies) -> None:
        self._chosen = policies
        self._policies = policies
        self._backfilling = _backfilling(policies.admission)
        fanout = policies.fanout()
        self._listeners: list[Listener] = [*fanout.listeners, *self._others]
        self._heard = heard_by(*self._listeners, *(self._offline_listeners if self.has_offline else ()))
        self._ordering_listens = policies.ordering in fanout

    def arrive(self, request: Request, now: float) -> None:
        """A request came in: estimate its length, queue it."""
        self._predict(request)
        self.queue.add(request)
        if Arrived in self._heard:
            self._deliver(Arrived(request, now))

    def expect_offline(self) -> None:
        """Offline requests come, or are inside already: a shell that fills the queue itself says so."""
        if not self.has_offline:
            self.has_offline = True
            self._heard = heard_by(*self._listeners, *self._offline_listeners)

    def refuse(self, request: Request, now: float, reason: str) -> None:
        """A request is turned away before it waits."""
        if Refused in self._heard:
            self._deliver(Refused(request, now, reason))

    def head(self, now: float) -> Request | None:
        """The request to run next; None if none waits."""
        if self.line is not None and not self.queue.online.has_front:
            first = self.line.first(self.queue.online.head(now), now)
            if first is not None:
                return first
        return self.queue.head(now)

    def stands_until(self, now: float) -> float:
        """Time at which `head` may answer otherwise although nothing was added or taken; `math.inf` if never."""
        until = self.queue.stands_until(now)
        return until if self.line is None else min(until, self.line.stands_until(now))

    def first_that(self, may_run: Callable[[Request], bool], now: float) -> Request | None:
        """The first request in order that an engine can run at all now, the head and the next 64 being looked at.

        None if none waits, or none of those can. A backfilling admission policy passes requests itself: the head.
        """
        head = self.head(now)
        if head is None or self._backfilling is not None or may_run(head):
            return head
        return next(filter(may_run, self.queue.following(now, _STEPPED_OVER_MAX)), None)

    def candidate(self, refused: Sequence[Request], batch: BatchView, memory: MemoryView, now: float) -> Request | None:
        """The next request to try in this step, given those that did not fit: the head, then those that may pass it.

        An engine asks until it gets None. Without a backfilling admission policy that is after the first refusal.
        """
        if not refused:
            return self.head(now)
        if batch.size:
            for request in self.behind_head(now):
                if request not in refused and self.may_pass(request, refused[0], batch, memory, now):
                    return request
        return None

    def behind_head(self, now: float) -> list[Request]:
        """The requests behind the head that the admission policy wants to be asked about, about in order of service."""
        return [] if self._backfilling is None else self.queue.following(now, self._backfilling.look_ahead)

    def may_pass(self, request: Request, head: Request, batch: BatchView, memory: MemoryView, now: float) -> bool:
        """Whether one of `behind_head` may join this batch, which is not empty, before the head that was refused."""
        if self.has_offline:
            if head.is_offline:
                return False
            batch, memory = without_offline(batch, memory)
        return self._backfilling is not None and self._backfilling.may_pass(request, head, batch, memory, now)

    @property
    def backfills(self) -> bool:
        """Whether requests may pass a head that does not fit; a refusal then stands for one step only."""
        return self._backfilling is not None and len(self.queue) > 1

    def admit_past(self, request: Request, head: Request, now: float) -> None:
        """A request other than the head joins a batch: what `candidate` gave after `head` was refused."""
        assert self._backfilling is not None
        self.queue.remove(request.id)
        self._left_line(request.id)
        self._backfilling.passed(head)
        self._joined(request, now)

    def hold_steps(self, request: Request, batch: BatchView, memory: MemoryView, now: float) -> int:
        """The admission policy's answer for the head: 0 to admit, else steps for which the refusal stands.

        The policy judges online requests, as if no others were there; the gate judges the offline ones.
        """
        if self.has_offline:
            if request.is_offline:
                return 0 if self.gate is None else self.gate.hold_steps(request, batch.version)
            batch, memory = without_offline(batch, memory)
        return self._policies.admission.hold_steps(request, batch, memory, now)

    def admit(self, now: float) -> Request:
        """The head joins a batch."""
        request = self._next(now)
        self._joined(request, now)
        return request

    def take(self, request_id: RequestId, now: float) -> Request | None:
        """One certain request joins a batch, head or not: an engine may step over heads that cannot run yet.

        None if it does not wait.
        """
        if self.line is not None:
            self._taken_from_line(request_id, now)
        request = self.queue.remove(request_id)
        if request is not None:
            self._joined(request, now)
        return request

    def victim(self, running: Sequence[Request], now: float) -> Request:
        """The running request to preempt: of the offline ones the latest admitted, else the policy's choice.

        Raises ValueError if the policy names a request that does not run.
        """
        if self.has_offline:
            for request in reversed(running):
                if request.is_offline:
                    return request
        chosen = self._policies.preemption.victim(running, now)
        for request in running:
            if request is chosen:
                return request
        raise ValueError(f"the preemption policy named {chosen.id!r}, which is not running")

    def preempted(self, request: Request, now: float) -> None:
        """A running request lost its memory and waits again; what a prefix cache held of it is out of date."""
        request.looked_up_at = NEVER_LOOKED_UP
        self.queue.resume(request)
        if Preempted in self._heard:
            self._deliver(Preempted(request, now))

    def displaced(self, request: Request, now: float) -> None:
        """A running request made room for one of higher priority; `wait_by_rank` queues it, after the step it left."""
        request.looked_up_at = NEVER_LOOKED_UP
        if Preempted in self._heard:
            self._deliver(Preempted(request, now, for_memory=False))

    def wait_by_rank(self, request: Request) -> None:
        """One that was displaced waits again, not in front."""
        self.queue.add(request)

    def taken_back(self, request: Request, now: float) -> None:
        """A request's replica failed, and it waits again."""
        self.queue.resume(request)
        if Preempted in self._heard:
            self._deliver(Preempted(request, now, for_memory=False))

    def resume_from_elsewhere(self, request: Request, produced_tokens: int, now: float) -> None:
        """A request that ran at another engine goes on here: it waits as one that was preempted does."""
        self._predict(request)
        request.produced_tokens = produced_tokens
        self.queue.resume(request)
        if Arrived in self._heard:
            self._deliver(Arrived(request, now))

    def first_token(self, request: Request, now: float) -> None:
        """A request's first token came out."""
        if FirstToken in self._heard:
            self._deliver(FirstToken(request, now))

    def complete(self, request: Request, now: float) -> None:
        """A request's last token came out; `produced_tokens` is final."""
        if Completed in self._heard:
            self._deliver(Completed(request, now, request.produced_tokens))

    def cancel(self, request_id: RequestId, now: float) -> Request | None:
        """A waiting request's client left; None if it does not wait."""
        request = self.queue.remove(request_id)
        self._left_line(request_id)
        if request is not None and Cancelled in self._heard:
            self._deliver(Cancelled(request, now))
        return request

    def left(self, request: Request, now: float) -> None:
        """The client of a request that does not wait in the queue left: it ran, or the shell had taken it out."""
        if Cancelled in self._heard:
            self._deliver(Cancelled(request, now))

    @property
    def is_switching(self) -> bool:
        """Whether requests wait that waited at the last switch."""
        return self.line is not None and len(self.line) > 0

    def switch(self, policies: Policies, now: float, events: Listener | None = None) -> None:
        """Other policies for online requests from now on; O(waiting · log waiting).

        The new ones hear of all that wait, in order of arrival. These keep a bound on being passed, see `SwitchLine`.

        Args:
            policies: the predictor may be the one that rules now; it goes on with what it has learned.
            now: seconds.
            events: delivers events to policies that are guarded, in place of the first of the scheduler's listeners.

        Raises:
            ValueError: requests of the last switch wait still, or the policies are suspended.
        """
        if self.is_switching or self.suspended:
            raise ValueError("the order cannot be switched while the last switch goes on, or policies are suspended")
        old, predictor = self.queue.online, self._policies.prediction
        if events is not None:
            self._others = [events, *self._others[1:]]
        self._choose(replace(policies, offline=self._chosen.offline))
        told = [one for one in policies.fanout().listeners if id(one) != id(predictor)]
        told += [] if events is None else [events]
        told = [one for one in told if Arrived in heard_by(one)]
        for request in sorted(old, key=lambda request: request.arrived_at):
            if policies.prediction is not predictor:
                request.estimate = policies.prediction.predict(request)
            for listener in told:
                listener.observe(Arrived(request, now))
        self.queue.online = old.under(policies.ordering, policies.prediction.predict)
        self.line = SwitchLine(old) if len(old) else None

    def leave_line(self, request_id: RequestId) -> None:
        """A request of the last switch waits by the new order alone: it cannot run for a while."""
        self._left_line(request_id)

    def _next(self, now: float) -> Request:
        """Take out the next request. Raises IndexError if none waits."""
        head = None if self.line is None else self.head(now)
        if head is None:
            return self.queue.pop(now)
        self._taken_from_line(head.id, now)
        self.queue.remove(head.id)
        return head

    def _taken_from_line(self, request_id: RequestId, now: float) -> None:
        assert self.line is not None
        head = self.head(now)
        if head is not None and head.id == request_id and not self.queue.online.has_front:
            self.line.served(head, now)
        else:
            self.line.left(request_id)
        self._forget_line()

    def _left_line(self, request_id: RequestId) -> None:
        if self.line is not None:
            self.line.left(request_id)
            self._forget_line()

    def _forget_line(self) -> None:
        if self.line is not None and not len(self.line):
            self.line = None

    def suspend(self) -> None:
        """Let first come, first served rule, greedy admission and the latest as victim; O(waiting · log waiting).

        The policies still hear every event, and estimates are still stamped.
        """
        stock = replace(self._chosen, ordering=Fcfs(), admission=Greedy(), preemption=LatestAdmitted())
        self._rule(stock, suspended=True)

    def reinstate(self) -> None:
        """Let the chosen policies rule again; O(waiting · log waiting)."""
        self._rule(self._chosen, suspended=False)

    def _rule(self, policies: Policies, *, suspended: bool) -> None:
        self.queue.online = self.queue.online.under(policies.ordering)
        self.line = None
        self.suspended = suspended
        self._policies = policies
        self._backfilling = _backfilling(policies.admission)

    def _predict(self, request: Request) -> None:
        if request.is_offline:
            self.expect_offline()
            request.estimate = self._policies.offline.prediction.predict(request)
        else:
            request.estimate = self._policies.prediction.predict(request)

    def _joined(self, request: Request, now: float) -> None:
        """A request joins a batch."""
        if request.is_offline and self.gate is not None:
            self.gate.admitted()
        if Admitted in self._heard:
            self._deliver(Admitted(request, now))

    def _deliver(self, event: Event) -> None:
        if event.request.is_offline:
            for listener in self._offline_listeners:
                listener.observe(event)
            self.queue.offline.reconsider()
            return
        for listener in self._listeners:
            listener.observe(event)
        if self._ordering_listens:
            self.queue.reconsider()


def _backfilling(admission: AdmissionPolicy) -> BackfillingAdmission | None:
    return admission if isinstance(admission, BackfillingAdmission) else None
