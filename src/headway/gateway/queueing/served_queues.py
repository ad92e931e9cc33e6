"""The queues as they are served: which waiting request is sent now, and to which replica.

Laws: a request leaves its queue only for a replica with room, one beyond its budget only for room that none within
wants; with nothing waiting a request is sent at once; queues are served in turn; an exception at one queue holds up no
other, and never passes through `pump`.

How requests come to the queues, and how they end, is in `dispatcher.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from headway.gateway.openai.stored_objects import StoredObjects
from headway.gateway.queueing.class_ceilings import ClassCeilings
from headway.gateway.queueing.dispatch_contracts import QueueHooks, RequestSender
from headway.gateway.queueing.internal_errors import InternalErrors
from headway.gateway.queueing.model_bounds import ModelBounds
from headway.gateway.queueing.model_queue import ModelQueue
from headway.gateway.queueing.offline_bound import OfflineBound
from headway.gateway.queueing.outages import WaitingDemands, can_be_served, demand_of
from headway.gateway.queueing.policy_changes import TURN_SECONDS, PolicyChanges
from headway.gateway.queueing.queue_bounds import QueueBounds
from headway.gateway.queueing.queue_keys import QueueChanges, home_of, key_of
from headway.gateway.queueing.queue_policies import SharedAccounts
from headway.gateway.queueing.queue_turns import Turns
from headway.gateway.queueing.replica_room import look_at, room_gate, warn_of_unknown_memory, with_a_place
from headway.gateway.queueing.request_routing import RequestRouting
from headway.gateway.queueing.request_state import QueuedRequest, QueueKey
from headway.gateway.replicas.believed_costs import share_of_speed_up
from headway.gateway.replicas.model_lists import is_listed
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import PolicySettings, Settings

_ASKED_AT_ONCE = 50  # queues between two looks at the clock, some 10 us each


class ServedQueues:
    """One per process, as is the dispatcher. `queues` are those that there are now; `waiting` counts their requests."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        errors: InternalErrors,
        sender: RequestSender,
        hooks: QueueHooks,
    ) -> None:
        self.settings = settings
        self.now = clock
        self.errors = errors
        self._sender = sender
        self._hooks = hooks
        self.replicas: list[UpstreamReplica] = []
        self.queues: dict[QueueKey, ModelQueue] = {}
        self._demands = WaitingDemands()
        self.waiting = self._demands.all
        self.offline = OfflineBound()
        self.ceilings = ClassCeilings(settings.queue, settings.service_tiers)
        self.model_bounds = ModelBounds(settings.models)
        self.bounds = QueueBounds()
        self.changes = QueueChanges(self)
        self.stored_objects = StoredObjects()
        self.is_stopped, self.may_serve = False, hooks.may_serve
        self.holds = False  # the admission policy refused a request when the queues were served last
        self._of_unknown_memory: set[str] = set()  # replicas, which the log names
        self._has_room = room_gate(settings)
        self.routing = RequestRouting(settings.policies, errors)
        self.accounts = SharedAccounts()
        self._policy_changes = PolicyChanges(self, hooks)
        self._turns: Turns[ModelQueue] = Turns()
        self._is_pumping = False
        self._pump_again = False
        self._pumps_soon = False  # at the next turn of the event loop, with what was left at this one
        self._is_pump_missed = False  # meanwhile something happened after which it is asked again
        self._asked: set[QueueKey] = set()  # queues whose heads did not fit at earlier turns of the same round
        self._tried_waiting = 0  # requests that wait for a second replica

    # What waits

    def joined(self, queued: QueuedRequest) -> None:
        """A request waits from now on."""
        self._demands.change(queued, 1)
        self._tried_waiting += queued.failed_replica is not None
        self.bounds.joined(queued)
        self.ceilings.joined(queued)
        self.model_bounds.joined(queued)

    def left(self, queued: QueuedRequest) -> None:
        """A request waits no more."""
        self._demands.change(queued, -1)
        self._tried_waiting -= queued.failed_replica is not None
        self.bounds.left(queued)
        self.ceilings.left(queued)
        self.model_bounds.left(queued)

    def queue_of(self, queued: QueuedRequest) -> ModelQueue:
        """The queue of a request; a new one where there is none yet."""
        key = queued.queue_key or self.key_of(queued)
        queue = self.queues.get(key)
        if queue is None:
            policies, hooks = self.settings.policies_of(key.model), self._hooks
            queue = self.queues[key] = ModelQueue(
                key, policies, hooks.prepare, self.errors, self.accounts, hooks.cached_tokens
            )
        return queue

    def key_of(self, queued: QueuedRequest) -> QueueKey:
        """The queue that a request belongs to now."""
        key = key_of(queued, self._home(queued), self.replicas, self.settings)
        if key in self.queues or is_listed(self.replicas, queued.arrived.model):
            return key
        return key._replace(model="")  # unknown names share one

    def _home(self, queued: QueuedRequest) -> UpstreamReplica | None:
        return home_of(queued, self.stored_objects, self.replicas)

    def candidates(self, queued: QueuedRequest) -> list[UpstreamReplica]:
        """The replicas that have room for a request now."""
        model, failed, ends = demand_of(queued)
        home, has_room, wanted = self._home(queued), self._has_room, queued.wanted_replica
        candidates = [
            replica
            for replica in (self.replicas if home is None else [home])
            if replica.is_up and replica is not failed and has_room(replica, queued) and replica.serves(model, ends)
        ]
        return [wanted] if wanted in candidates else candidates

    # Whose turn it is

    def pump(self) -> None:
        """Dispatch as many requests as there is room for, in the order of the policies."""
        if self.is_stopped or self._pumps_soon or not self.may_serve():
            self._is_pump_missed = True
            return
        if not self.waiting:  # as mostly when a request ends
            self.holds = False
            return
        if self._is_pumping:
            self._pump_again = True
            return
        self._is_pumping = True
        try:
            while True:
                self._pump_again = False
                self._serve_queues()
                if not self._pump_again or self._pumps_soon:
                    return
        except Exception as error:
            self._asked.clear()
            self.errors.contained("pump", error)
        finally:
            self._is_pumping = False

    def _serve_queues(self) -> None:
        """Dispatch until no head fits, or this turn of the event loop has taken long enough."""
        self.holds = False
        if len(self.queues) == 1:
            (only,) = self.queues.values()
            self._serve_alone(only)
            return
        if not self._tried_waiting and not any(replica.is_up and replica.has_place for replica in self.replicas):
            self._asked.clear()
            return  # whatever waits: there may be thousands of queues
        queues = self._waiting_queues()
        if len(queues) > 1:
            self._serve_in_turn(queues)
            return
        self._asked.clear()
        if queues:
            self._serve_alone(queues[0])

    def _waiting_queues(self) -> list[ModelQueue]:
        return [queue for queue in self.queues.values() if queue.waiting.requests]

    def _serve_alone(self, queue: ModelQueue) -> None:
        """Serve the only queue in which requests wait, as mostly."""
        until = 0.0
        while queue.waiting.requests:
            now = self.now()
            if not until:
                until = now + TURN_SECONDS
            elif now >= until and self._pump_soon():
                return
            try:
                if not self._serve(queue, [], [], now):
                    return
            except Exception as error:
                self.errors.contained("queue", error)
                return

    def _serve_in_turn(self, waiting: list[ModelQueue]) -> None:
        """Serve several queues in turn, one head each: in rounds, of which each ends when a head was sent.

        A round that takes longer than a turn of the event loop may goes on at the next one.
        """
        until = self.now() + TURN_SECONDS
        while waiting:
            now = self.now()
            if now >= until and self._pump_soon():
                return
            if not self._asked:
                self._is_pump_missed = False
            # A head is given up that only the replica is left for that failed it, so then all are asked.
            able = waiting if self._tried_waiting else with_a_place(waiting, self.replicas)
            some_are_over = any(queue.key.is_over_budget for queue in waiting)
            is_served = self._serve_one(self._turns.order(able, now), some_are_over, now, until)
            if is_served is None:
                return
            self._asked.clear()
            if not is_served:
                self._pump_again |= self._is_pump_missed
                return
            waiting = self._waiting_queues()

    def _serve_one(self, queues: list[ModelQueue], some_are_over: bool, now: float, until: float) -> bool | None:
        """Dispatch the first head that fits, in this order; False if none does, None if the next turn goes on."""
        passed: list[ModelQueue] = []  # those before in turn, whose heads do not fit
        owed: list[UpstreamReplica] = []  # replicas kept free for some of those
        wanted: list[UpstreamReplica] = []  # by those within their budgets; found once, however many are beyond
        for number, queue in enumerate(queues, 1):
            was_asked = queue.key in self._asked
            if not (was_asked or number % _ASKED_AT_ONCE) and self.now() >= until and self._pump_soon():
                return None
            self._asked.add(queue.key)
            try:
                kept = owed + wanted if queue.key.is_over_budget else owed
                if not was_asked and self._serve(queue, kept, passed, now):
                    return True
            except Exception as error:  # the other queues go on
                self.errors.contained("queue", error)
                continue
            passed.append(queue)
            waits_online = bool(queue.scheduler.queue.online)  # nothing is kept free for offline requests
            if waits_online and self._turns.is_owed(queue):
                owed += self._could_serve(queue, now)
            if waits_online and some_are_over and not queue.key.is_over_budget and len(wanted) < len(self.replicas):
                wanted += [replica for replica in self._could_serve(queue, now) if replica not in wanted]
        return False

    def _pump_soon(self) -> bool:
        """Leave the rest to the next turn of the event loop; False where there is none."""
        if self._hooks.go_on_soon is None:
            return False
        self._pumps_soon = True
        self._hooks.go_on_soon(self._pump_on)
        return True

    def _pump_on(self) -> None:
        self._pumps_soon = False
        self.pump()

    def _serve(self, queue: ModelQueue, owed: list[UpstreamReplica], passed: list[ModelQueue], now: float) -> bool:
        """Dispatch the head of a queue, if it fits somewhere, or one that may pass it; False if all have to wait."""
        head = queue.head(now)
        if head is None:
            return False
        asks_admission = queue.asks_admission
        if asks_admission:  # which goes by what the replicas hold now
            for replica in self.replicas:
                look_at(replica, now)
        candidates = self.candidates(head)
        if owed:
            candidates = [replica for replica in candidates if replica not in owed]
        if head.is_offline:
            candidates = self.offline.may_take(candidates, head, self._demands.online, self.settings.offline, now)
        elif asks_admission:
            candidates = [replica for replica in candidates if self._admits(queue, head, replica, now)]
        if not candidates:
            if self._serve_past(queue, head, owed, passed, now):
                return True
            failed = head.failed_replica
            if failed is None or can_be_served(demand_of(head), self.replicas):
                return False
            # Only the replica that failed it is left: it must not keep the requests behind it waiting.
            self._sender.give_up(head, failed)
            return True
        chosen = self.routing.choose(head, candidates, now)
        if chosen is None:
            return False
        if passed or len(self.queues) > 1:
            self._turns.served(queue, [other for other in passed if chosen in self._could_serve(other, now)])
        self._sender.send(queue.admit(now), chosen, now)
        return True

    def _admits(self, queue: ModelQueue, queued: QueuedRequest, replica: UpstreamReplica, now: float) -> bool:
        """Whether the admission policy lets a request go to a replica that has room; an empty one takes any."""
        if not replica.ledger.requests or not queue.asks_admission:
            return True
        if replica.ledger.kv_tokens_max is None:
            warn_of_unknown_memory(replica, self._of_unknown_memory, self.settings.policies.admission)
        steps = queue.hold_steps(queued, replica.ledger, replica.ledger.memory(), now)
        if steps:
            self.holds = True
            self._hooks.held(replica, steps)
        return not steps

    def _serve_past(
        self,
        queue: ModelQueue,
        head: QueuedRequest,
        owed: list[UpstreamReplica],
        passed: list[ModelQueue],
        now: float,
    ) -> bool:
        """Dispatch a request that may pass the head of its queue, which fits nowhere.

        It may where the admission policy says so of that replica, and has to be admitted there as any head. For the
        turns it is as good as a head, but its head stays owed what it was.
        """
        for queued in queue.behind_head(now):
            candidates = []
            for replica in self.candidates(queued):
                if replica in owed or not replica.ledger.requests:
                    continue
                if queue.may_pass(queued, head, replica.ledger, replica.ledger.memory(), now) and self._admits(
                    queue, queued, replica, now
                ):
                    candidates.append(replica)
            chosen = self.routing.choose(queued, candidates, now) if candidates else None
            if chosen is not None:
                if passed or len(self.queues) > 1:
                    others = [other for other in passed if chosen in self._could_serve(other, now)]
                    self._turns.served(queue, others, is_head=False)
                queue.admit_past(queued, head, now)
                self._sender.send(queued, chosen, now)
                return True
        return False

    def _could_serve(self, queue: ModelQueue, now: float) -> list[UpstreamReplica]:
        """The replicas that have a queue's head to wait for."""
        head = queue.head(now)
        if head is None:
            return []
        (model, failed, ends), home = demand_of(head), self._home(head)
        able = self.replicas if home is None else [home]
        return [replica for replica in able if replica.is_up and replica is not failed and replica.serves(model, ends)]

    # What changes

    def tell_speed_up(self, now: float) -> None:
        """Tell each queue's forecast which share of its replicas' speed is up."""
        for key, queue in self.queues.items():
            serving = [r for r in self.replicas if r.serves(key.model) and key.may_be_at(r.name)]
            queue.forecast.speed_up(share_of_speed_up(serving), now)

    def forget_idle(self, at_replicas: set[QueueKey | None], now: float) -> None:
        """A queue without a request for long goes, unless `at_replicas` names it; what its policies learned is kept."""
        longest = self.settings.queue.idle_seconds
        idle = [queue for queue in self.queues.values() if not len(queue) and now - queue.used_at >= longest]
        for queue in idle:
            if queue.key not in at_replicas:
                del self.queues[queue.key]
                self._turns.forget(queue)
                self._hooks.forget(queue.key)

    def replace(self, settings: Settings, replicas: list[UpstreamReplica]) -> None:
        """Other settings from now on; no request is lost. Requests on replicas that go are finished there."""
        before = self.settings
        changed = settings.tuning != before.tuning or settings.policies != before.policies
        changed |= any(settings.policies_of(key.model) != before.policies_of(key.model) for key in self.queues)
        waiting = [queued for queue in self.queues.values() for queued in queue.requests]
        if (settings.queue, settings.service_tiers) != (before.queue, before.service_tiers):
            self.ceilings = ClassCeilings(settings.queue, settings.service_tiers, waiting)
        if settings.models != before.models:
            self.model_bounds = ModelBounds(settings.models, waiting)
        self.settings = settings
        self._has_room = room_gate(settings)
        self.replicas = replicas
        if changed or self.routing.is_replaced or any(queue.is_replaced for queue in self.queues.values()):
            self.routing = RequestRouting(settings.policies, self.errors)
            self.accounts = SharedAccounts()
            self._policy_changes.begin()
        self.pump()

    @property
    def is_switching(self) -> bool:
        """Whether requests go over to changed policies, or wait that waited at the last switch."""
        return self._policy_changes.goes_on or any(queue.is_switching for queue in self.queues.values())

    def switch(self, policies: PolicySettings) -> None:
        """Other policies for all queues without an order of their own; what waits keeps a bound on being passed."""
        self.settings = replace(self.settings, policies=policies)
        self.accounts = SharedAccounts()
        self._policy_changes.begin(keeps_line=True)
        self.pump()
