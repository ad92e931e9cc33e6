"""One queue: the requests that wait for one model, their scheduler, and a forecast of how fast the queue moves.

Law: a policy that raises, or whose answer makes no sense, costs no request its place. For that decision a simple rule
stands in: the mean length, "admit", arrival order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias, TypeVar

from headway.domain.event import Listener
from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import Request, RequestId
from headway.gateway.queueing.hinted_prediction import HintedPrediction
from headway.gateway.queueing.internal_errors import InternalErrors
from headway.gateway.queueing.queue_policies import ContainedListener, SharedAccounts, policies_of
from headway.gateway.queueing.recent_dispatches import RecentDispatches
from headway.gateway.queueing.request_state import QueuedRequest, QueueKey
from headway.gateway.queueing.wait_forecast import WaitForecast, work_of
from headway.gateway.queueing.waiting_sums import WaitingSums
from headway.gateway.settings import PolicySettings
from headway.policies.admission.greedy import Greedy
from headway.policies.contracts import LossListener
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.tenant_ordering import TenantOrdering
from headway.scheduling.checked_policies import CheckedEvents, PlainAsker, PolicyFault, guarded
from headway.scheduling.head_lookups import MOVES_PER_STEP, is_stale, note_answer
from headway.scheduling.scheduler import Policies, Scheduler
from headway.scheduling.switch_line import SwitchLine

Answer = TypeVar("Answer")
Prepare: TypeAlias = Callable[[QueueKey, PolicySettings, Policies], tuple[Listener, ...]]
CachedTokensOf: TypeAlias = Callable[[QueuedRequest], int]
"""Prompt tokens of a waiting request that a replica is expected to have in its prefix cache now."""


class ModelQueue:
    """One queue. Its laws are the scheduler's; it adds sums over the waiting requests and a forecast."""

    def __init__(
        self,
        key: QueueKey,
        settings: PolicySettings,
        prepare: Prepare,
        errors: InternalErrors,
        accounts: SharedAccounts,
        cached_tokens: CachedTokensOf | None = None,
    ) -> None:
        """`prepare` gets the fresh policies before they see a request, and returns more listeners to their events.

        `cached_tokens` is asked again about heads; None where nothing is known of caches.
        """
        self.key = key
        self._cached_tokens = cached_tokens
        self._prepare = prepare
        self._errors = errors
        self._admission_faults = 0  # in a row
        self._line: SwitchLine | None = None  # those that waited at a switch, until all of them have left
        self.scheduler = self._chosen_scheduler(settings, accounts)
        self.forecast = WaitForecast()
        self.waiting = WaitingSums()
        self._online_waiting = 0
        self.waiting_work = 0.0  # of online requests
        self.waiting_by_payer: dict[str, WaitingSums] = {}  # of payers with a request waiting
        self._requests: dict[RequestId, QueuedRequest] = {}  # that wait, in order of entry
        self._unmoved: dict[RequestId, QueuedRequest] = {}  # of those, the ones that changed policies do not know yet
        self._recent = RecentDispatches()
        self._entered = 0
        self._dispatched = 0
        self.used_at = 0.0  # when a request came or went last

    def __len__(self) -> int:
        return self.waiting.requests

    def __contains__(self, queued: QueuedRequest) -> bool:
        return queued.id in self._requests

    def __repr__(self) -> str:
        model, kind, *_ = self.key
        return f"<queue of {model or 'any model'} ({kind}): {len(self)} waiting, {self._dispatched} dispatched>"

    @property
    def is_replaced(self) -> bool:
        """Whether a policy failed for good, until the policies are changed."""
        return self._arrival_order or self._prediction.is_replaced or self._admission_faults >= self._faults_max

    def arrive(self, queued: QueuedRequest, now: float) -> None:
        """A request joins the queue."""
        queued.looked_up_at = now
        try:
            self.scheduler.arrive(queued, now)
        except Exception as error:
            self._in_arrival_order(error).arrive(queued, now)
        try:
            queued.work = work_of(queued)
            drain = queued.drain_seconds = self.drain_seconds()
            if queued.is_offline:  # when online work leaves room is not forecast
                drain = queued.drain_seconds = None
            queued.predicted_wait_seconds = None if drain is None else self.forecast.wait_seconds(queued, drain)
        except Exception:  # a request is in the queue with all its figures, or not at all
            self.scheduler.cancel(queued.id, now)
            raise
        self._entered += 1
        queued.entry = self._entered
        queued.queue_key = self.key
        queued.dispatches_at_arrival = self._dispatched
        queued.waiting_at_arrival = len(self)
        self._add(queued, 1, now)

    def take_back(self, queued: QueuedRequest, now: float) -> None:
        """A dispatched request returns, to be sent to another replica: in front of all others."""
        if queued.admitted_by is self.scheduler:
            try:
                self.scheduler.taken_back(queued, now)
            except Exception as error:
                self._in_arrival_order(error).taken_back(queued, now)
            self._add(queued, 1, now)
        else:  # the policies were changed meanwhile
            if queued.admitted_by is not None:
                self._errors.guard("policies", queued.admitted_by.left, queued, now)
            self.arrive(queued, now)

    def head(self, now: float) -> QueuedRequest | None:
        """The request to dispatch next; None if none waits."""
        if self._fair is not None and self._accounts.are_shared:
            self.scheduler.queue.reconsider()
        try:
            return self._head(now)
        except Exception as error:
            self._in_arrival_order(error)
            return self._head(now)

    def _head(self, now: float) -> QueuedRequest | None:
        """The head, its cached tokens up to date: one whose work changed much is ranked again."""
        moved = 0
        while True:
            head = self.scheduler.head(now)
            if self._line is not None and not self.scheduler.queue.online.has_front:
                head = self._line.first(None if head is None or head.is_offline else head, now) or head
            if head is None:
                return None
            assert isinstance(head, QueuedRequest)
            if self._cached_tokens is None or moved == MOVES_PER_STEP or not is_stale(head, now):
                return head
            if head.id in self._unmoved:
                return head
            if note_answer(head, self._cached_tokens(head), now):
                moved += 1
                self.scheduler.queue.requeue(head.id)

    def standing(self, now: float) -> float:
        """Of the head, under an ordering by tenant: its tenant's service or finish time; lower first. Otherwise 0.

        Queues of requests over budget come last.
        """
        if self.key.is_over_budget:
            return math.inf
        if self._fair is None:
            return 0.0
        head = self.head(now)
        return 0.0 if head is None else math.inf if head.is_offline else self._fair.standing(head)

    @property
    def asks_admission(self) -> bool:
        """Whether the admission policy is to be asked: `greedy` never refuses, and a failed one is replaced by it."""
        return self._may_refuse and self._admission_faults < self._faults_max

    def hold_steps(self, queued: QueuedRequest, batch: BatchView, memory: MemoryView, now: float) -> int:
        """The admission policy's answer: 0 if a request may go to this replica, else steps for which it may not."""
        return self._ask_admission(0, self.scheduler.hold_steps, queued, batch, memory, now)

    def behind_head(self, now: float) -> list[QueuedRequest]:
        """Requests that may pass a head that does not fit, if the admission policy lets any."""
        if not self.asks_admission or not self.scheduler.backfills:
            return []
        try:
            behind = self.scheduler.behind_head(now)
        except Exception as error:
            behind = self._in_arrival_order(error).behind_head(now)
        return [request for request in behind if isinstance(request, QueuedRequest)]

    def may_pass(
        self, queued: QueuedRequest, head: QueuedRequest, batch: BatchView, memory: MemoryView, now: float
    ) -> bool:
        """Whether one of `behind_head` may go to this replica before the head."""
        return self._ask_admission(False, self.scheduler.may_pass, queued, head, batch, memory, now)

    def memory_lost(self, tokens: int) -> None:
        """Tell an admission policy that learns from it: replicas preempted requests with so many tokens."""
        if self._loss_listener is not None:
            self._errors.guard("policies", self._loss_listener.memory_lost, tokens)

    def admit(self, now: float) -> QueuedRequest:
        """The head leaves the queue for a replica."""
        try:
            queued = self._admitted(now)
        except Exception as error:
            queued = self._in_arrival_order(error).admit(now)
        assert isinstance(queued, QueuedRequest)
        self._left_for_replica(queued, now)
        return queued

    def _admitted(self, now: float) -> Request:
        """The head, which has left the scheduler."""
        line = self._line
        if line is None or self.scheduler.queue.online.has_front:
            queued = self.scheduler.admit(now)
            self._left_line(queued.id)
            return queued
        head = self._head(now)
        if head is None:
            raise IndexError("the queue is empty")
        if self._unmoved.pop(head.id, None) is not None:
            self.scheduler.arrive(head, now)
        line.served(head, now)
        self.scheduler.take(head.id, now)
        self._forget_line()
        return head

    def _left_line(self, request_id: RequestId) -> None:
        if self._line is not None:
            self._line.left(request_id)
            self._forget_line()

    def _forget_line(self) -> None:
        if self._line is not None and not len(self._line):
            self._line = None

    @property
    def is_switching(self) -> bool:
        """Whether requests wait that waited at the last switch."""
        return self._line is not None

    def admit_past(self, queued: QueuedRequest, head: QueuedRequest, now: float) -> None:
        """One of `behind_head` leaves the queue for a replica, before the head."""
        self.scheduler.admit_past(queued, head, now)
        self._left_line(queued.id)
        self._left_for_replica(queued, now)

    def _left_for_replica(self, queued: QueuedRequest, now: float) -> None:
        self._add(queued, -1, now)
        self.forecast.dispatched(0.0 if queued.is_offline else queued.work, now)
        if queued.drain_seconds is not None and queued.tries == 0:
            self.forecast.waited(queued, queued.drain_seconds, now - queued.arrived_at)
        queued.wait_explanation = self._explanation(queued, now)
        self._dispatched += 1
        queued.rank = self._dispatched
        queued.admitted_by = self.scheduler
        self._recent.note(queued.entry)

    def _ask_admission(self, instead: Answer, question: Callable[..., Answer], *arguments: object) -> Answer:
        """The admission policy's answer; `instead` where it fails."""
        try:
            answer = question(*arguments)
        except PolicyFault as fault:
            self._admission_faults += 1
            self._errors.policy_fault(fault)
            return instead
        self._admission_faults = 0
        return answer

    def cancel(self, queued: QueuedRequest, now: float) -> None:
        """A request leaves the queue for good."""
        if queued.id in self._requests:
            self._add(queued, -1, now)
            self._left_line(queued.id)
            if self._unmoved.pop(queued.id, None) is not None:
                return
            try:
                self.scheduler.cancel(queued.id, now)
            except Exception as error:
                self._in_arrival_order(error).cancel(queued.id, now)

    @property
    def requests(self) -> Iterable[QueuedRequest]:
        """Those that wait, in order of entry."""
        return self._requests.values()

    def expected_output_tokens(self, queued: QueuedRequest) -> float:
        """What the predictor in use says of a request that is not in the queue yet, of all its sequences together."""
        return self._prediction.predict_early(queued).remaining_mean(0) * queued.sequences

    def drain_seconds(self) -> float | None:
        """Forecast of when the queue will be empty if nothing more arrives; None without one."""
        return self.forecast.drain_seconds(self.waiting_work)

    def change_policies(self, settings: PolicySettings, accounts: SharedAccounts, keeps_line: bool = False) -> None:
        """All waiting requests go over to a scheduler with other policies, in order of arrival: by `move_one`.

        With `keeps_line` they keep a bound on being passed, see `SwitchLine`; not where a policy had failed.
        """
        waiting = sorted(self._requests.values(), key=lambda request: (request.arrived_at, request.id))
        keeps_line = keeps_line and bool(waiting) and not self._unmoved and not self._arrival_order
        self._line = SwitchLine(self.scheduler.queue.online) if keeps_line else None
        self.scheduler = self._chosen_scheduler(settings, accounts)
        self._unmoved = {request.id: request for request in waiting}

    def move_one(self, now: float) -> bool:
        """The next waiting request goes over to the scheduler with the changed policies. False if all have."""
        if not self._unmoved:
            return False
        request = self._unmoved.pop(next(iter(self._unmoved)))
        try:
            self.scheduler.arrive(request, now)
        except Exception as error:
            self._in_arrival_order(error)
        return True

    def _chosen_scheduler(self, settings: PolicySettings, accounts: SharedAccounts) -> Scheduler:
        policies = policies_of(settings)
        accounts.join(policies.ordering)
        self._accounts = accounts
        self._ordering = settings.ordering
        self._fair = policies.ordering if isinstance(policies.ordering, TenantOrdering) else None
        self._faults_max = settings.faults_max
        self._admission_faults = 0
        self._may_refuse = type(policies.admission) is not Greedy
        self._loss_listener = policies.admission if isinstance(policies.admission, LossListener) else None
        self._arrival_order = False  # the ordering failed
        listeners = self._prepare(self.key, settings, policies)
        checked = guarded(policies, PlainAsker())
        self._prediction = HintedPrediction(checked.prediction, self._errors, settings.faults_max)
        events = CheckedEvents(policies, PlainAsker(), self._reconsider, self._errors.policy_fault)
        contained = [ContainedListener(listener, self._errors, self._reconsider) for listener in listeners]
        self._listeners: list[Listener] = [*([events] if events else []), *contained]
        self._policies = replace(checked, prediction=self._prediction)
        return Scheduler(self._policies, listeners=self._listeners)

    def _in_arrival_order(self, error: Exception) -> Scheduler:
        """The scheduler to ask once more after the ordering failed: in arrival order until the policies are changed.

        Any exception counts: ranks that cannot be compared fail inside the scheduler's queue, not inside the policy.
        """
        if self._arrival_order:
            raise error
        fault = error if isinstance(error, PolicyFault) else PolicyFault("ordering", "nonsense", f"failed: {error!r}")
        self._errors.policy_fault(fault)
        self._arrival_order = True
        self._line = None
        self._ordering = "fcfs"
        self._fair = None
        offline = replace(self._policies.offline, ordering=Fcfs())  # whose order may be the one that failed
        self._policies = replace(self._policies, ordering=Fcfs(), offline=offline)
        self.scheduler = Scheduler(self._policies, listeners=self._listeners)
        self.scheduler.expect_offline()
        self._unmoved.clear()
        for request in self._requests.values():
            if request.tries:
                self.scheduler.queue.resume(request)
            else:
                self.scheduler.queue.add(request)
        return self.scheduler

    def _reconsider(self) -> None:
        """The ordering heard an event."""
        self.scheduler.queue.reconsider()

    def _add(self, queued: QueuedRequest, sign: int, now: float) -> None:
        """A request joined (+1) or left (-1)."""
        self.used_at = now
        waiting, arrived, by_payer = self.waiting, queued.arrived, self.waiting_by_payer
        own = by_payer.get(arrived.payer)
        if own is None:
            own = by_payer[arrived.payer] = WaitingSums()
        tokens, size = sign * queued.prompt_tokens, sign * arrived.body_bytes
        waiting.requests += sign
        waiting.tokens += tokens
        waiting.bytes += size
        own.requests += sign
        own.tokens += tokens
        own.bytes += size
        if sign > 0:
            self._requests[queued.id] = queued
        else:
            del self._requests[queued.id]
            if not own.requests:
                del by_payer[arrived.payer]
        if not queued.is_offline:
            self._online_waiting += sign
            self.waiting_work = self.waiting_work + sign * queued.work if self._online_waiting else 0.0
            self.forecast.backlog(self._online_waiting > 0, now)

    def _explanation(self, queued: QueuedRequest, now: float) -> str:
        """Why a request waited, in words."""
        if not queued.has_waited and not queued.tries:
            return "did not wait"
        waited = now - queued.arrived_at
        since = self._dispatched - queued.dispatches_at_arrival
        later = self._recent.later_than(queued.entry)
        named = (
            (since - later, "that came before it"),
            (later, f"that came later but rank sooner by {self._ordering}"),
        )
        ahead = " and ".join(f"{number} {which}" for number, which in named if number)
        return f"waited {waited:.2f} s for {ahead or ('online work' if queued.is_offline else 'room at a replica')}"
