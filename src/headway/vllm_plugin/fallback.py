"""Fallback: the waiting queue under the chosen policies, or under plain first come, first served when those fail.

Laws: a fault disables the chosen policies for good, within the very call in which it shows; while they are suspended
they still hear every event; after either every waiting request still waits, and none of them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from headway.domain.event import Listener
from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import Request, RequestId
from headway.policies.admission.greedy import Greedy
from headway.policies.contracts import Retunable
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.checked_policies import CheckedEvents, PolicyFault, guarded
from headway.scheduling.offline_gate import OfflineGate, StepLoad, StepPlan
from headway.scheduling.scheduler import Policies, Scheduler
from headway.vllm_plugin.plugin_log import logger
from headway.vllm_plugin.policy_guard import PolicyTimer

Answer = TypeVar("Answer")


class FallbackScheduler:
    """The waiting queue under policies that may fail; `on_fault` gets the one fault that disables them."""

    def __init__(
        self,
        policies: Policies,
        timer: PolicyTimer,
        on_fault: Callable[[PolicyFault], None],
        listeners: Sequence[Listener] = (),
    ) -> None:
        """`listeners` hear every event after the policies, until those are disabled."""
        self._retune = policies.ordering.retune if isinstance(policies.ordering, Retunable) else None
        self._timer = timer
        self._on_fault = on_fault
        self._prediction = policies.prediction
        self._guarded = guarded(policies, timer)
        self._events = CheckedEvents(policies, timer, self._reconsider)
        self._waiting: dict[RequestId, tuple[Request, bool]] = {}  # and whether it was preempted
        self._entered: dict[RequestId, Request] = {}  # those that wait by rank or are set aside, as they came
        self.disabled = False  # for good, by a fault
        self.suspended = False  # for a while, by the do-no-harm guard
        self.holds = type(policies.admission) is not Greedy  # whether admission may hold a request
        self.chooses_victims = type(policies.preemption) is not LatestAdmitted
        self._scheduler = Scheduler(self._guarded, listeners=[self._events, *listeners])
        self._gate: OfflineGate | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def use_gate(self, gate: OfflineGate) -> None:
        """Bound offline requests by this gate, whatever policies rule."""
        self._scheduler.gate = self._gate = gate

    def plan_offline(self, load: StepLoad) -> StepPlan:
        """What the step that begins may do for offline requests."""
        assert self._gate is not None
        return self._gate.plan(load)

    def hold_offline(self, request: Request, version: int) -> bool:
        """Whether an offline head may not join the step; `version` is the batch's."""
        return self._gate is not None and self._gate.hold_steps(request, version) > 0

    def online_heads(self, now: float, most: int) -> list[Request]:
        """The first online requests that wait, about in order of service."""
        head = self.head(now)
        if head is None or head.is_offline:
            return []
        return [head, *self._guard(lambda: self._scheduler.queue.online.following(now, most - 1))]

    @property
    def offline_waiting(self) -> int:
        """Offline requests that wait."""
        return len(self._scheduler.queue.offline)

    @property
    def has_offline(self) -> bool:
        """Whether an offline request ever came."""
        return self._scheduler.has_offline

    @property
    def in_force(self) -> bool:
        """Whether the chosen policies rule, rather than first come, first served."""
        return not (self.disabled or self.suspended)

    @property
    def lanes(self) -> int:
        """Lanes compared in the last choice; 1 for orderings without lanes."""
        return self._timer.lanes if self.in_force else 1

    def arrive(self, request: Request, now: float) -> None:
        """Estimate a new request's length and queue it."""
        self._guard(lambda: self._scheduler.arrive(request, now))
        self._entered[request.id] = request
        self._waiting[request.id] = (request, False)

    def preempted(self, request: Request, now: float) -> None:
        """Take a preempted request back, in front."""
        self._guard(lambda: self._scheduler.preempted(request, now))
        self._entered.pop(request.id, None)
        self._waiting[request.id] = (request, True)

    def displaced(self, request: Request, now: float) -> None:
        """A running request made room for a waiting one; `requeue` takes it back."""
        self._guard(lambda: self._scheduler.displaced(request, now))

    def requeue(self, request: Request, resumed: bool) -> None:
        """Queue a request again that was removed."""
        self._guard(lambda: self._queue(request, resumed))
        if resumed:
            self._entered.pop(request.id, None)
        else:
            self._entered.setdefault(request.id, request)  # one set aside keeps its place
        self._waiting[request.id] = (request, resumed)

    def work_changed(self, request_id: RequestId) -> None:
        """A waiting request has more or less to compute: ask for its rank again; it stays ahead of later equals."""
        self._guard(lambda: self._scheduler.queue.requeue(request_id))

    def remove(self, request_id: RequestId) -> None:
        """Take a request out without an event: its client left, or it is back in another way."""
        self._entered.pop(request_id, None)
        if self._waiting.pop(request_id, None) is not None:
            self._scheduler.queue.remove(request_id)
            self._scheduler.leave_line(request_id)

    def set_aside(self, request_id: RequestId) -> None:
        """Take out a request that cannot run now; `requeue` gives it its place among equals back."""
        if self._waiting.pop(request_id, None) is not None:
            self._scheduler.queue.set_aside(request_id)
            self._scheduler.leave_line(request_id)

    def head(self, now: float) -> Request | None:
        """The request to run next."""
        return self._guard(lambda: self._scheduler.head(now))

    def admit(self, request_id: RequestId, now: float) -> None:
        """A request joins the batch."""
        self._leave(request_id)
        self._guard(lambda: self._scheduler.take(request_id, now))

    @property
    def backfills(self) -> bool:
        """Whether a request may pass a head that does not fit."""
        return self._scheduler.backfills

    def candidate(self, refused: Sequence[Request], batch: BatchView, memory: MemoryView, now: float) -> Request | None:
        """A request that may be admitted although `refused` (first the head) did not fit; None if there is none."""
        return self._guard(lambda: self._scheduler.candidate(refused, batch, memory, now))

    def admit_past(self, request: Request, head: Request, now: float) -> None:
        """A request joins the batch past the head."""
        self._leave(request.id)
        self._guard(lambda: self._joined_past(request, head, now))

    def hold_steps(self, request: Request, batch: BatchView, memory: MemoryView, now: float) -> int:
        """Steps for which the head should not be admitted; 0 if it may."""
        return self._guard(lambda: self._scheduler.hold_steps(request, batch, memory, now))

    def victim(self, running: Sequence[Request], now: float) -> Request:
        """The running request to preempt if memory runs out."""
        return self._guard(lambda: self._scheduler.victim(running, now))

    def first_token(self, request: Request, now: float) -> None:
        """A first token came out."""
        self._guard(lambda: self._scheduler.first_token(request, now))

    def complete(self, request: Request, now: float) -> None:
        """A last token came out."""
        self._entered.pop(request.id, None)
        self._scheduler.queue.forget(request.id)
        self._guard(lambda: self._scheduler.complete(request, now))

    def cancel(self, request: Request, now: float) -> None:
        """A client left; the request is not in the queue any more."""
        self._entered.pop(request.id, None)
        self._scheduler.queue.forget(request.id)
        self._guard(lambda: self._scheduler.left(request, now))

    def retune(self, values: Mapping[str, float]) -> None:
        """Give the ordering other parameters, while requests wait."""
        self._guard(lambda: self._retuned(values))

    @property
    def may_switch(self) -> bool:
        """Whether other policies may be chosen now: these rule, and no request waits that waited at the last switch."""
        return self.in_force and not self._scheduler.is_switching

    def switch(self, policies: Policies, now: float) -> None:
        """Other policies from now on, with the predictor that rules; see `Scheduler.switch`."""
        chosen = replace(policies, prediction=self._prediction)
        checked = replace(guarded(chosen, self._timer), prediction=self._guarded.prediction)
        self._events = CheckedEvents(chosen, self._timer, self._reconsider)
        self._retune = chosen.ordering.retune if isinstance(chosen.ordering, Retunable) else None
        self._guarded = checked
        self.holds = type(chosen.admission) is not Greedy
        self.chooses_victims = type(chosen.preemption) is not LatestAdmitted
        self._guard(lambda: self._switched(checked, now))

    def _switched(self, checked: Policies, now: float) -> None:
        if not self.disabled:  # asked again after a fault
            self._scheduler.switch(checked, now, self._events)

    def end_step(self) -> None:
        """Let the timer judge the step's choices together."""
        try:
            self._timer.end_step()
        except PolicyFault as fault:
            self._fail(fault)

    def suspend(self) -> None:
        """Order first come, first served until `reinstate`; O(waiting · log waiting)."""
        if self.in_force:
            self.suspended = True
            self._guard(self._scheduler.suspend)

    def reinstate(self) -> None:
        """End the suspension; O(waiting · log waiting)."""
        if self.suspended:
            self.suspended = False
            self._guard(self._scheduler.reinstate)

    def _guard(self, act: Callable[[], Answer]) -> Answer:
        """Act; if a policy fails, disable all of them and act once more under first come, first served.

        Any exception counts: ranks that cannot be compared fail inside the queue, not inside the policy. Acting twice
        does no harm: what was done before the fault is gone with the old queue, and stock policies listen to nothing.
        """
        try:
            return act()
        except Exception as error:
            if self.disabled:
                raise
            self._fail(error if isinstance(error, PolicyFault) else _as_fault(error))
            return act()

    def _fail(self, fault: PolicyFault) -> None:
        self.disabled = True
        self.suspended = False
        self.holds = self.chooses_victims = False
        self._rebuild()
        self._on_fault(fault)
        logger.error(
            "headway: %s; all policies are disabled until the engine restarts, and waiting requests are served "
            "first come, first served",
            fault,
        )

    def _rebuild(self) -> None:
        had_offline = self._scheduler.has_offline
        self._scheduler = Scheduler(Policies(Fcfs(), Greedy(), LatestAdmitted(), RunningMean()))
        if had_offline:
            self._scheduler.expect_offline()
        self._scheduler.gate = self._gate
        queue = self._scheduler.queue
        for request in self._entered.values():
            if request.id in self._waiting:
                queue.add(request)
            else:
                queue.expect(request.id)
        for request, resumed in self._waiting.values():
            if resumed:
                queue.resume(request)

    def _leave(self, request_id: RequestId) -> None:
        self._waiting.pop(request_id, None)
        self._entered.pop(request_id, None)

    def _queue(self, request: Request, resumed: bool) -> None:
        if resumed:
            self._scheduler.queue.resume(request)
        else:
            self._scheduler.queue.add(request)

    def _joined_past(self, request: Request, head: Request, now: float) -> None:
        if self.disabled:  # asked again after a fault: under FCFS none passes the head
            self._scheduler.take(request.id, now)
        else:
            self._scheduler.admit_past(request, head, now)

    def _retuned(self, values: Mapping[str, float]) -> None:
        if self._retune is not None and not self.disabled:  # asked again after a fault
            self._timer.ask("ordering", False, self._retune, values)
            self._reconsider()

    def _reconsider(self) -> None:
        self._scheduler.queue.reconsider()


def _as_fault(error: Exception) -> PolicyFault:
    return PolicyFault("ordering", "nonsense", f"gave ranks or lanes that the queue cannot use ({error})")
