"""A dispatcher on a clock of its own, without a socket, whose replicas answer when the test says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from headway.domain.event import Completed, Event
from headway.gateway.openai.error_responses import Reason
from headway.gateway.openai.usage import Usage
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatch_contracts import QueueHooks
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.model_queue import ModelQueue
from headway.gateway.queueing.outages import demand_of
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.request_state import GatewayRequest, QueuedRequest, QueueKey, RequestMove, RequestStage
from headway.gateway.queueing.waiting_sums import WaitingSums
from headway.gateway.replicas.replica_state import Health
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import HealthSettings, PolicySettings, QueueSettings, ReplicaSettings, Settings
from headway.scheduling.scheduler import Policies
from tests.support.gateway_requests import gateway_request

HEALTH = HealthSettings(no_replica_seconds=30.0)


class Client:
    """What carries a request: notes what is done with it."""

    def __init__(self, bench: Bench, request: GatewayRequest) -> None:
        self.request = request
        self.sent_to: list[str] = []
        self.refusal: Refusal | None = None
        self.looked_at: list[float] = []
        self.broken = False
        self._bench = bench

    def dispatch(self, replica: UpstreamReplica) -> None:
        self.sent_to.append(replica.name)
        if replica.name == "breaks":
            raise RuntimeError("no transport")
        self.request.move(RequestMove.SENT)

    def refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        self._bench.dispatcher.end(self.request, Outcome.REFUSED, refusal.reason)

    def withdraw(self, destination: UpstreamReplica) -> bool:
        return False

    def check_silence(self, now: float) -> None:
        self.looked_at.append(now)

    def cut_off(self, refusal: Refusal) -> None:
        self.refuse(refusal)

    def break_off(self) -> None:
        self.broken = True

    @property
    def reason(self) -> str:
        return "" if self.refusal is None else self.refusal.reason

    @property
    def stage(self) -> RequestStage:
        return self.request.stage


class Heard:
    """A listener beside the policies, and an observer of requests."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.dispatched_at: list[tuple[int, float]] = []
        self.ends: list[tuple[int, Outcome, Reason | None]] = []

    def observe(self, event: Event) -> None:
        self.events.append(event)

    def dispatched(self, request: GatewayRequest, now: float) -> None:
        self.dispatched_at.append((request.arrived.number, now))

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        self.ends.append((request.arrived.number, outcome, reason))


def sums_of(waiting: Sequence[QueuedRequest]) -> WaitingSums:
    tokens, size = sum(q.prompt_tokens for q in waiting), sum(q.arrived.body_bytes for q in waiting)
    return WaitingSums(len(waiting), tokens, size)


