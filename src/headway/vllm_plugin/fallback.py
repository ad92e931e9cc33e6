"""Who rules the queue now: the chosen policies, or plain first come, first served.

Laws: a fault puts the chosen policies aside for good, within the very call in which it shows; stepping back is for a
while and they go on listening; whoever waits still waits after either, and after neither is anybody there twice.
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
from headway.scheduling.scheduler import Policies, Scheduler
from headway.vllm_plugin.policy_guard import PolicyFault, PolicyTimer, TimedEvents, guarded

Answer = TypeVar("Answer")


class FallbackScheduler:
    """The waiting queue under policies that may fail. `on_fault` hears of the one fault that puts them aside."""

    def __init__(
        self,
        policies: Policies,
        watch: PolicyTimer,
        on_fault: Callable[[PolicyFault], None],
        listeners: Sequence[Listener] = (),
    ) -> None:
        """`listeners` hear every event after the policies, as long as those rule or have stepped back."""
        self._listeners = listeners
        self._retune = policies.ordering.retune if isinstance(policies.ordering, Retunable) else None
        self._watch = watch
        self._on_fault = on_fault
        self._guarded = guarded(policies, watch)
        self._events = TimedEvents(policies, watch, self._reconsider)
        self._waiting: dict[RequestId, tuple[Request, bool]] = {}  # and whether it was preempted
        self.put_aside = False
        self.stepped_back = False
        self.holds = type(policies.admission) is not Greedy  # whether admission may hold anybody
        self.chooses_victims = type(policies.preemption) is not LatestAdmitted
        self._brain = self._ours()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def lanes(self) -> int:
        """Lanes compared in the last choice; 1 for orderings without lanes."""
        return 1 if self.put_aside or self.stepped_back else self._watch.lanes

    def arrive(self, request: Request, now: float) -> None:
        """Estimate a newcomer's length and queue it."""
        self._guard(lambda: self._brain.arrive(request, now))
        self._waiting[request.id] = (request, False)

    def preempted(self, request: Request, now: float) -> None:
        """Take a preempted request back, in front."""
        self._guard(lambda: self._brain.preempted(request, now))
        self._waiting[request.id] = (request, True)

    def put_back(self, request: Request, resumed: bool) -> None:
        """Queue somebody again who was withdrawn."""
        self._guard(lambda: self._queue(request, resumed))
        self._waiting[request.id] = (request, resumed)

    def withdraw(self, request_id: RequestId) -> None:
        """Take somebody out without a word: it cannot run now, or its client left."""
        if self._waiting.pop(request_id, None) is not None:
            self._brain.queue.remove(request_id)

    def head(self, now: float) -> Request | None:
        """Who should run next."""
        return self._guard(lambda: self._brain.head(now))

    def take(self, request_id: RequestId, now: float) -> None:
        """Somebody joins the batch."""
        self._waiting.pop(request_id, None)
        self._guard(lambda: self._brain.take(request_id, now))

    @property
    def backfills(self) -> bool:
        """Whether somebody may pass a head that does not fit."""
        return self._brain.backfills

    def candidate(self, refused: Sequence[Request], batch: BatchView, memory: MemoryView, now: float) -> Request | None:
        """Who may come in although those did not fit, the head the first of them; None for nobody."""
        return self._guard(lambda: self._brain.candidate(refused, batch, memory, now))

    def take_past(self, request: Request, head: Request, now: float) -> None:
        """Somebody joins the batch past the head."""
        self._waiting.pop(request.id, None)
        self._guard(lambda: self._joined_past(request, head, now))

    def hold_steps(self, request: Request, batch: BatchView, memory: MemoryView, now: float) -> int:
        """Steps for which the head should not come in; 0 if it may."""
        return self._guard(lambda: self._brain.hold_steps(request, batch, memory, now))

    def victim(self, running: Sequence[Request], now: float) -> Request:
        """Who gives way if memory runs out."""
        return self._guard(lambda: self._brain.victim(running, now))

    def first_token(self, request: Request, now: float) -> None:
        """A first token came out."""
        self._guard(lambda: self._brain.first_token(request, now))

    def complete(self, request: Request, now: float) -> None:
        """A last token came out."""
        self._guard(lambda: self._brain.complete(request, now))

    def left(self, request: Request, now: float) -> None:
        """A client left; the request is not in the queue any more."""
        self._guard(lambda: self._brain.left(request, now))

    def retune(self, values: Mapping[str, float]) -> None:
        """Give the ordering other parameters, while requests wait."""
        self._guard(lambda: self._retuned(values))

    def end_step(self) -> None:
        """Let the watch judge the step's choices."""
        try:
            self._watch.end_step()
        except PolicyFault as fault:
            self._fail(fault)

    def step_back(self, back: bool) -> None:
        """Order first come, first served for a while (or end that); O(waiting · log waiting)."""
        if not self.put_aside and back != self.stepped_back:
            self.stepped_back = back
            self._guard(self._rebuild)

    def _guard(self, act: Callable[[], Answer]) -> Answer:
        """Act; if a policy fails, put all of them aside and act once more under first come, first served.

        Any exception counts: ranks that cannot be compared fail inside the queue, not inside the policy. Acting twice
        does no harm: what was done before the fault is gone with the old queue, and stock policies listen to nothing.
        """
        try:
            return act()
        except Exception as error:
            if self.put_aside:
                raise
            self._fail(error if isinstance(error, PolicyFault) else _as_fault(error))
            return act()

    def _fail(self, fault: PolicyFault) -> None:
        self.put_aside = True
        self.stepped_back = False
        self.holds = self.chooses_victims = False
        self._rebuild()
        self._on_fault(fault)

    def _rebuild(self) -> None:
        self._brain = self._stock() if self.put_aside else self._ours()
        for request, resumed in self._waiting.values():
            self._queue(request, resumed)

    def _queue(self, request: Request, resumed: bool) -> None:
        if resumed:
            self._brain.queue.resume(request)
        else:
            self._brain.queue.add(request)

    def _joined_past(self, request: Request, head: Request, now: float) -> None:
        if self.put_aside:  # asked again after a fault: stock policies let nobody past
            self._brain.take(request.id, now)
        else:
            self._brain.admit_past(request, head, now)

    def _ours(self) -> Scheduler:
        policies = self._guarded
        if self.stepped_back:
            policies = replace(policies, ordering=Fcfs(), admission=Greedy(), preemption=LatestAdmitted())
        return Scheduler(policies, listeners=[self._events, *self._listeners])

    def _stock(self) -> Scheduler:
        return Scheduler(Policies(Fcfs(), Greedy(), LatestAdmitted(), RunningMean()))

    def _retuned(self, values: Mapping[str, float]) -> None:
        if self._retune is not None and not self.put_aside:  # asked again after a fault
            self._watch.ask("ordering", False, self._retune, values)
            self._reconsider()

    def _reconsider(self) -> None:
        self._brain.queue.reconsider()


def _as_fault(error: Exception) -> PolicyFault:
    return PolicyFault("ordering", "nonsense", f"gave ranks or lanes that the queue cannot use ({error})")
