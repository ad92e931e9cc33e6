"""The dispatcher: how requests come and end. It admits them to queues or refuses them, sends them, and ends them.

Laws: `Counts` (no request is lost, none ends twice); a refused client learns when to retry; an exception ends the one
request that it belongs to (`contain`), and never passes through `arrive`, `end` or `sweep`.

Which waiting request is sent now, and to which replica, is in `served_queues.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.answer_forecast import assume_prefilled, expected_seconds, is_due
from headway.gateway.queueing.budget_accounts import BudgetAccounts
from headway.gateway.queueing.counts import Counts, Outcome, RetryCause
from headway.gateway.queueing.dispatch_contracts import DispatchObserver, QueueHooks, Relay, RequestObserver
from headway.gateway.queueing.entry_checks import EntryChecks
from headway.gateway.queueing.internal_errors import InternalErrors
from headway.gateway.queueing.learning_from_answer import learn_from_answer
from headway.gateway.queueing.model_choice import ModelChoice
from headway.gateway.queueing.outages import OwnShortages
from headway.gateway.queueing.queue_keys import is_adapter
from headway.gateway.queueing.replica_room import look_after
from headway.gateway.queueing.request_state import GatewayRequest, PromptSize, QueuedRequest, RequestMove, RequestStage
from headway.gateway.queueing.retries import Retries
from headway.gateway.queueing.served_queues import ServedQueues
from headway.gateway.queueing.time_limits import TimeLimits
from headway.gateway.replicas.believed_costs import share_costs
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import Settings

# Bound once: on Python 3.11 a member of an enum takes forty times as long through its class.
_QUEUED, _SENT, _ENDED = RequestStage.QUEUED, RequestStage.SENT, RequestStage.ENDED
_HELD, _NO_ANSWER = RequestStage.HELD, RetryCause.NO_ANSWER
_MOVE_QUEUED, _MOVE_DISPATCHED, _MOVE_ENDED = RequestMove.QUEUED, RequestMove.DISPATCHED, RequestMove.ENDED
_COMPLETED = Outcome.COMPLETED


class Dispatcher:
    """One per process. `clock` gives seconds; everything is called from the event loop's one thread."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        observers: Sequence[RequestObserver] = (),
        ask_for_models: Callable[[Callable[[], None]], bool] = lambda then: False,
        hooks: QueueHooks = QueueHooks(),  # noqa: B008 - it is frozen
    ) -> None:
        """`observers` take note of requests, `hooks` are of queues; `ask_for_models`: see `ModelLists.ask_again`."""
        self.settings = settings
        self.now = clock  # an attribute, because it is asked many times a request
        self.counts = Counts()
        self.errors = InternalErrors(clock)
        self.served_queues = ServedQueues(settings, clock, self.errors, self, hooks)
        self.queues = self.served_queues.queues
        self.replicas = self.served_queues.replicas
        self.relays: dict[int, Relay] = {}  # of requests that have not ended, by number, in order of arrival
        self._sent: dict[int, Relay] = {}  # of those at a replica
        self.is_draining = False
        self._observers = observers
        self._dispatch_observers = [observer for observer in observers if isinstance(observer, DispatchObserver)]
        self._ask_for_models = ask_for_models
        self._costs = settings.policies.costs
        self.budgets = BudgetAccounts(settings.tenant, self.served_queues, clock, go_on_soon=hooks.go_on_soon)
        self.entry_checks = EntryChecks(self.served_queues, self.budgets, clock, settings.policies.seed)
        self.model_choice = ModelChoice(self.served_queues, clock)
        self.shortages = OwnShortages()
        self.retries = Retries(settings.policies.seed)
        self._later = hooks.later
        self.time_limits = TimeLimits(self.served_queues, self.entry_checks, self.retries, self.relays, self.contain)

    # The way in

    def announce(self, relay: Relay) -> bool:
        """Count a request from now on. False if it was refused because the gateway drains; else `arrive` follows."""
        self.counts.arrive()
        self.relays[relay.request.arrived.number] = relay
        self.time_limits.arrived(relay.request)
        if self.is_draining:
            relay.refuse(self.entry_checks.draining())
        return not self.is_draining

    def arrive(self, relay: Relay, prompt: PromptSize | None = None) -> None:
        """An announced request is refused, is sent, or waits. `prompt` is its size where that was counted since."""
        try:
            self._arrive(relay, prompt)
        except Exception as error:
            self.contain(relay, "arrival", error)

    def _arrive(self, relay: Relay, prompt: PromptSize | None) -> None:
        request, now = relay.request, self.now()
        if request.stage is _ENDED:  # its client left meanwhile
            return
        queued = request.queued
        if prompt is not None:
            queued.prompt_tokens, queued.cached_prompt_tokens, queued.counted = prompt
        if is_adapter(queued.arrived.model, self.replicas):
            queued.adapter = queued.arrived.model
        refusal = self.entry_checks.refusal(queued) or self.budgets.enter(queued)
        if refusal is not None:
            is_unknown = refusal.reason is Reason.UNKNOWN_MODEL
            if not (is_unknown and self._ask_for_models(partial(self.arrive, relay))):
                relay.refuse(refusal)
            return
        queue = self.served_queues.queue_of(queued)
        queue.arrive(queued, now)
        request.move(_MOVE_QUEUED)
        self.served_queues.joined(queued)
        self.time_limits.queued(request)
        if queued.deadline is not None:
            refusal = self.entry_checks.missed_deadline(queued, queue, now)
            if refusal is not None:
                relay.refuse(refusal)
                return
        self._pump_for(relay)
        queued.has_waited = request.stage is _QUEUED

    def _pump_for(self, relay: Relay) -> None:
        """Dispatch what there is room for, after a request joined its queue; one that never waits does not stay."""
        self.served_queues.pump()
        request = relay.request
        if request.arrived.never_waits and request.stage is _QUEUED:
            message = "no replica has room now, and the request is not to wait (`x-headway-no-queue`)"
            drain_seconds = self.served_queues.queue_of(request.queued).drain_seconds()
            relay.refuse(self.entry_checks.too_many(message, Reason.NO_QUEUE, drain_seconds))

    # To the replicas

    def pump(self) -> None:
        """Dispatch as many requests as there is room for, in the order of the policies."""
        self.served_queues.pump()

    def object_made(self, request: GatewayRequest, answer: bytes) -> None:
        """The answer that begins like this is a new object, which its replica alone knows."""
        replica = request.queued.replica
        assert replica is not None, "only a dispatched request is answered"
        self.served_queues.stored_objects.note(answer, replica.name, self.settings.queue.stored_objects)

    def send(self, queued: QueuedRequest, replica: UpstreamReplica, now: float) -> None:
        """Send a request that has just left its queue."""
        number = queued.arrived.number
        relay = self._sent[number] = self.relays[number]
        relay.request.move(_MOVE_DISPATCHED)
        self.served_queues.left(queued)
        if queued.budget is not None:
            self.budgets.sent(queued)
        ledger = replica.ledger
        hashes = queued.arrived.prompt.hashes
        confirmed = ledger.cached_prompt_tokens(queued, hashes) if hashes else None
        if confirmed is None:
            queued.confirmed_tokens = 0
        else:  # from now on it is at this replica, whatever its session left at others
            queued.confirmed_tokens = queued.cached_prompt_tokens = confirmed
        if not ledger.prefill_tokens:
            ledger.prefill_since = now
        ledger.enter(queued, relay.request.relayed)
        queued.prefill_tokens_there, queued.prefill_since = ledger.prefill_tokens, ledger.prefill_since
        self.served_queues.routing.routed(queued, replica)
        queued.replica, queued.wanted_replica = replica, None
        queued.tries += 1
        queued.dispatched_at = self.now()
        try:
            relay.dispatch(replica)
        except Exception as error:
            self.contain(relay, "dispatch", error)
            return
        for observer in self._dispatch_observers:
            try:
                observer.dispatched(relay.request, now)
            except Exception as error:
                self.errors.contained("observing", error)

    def give_up(self, queued: QueuedRequest, failed: UpstreamReplica) -> None:
        """Refuse a waiting request: only the replica that failed it is left."""
        relay = self.relays[queued.arrived.number]
        relay.refuse(self.entry_checks.unserved(f"replica {failed.shown_as} failed, and no other is up"))

    # The way back

    def first_byte(self, request: GatewayRequest) -> None:
        """The replica produced something."""
        self.prefilled(request)
        replica, now = request.queued.replica, self.now()
        if replica is not None and request.relayed.status == 200 and request.arrived.streams:
            replica.ledger.prefill_since = now
            self._measure(request.queued, replica, now, 0)
        if self.served_queues.holds:  # a refusal stands no longer than the batch is the same
            self.served_queues.pump()

    def prefilled(self, request: GatewayRequest) -> None:
        """Its prompt counts as computed from now on."""
        queued = request.queued
        assert queued.replica is not None, "only a dispatched request is answered"
        queued.replica.ledger.first_token(queued)
        if queued.admitted_by is not None and request.relayed.status == 200:
            self.errors.guard("policies", queued.admitted_by.first_token, queued, self.now())

    def _measure(self, queued: QueuedRequest, replica: UpstreamReplica, now: float, output_tokens: int) -> None:
        began = queued.dispatched_at or now
        replica.first_byte(now - began, expected_seconds(queued, output_tokens, self._costs))

    def doubt_models(self) -> None:
        """A replica answered that it does not have a model that it lists: ask all replicas for theirs."""
        self._ask_for_models(lambda: None)

    def may_try_again(self, request: GatewayRequest, *, answered: bool) -> bool:
        """Whether another replica could take the request, within its time and within the bound of second tries.

        `answered`: its replica works and answered with an error, so that all requests may meet it and be sent twice.
        """
        own, model, settings = request.queued.replica, request.arrived.model, self.settings.requests
        if own is None or not any(
            replica.is_up and replica is not own and replica.serves(model) for replica in self.replicas
        ):
            return False
        may = not answered or self.retries.are_possible(self.counts.inside, settings)
        return may and self.retries.has_time(request, self.now(), settings)

    def take_back(
        self, request: GatewayRequest, cause: RetryCause = _NO_ANSWER, *, destination: UpstreamReplica | None = None
    ) -> None:
        """Hold a dispatched request for a moment; then put it in front of its queue, for another replica.

        `destination`: it is moved there, and its own replica has not failed.
        """
        queued = request.queued
        assert queued.replica is not None
        queued.produced_tokens = 0
        queued.replica.ledger.leave(queued)
        queued.failed_replica, queued.wanted_replica = (None if destination else queued.replica), destination
        del self._sent[queued.arrived.number]
        request.move(RequestMove.HELD)
        if destination is not None:
            self.counts.moved += 1
            self._queue_again(self.relays[queued.arrived.number])
            return
        self.counts.retries[cause] += 1
        if cause is RetryCause.ERROR:
            self.retries.wait(request, self.now())
            self._begin_second_tries()
            self.retries.delayed += self.retries.is_waiting(request)
        else:
            self._queue_soon(queued.arrived.number)
        self.served_queues.pump()  # its place is free

    def _begin_second_tries(self) -> None:
        for number in self.retries.begin(self.counts.inside, self.settings.requests):
            self._queue_soon(number)

    def _queue_soon(self, number: int) -> None:
        """A held request returns to its queue after a moment."""
        again = partial(self._queue_again, self.relays[number])
        seconds = self.retries.backoff_seconds(self.settings.requests)
        if self._later is None or not seconds:
            again()
        else:
            self._later(seconds, again)

    def _queue_again(self, relay: Relay) -> None:
        request, queued = relay.request, relay.request.queued
        if request.stage is not _HELD:  # it ended meanwhile
            return
        try:
            self.served_queues.queue_of(queued).take_back(queued, self.now())
            request.move(RequestMove.TAKEN_BACK)
            self.served_queues.joined(queued)
            self.time_limits.queued(request)
            self._pump_for(relay)
        except Exception as error:
            self.contain(relay, "dispatch", error)

    def end(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None = None) -> None:
        """The one end of every request, wherever it stands: its place is free. The table refuses a second end."""
        now, queued, replica = self.now(), request.queued, request.queued.replica
        was_queued, was_held = request.stage is _QUEUED, request.stage is _HELD
        self.relays.pop(queued.arrived.number, None)
        self._sent.pop(queued.arrived.number, None)
        request.move(_MOVE_ENDED)
        if was_queued:
            self.served_queues.left(queued)
        self.counts.end(outcome, reason)
        if self.retries.ended(request):
            self._begin_second_tries()
        if queued.budget is not None:
            self.errors.guard("budget", self.budgets.ended, request, outcome, reason, now)
        try:
            if was_queued:
                self.served_queues.queue_of(queued).cancel(queued, now)
            elif replica is not None:
                queued.produced_tokens = -(-request.relayed.output_tokens // queued.sequences)
                self._tell_scheduler(request, replica, outcome, now)
        except Exception as error:
            self.errors.contained("policies", error)
        if not was_queued and not was_held and replica is not None:
            replica.ledger.leave(queued)
        for observer in self._observers:
            try:
                observer.ended(request, outcome, reason, now)
            except Exception as error:
                self.errors.contained("observing", error)
        self.served_queues.pump()

    def contain(self, relay: Relay, place: str, error: Exception) -> None:
        """An exception passed through one request: count it, and end that request alone."""
        self.errors.contained(place, error)
        try:
            relay.break_off()
        except Exception as second:
            self.errors.contained(place, second)
        if relay.request.stage is not _ENDED:
            self.end(relay.request, Outcome.FAILED, Reason.INTERNAL_ERROR)

    def _tell_scheduler(self, request: GatewayRequest, replica: UpstreamReplica, outcome: Outcome, now: float) -> None:
        """Tell the scheduler that admitted a request of its end; only a whole answer teaches lengths."""
        queued = request.queued
        scheduler = queued.admitted_by
        if scheduler is None:
            return
        if outcome is _COMPLETED and request.relayed.status == 200 and queued.produced_tokens > 0:
            scheduler.complete(queued, now)
            if request.arrived.endpoint.is_generation:
                learn_from_answer(request, replica, now)
            if not request.arrived.streams and request.arrived.endpoint.is_generation:
                self._measure(queued, replica, now, queued.produced_tokens)
        else:
            scheduler.left(queued, now)

    # As time passes

    def sweep(self, now: float) -> None:
        """Refuse requests that waited too long, give up on silent replicas, refresh the ledgers. Once a second."""
        for _ in self.sweep_in_steps(now):
            pass

    def sweep_in_steps(self, now: float) -> Iterator[None]:
        """The same, a request at a step."""
        limits = self.time_limits
        refusals = (limits.refuse_unserved, limits.refuse_late, limits.refuse_overdue, limits.end_untried)
        for act in (*refusals, self.budgets.change_queues, self.served_queues.changes.steps, self._share_costs):
            try:
                yield from act(now)
            except Exception as error:
                self.errors.contained("sweep", error)
        self.errors.guard("sweep", self._forget_idle_queues, now)
        for number, relay in list(self._sent.items()):
            if number not in self._sent:  # it ended between two steps
                continue
            try:
                assume_prefilled(relay.request, now)
                relay.check_silence(now)
            except Exception as error:
                self.contain(relay, "sweep", error)
            yield
        self.errors.guard("sweep", self.served_queues.tell_speed_up, now)
        owing = {
            relay.request.queued.replica for relay in self._sent.values() if is_due(relay.request, self._costs, now)
        }
        for replica in self.replicas:
            self.errors.guard("sweep", look_after, replica, self.served_queues, now)
            self.errors.guard("sweep", replica.look_for_stall, now, owes=replica in owing)
            self.errors.guard("sweep", replica.ledger.refresh)
            self.errors.guard("sweep", replica.pool.sweep, now)
        self.served_queues.pump()

    def _share_costs(self, now: float) -> Iterator[None]:
        return share_costs(self.replicas, self._costs)

    def _forget_idle_queues(self, now: float) -> None:
        at_replicas = {relay.request.queued.queue_key for relay in self._sent.values()}
        self.served_queues.forget_idle(at_replicas, now)

    def end_all(self) -> None:
        """End every request now: the process stops. Nothing is dispatched any more."""
        self.is_draining = self.served_queues.is_stopped = True
        for relay in list(self.relays.values()):
            try:
                relay.cut_off(self.entry_checks.draining())
            except Exception as error:
                self.contain(relay, "end", error)

    def replace(self, settings: Settings, replicas: Iterable[UpstreamReplica], now: float) -> None:
        """Other settings from now on; no request is lost. Requests on replicas that go are finished there."""
        self.settings = settings
        self._costs = settings.policies.costs
        self.budgets.change(settings.tenant)
        self._take_replicas(replicas, now)
        self.served_queues.replace(settings, self.replicas)

    def replace_replicas(self, replicas: Iterable[UpstreamReplica], now: float) -> None:
        """Other replicas from now on, and nothing else: `/admin` may have changed the settings."""
        self._take_replicas(replicas, now)
        self.served_queues.pump()

    def _take_replicas(self, replicas: Iterable[UpstreamReplica], now: float) -> None:
        self.replicas = self.served_queues.replicas = list(replicas)
        for _ in self._share_costs(now):
            pass