class Bench:
    """A dispatcher with replicas that are up and answer when the test says so."""

    def __init__(
        self,
        names: Sequence[str] = ("r0",),
        *,
        seats: int = 1,
        queue: QueueSettings | None = None,
        policies: PolicySettings | None = None,
        models: Sequence[str] = (),
        turn_by_turn: bool = False,
    ) -> None:
        """With `turn_by_turn` each look at the clock takes a millisecond, and `turns` are what is left for later."""
        self.now = 100.0
        self.turns: list[Callable[[], None]] = []
        self.held: list[tuple[str, int]] = []  # (replica, steps) of refusals by the admission policy
        self.heard = Heard()
        self.asked_for_models = 0
        self.forgotten: list[QueueKey] = []
        self.settings = Settings(
            listen="127.0.0.1:0",
            queue=queue or QueueSettings(class_ceilings={"1": 1.0}),
            health=HEALTH,
            policies=policies or PolicySettings(ordering="fcfs"),
        )
        self.dispatcher = Dispatcher(
            self.settings,
            lambda: self.now,
            [self.heard],
            self._ask_for_models,
            QueueHooks(
                self._prepare,
                self.forgotten.append,
                lambda replica, steps: self.held.append((replica.name, steps)),
                self.turns.append if turn_by_turn else None,
            ),
        )
        if turn_by_turn:
            self.dispatcher.now = self.dispatcher.served_queues.now = self._slow_clock
        self.policies: Policies | None = None
        replicas = []
        for name in names:
            chosen = ReplicaSettings(url=f"http://{name}:1", name=name, max_requests=seats, prefill_tokens=100_000)
            replica = UpstreamReplica(chosen, HEALTH, lambda: self.now)
            replica.state.health = Health.UP
            if models:
                replica.state.models = {model: {} for model in models}
            replicas.append(replica)
        self.dispatcher.replace(self.settings, replicas, self.now)
        self.replicas = self.dispatcher.replicas
        self._numbers = 0

    def _slow_clock(self) -> float:
        self.now += 0.001
        return self.now

    def turn(self) -> int:
        """Let the dispatcher go on; how many requests it dispatched."""
        (act,), self.turns[:] = self.turns, []
        before = len(self.heard.dispatched_at)
        act()
        return len(self.heard.dispatched_at) - before

    def law(self) -> None:
        """What is counted is what is there: by demand, by queue, by payer, at each replica."""
        dispatcher, requests = self.dispatcher, [relay.request for relay in self.dispatcher.relays.values()]
        assert dispatcher.counts.is_conserved()
        assert dispatcher.counts.inside == len(requests)
        waiting = [request.queued for request in requests if request.stage is RequestStage.QUEUED]
        assert dispatcher.served_queues.waiting == Counter(demand_of(queued) for queued in waiting)
        served, payers = dispatcher.served_queues, {queued.arrived.payer for queued in waiting}
        assert served.bounds.waiting == sums_of(waiting)
        assert served.bounds.in_outage == sums_of([queued for queued in waiting if queued.came_in_outage])
        assert served.bounds.by_payer == {
            payer: sums_of([queued for queued in waiting if queued.arrived.payer == payer]) for payer in payers
        }
        assert served._tried_waiting == sum(queued.failed_replica is not None for queued in waiting)
        for ceiling in dispatcher.served_queues.ceilings._ceilings:
            assert ceiling.waiting == sums_of([queued for queued in waiting if queued.priority >= ceiling.priority])
        for queue in dispatcher.queues.values():
            own = [queued for queued in waiting if queued.queue_key == queue.key]
            assert (len(queue), len(queue.scheduler.queue) + len(queue._unmoved)) == (len(own), len(own))
            assert sums_of(own) == queue.waiting
            by_payer = {queued.arrived.payer: [] for queued in own}  # type: ignore[var-annotated]
            for queued in own:
                by_payer[queued.arrived.payer].append(queued)
            assert queue.waiting_by_payer == {payer: sums_of(theirs) for payer, theirs in by_payer.items()}
            online = [queued for queued in own if not queued.is_offline]
            assert queue.waiting_work == pytest.approx(sum(queued.work for queued in online))
            assert list(queue._requests.values()) == sorted(
                own, key=lambda queued: list(queue._requests).index(queued.id)
            )
        sent = [request.queued for request in requests if request.stage is RequestStage.SENT]
        assert {queued.arrived.number for queued in sent} == set(dispatcher._sent)
        for replica in self.replicas:
            assert set(replica.ledger.running()) == {queued for queued in sent if queued.replica is replica}
            assert replica.ledger.requests == len(replica.ledger.running())

    def _prepare(self, key: QueueKey, settings: PolicySettings, policies: Policies) -> tuple[Heard, ...]:
        self.policies = policies
        return (self.heard,)

    def _ask_for_models(self, then: object) -> bool:
        self.asked_for_models += 1
        return False

    def arrive(self, prompt_tokens: int = 50, *, body: dict[str, object] | None = None, **arrived: object) -> Client:
        self._numbers += 1
        content = {"prompt": "x", "max_tokens": 10} | (body or {})
        arrived = {"arrived_at": self.now} | arrived
        client = Client(self, gateway_request(self._numbers, content, prompt_tokens=prompt_tokens, **arrived))  # type: ignore[arg-type]
        if self.dispatcher.announce(client):
            self.dispatcher.arrive(client)
        self.law()
        return client

    def answer(self, client: Client, tokens: int = 10, *, status: int = 200, whole: bool = True) -> None:
        """The replica answers, and the request ends."""
        client.request.relayed.status = status
        client.request.relayed.usage = Usage(50, tokens, 0)
        self.dispatcher.first_byte(client.request)
        if status == 200 and whole:
            self.dispatcher.end(client.request, Outcome.COMPLETED)
        elif whole:
            self.dispatcher.end(client.request, Outcome.COMPLETED, None)
        else:
            self.dispatcher.end(client.request, Outcome.FAILED, Reason.REPLICA_FAILED)
        self.law()

    @property
    def queue(self) -> ModelQueue:
        (queue,) = self.dispatcher.queues.values()
        return queue

    def learned(self) -> list[int]:
        return [event.output_tokens for event in self.heard.events if isinstance(event, Completed)]
