"""A fleet's day on reference engines: one clock over N of them, every step of each an instant, written for reading.

Slow, and the yardstick of `fleet.py`: the same router, arrivals and engines of its own. At an instant, in this order:
the steps that end there; the requests that arrive; the router sends; the engines whose step ended, or that were idle,
take in what they were sent and compose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from headway.domain.event import Completed, Event, FirstToken, Listener
from headway.simulator.arrivals import FOREVER, RequestFactory
from headway.simulator.driven_engine import HandedOver
from headway.simulator.fleet import fault_times
from headway.simulator.fleet_members import FleetMember
from headway.simulator.fleet_outcome import FleetOutcome, ReplicaOutcome, fullest, summed
from headway.simulator.fleet_rescheduling import HandOverOrder, MoveOrder, TakeBackOrder
from headway.simulator.fleet_router import FleetPolicies, FleetRouter, Routing
from headway.simulator.outcome import NEVER, LoadPoints, StepObserver, StepRecord, TokenGaps
from headway.simulator.reference import ExpectedArrivals, outcome_of, request_of
from headway.simulator.reference_blocks import ContentKeys
from headway.simulator.reference_engine import ReferenceEngine
from headway.simulator.reference_request import ReferenceRequest
from headway.simulator.rules import NO_PLUGIN, PluginRules
from headway.simulator.step_time import SECONDS_PER_PS
from headway.simulator.trace import Trace


def simulate_reference_fleet(
    trace: Trace,
    members: Sequence[FleetMember],
    routing: Routing,
    policies: FleetPolicies,
    *,
    plugin: PluginRules = NO_PLUGIN,
    observers: Sequence[StepObserver] | None = None,
    listeners: Sequence[Listener] = (),
) -> FleetOutcome:
    """As `fleet.simulate_fleet`, step by step."""
    return _ReferenceFleetDay(trace, members, routing, policies, plugin, observers, listeners).run()


class _ReferenceReplica:
    """One replica: its engine, what it was sent, and what it did. It receives the engine's steps."""

    def __init__(
        self,
        trace: Trace,
        member: FleetMember,
        policies: FleetPolicies,
        plugin: PluginRules,
        observer: StepObserver | None,
        listeners: Sequence[Listener],
    ) -> None:
        self._policies = policies
        self._plugin = plugin
        self._listeners = listeners
        self.member = member
        self.ends_ps: int | None = None  # when its oldest step in flight ends
        self.inbox: list[ReferenceRequest] = []
        self.landed: list[ReferenceRequest] = []
        self.to_stop: list[tuple[ReferenceRequest, HandedOver]] = []
        self.records: list[StepRecord] = []
        self.curve: list[tuple[int, int, int, int]] = []
        self._trace = trace
        self._observer = observer
        self.engine = self._started()

    def _started(self) -> ReferenceEngine:
        rules = self.member.rules
        return ReferenceEngine(
            rules,
            self.member.step_time,
            self._policies.at_replica(self.member.costs),
            ContentKeys(self._trace, rules.block_tokens).key,
            plugin=self._plugin,
            observer=self,
            listeners=self._listeners,
        )

    def fail(self, at_ps: int, until_ps: int) -> None:
        """All that it holds is lost; from `until_ps` on a new engine serves."""
        self.curve.append((max(at_ps, self.engine.now_ps), 0, 0, 0))
        self.inbox.clear()
        self.landed.clear()
        self.to_stop.clear()
        self.ends_ps = None
        self.engine = self._started()
        self.engine.idle_until(until_ps)

    def on_step(self, step: StepRecord) -> None:
        """Note a step that was composed."""
        engine = self.engine
        self.records.append(step)
        used = self.member.rules.kv_blocks - step.blocks_free
        self.curve.append((engine.now_ps, engine.waiting, engine.size, used))
        if self._observer is not None:
            self._observer.on_step(step)

    def take_in(self, now_ps: int) -> None:
        """Nothing runs, or a step has just ended: submit what was sent here and compose."""
        engine = self.engine
        if self.ends_ps is None and now_ps > engine.now_ps:
            self.curve.append((engine.now_ps, 0, 0, 0))
            engine.idle_until(now_ps)
        for request, told in self.to_stop:
            computed = request.computed_tokens
            told(request.row, engine.stop_request(request), computed)
        self.to_stop.clear()
        for request in self.landed:
            engine.resume(request, int(self._trace.output_tokens[request.row]))
        self.landed.clear()
        for request in self.inbox:
            engine.submit(request, int(self._trace.output_tokens[request.row]))
        self.inbox.clear()
        self.ends_ps = engine.compose()

    # What it tells the router (`replica_ledger.EngineNews`)

    def cached_tokens(self, row: int, prompt_tokens: int, at_ps: int) -> int:
        """Prompt tokens of this row that its prefix cache holds."""
        return self.engine.cached_tokens(request_of(self._trace, row, 0.0, 0.0, ()))

    def fresh_rows(self) -> set[int]:
        """Rows of the requests that were sent here and have never run here."""
        queued = [request for request in self.engine.queued() if not request.high_water_tokens]
        return {request.row for request in (*self.inbox, *queued)}

    def waiting_requests(self) -> int:
        """How many requests wait here."""
        return len(self.inbox) + len(self.landed) + self.engine.waiting

    def output_tokens(self, at_ps: int) -> Iterable[tuple[int, int]]:
        """(row, output tokens that have come out) of the requests that run."""
        return [(int(request.id), request.produced_tokens) for request in self.engine.running()]


class _ReferenceFleetDay:
    """One trace on one fleet; `run` once."""

    def __init__(
        self,
        trace: Trace,
        members: Sequence[FleetMember],
        routing: Routing,
        policies: FleetPolicies,
        plugin: PluginRules,
        observers: Sequence[StepObserver] | None,
        listeners: Sequence[Listener],
    ) -> None:
        in_front = routing.queue == "gateway"
        self._trace = trace
        self._arrived_ps = [NEVER] * len(trace)
        factory = RequestFactory(trace, self._arrived_ps)
        self._router = FleetRouter(trace, factory, members, routing, policies.in_front, listeners if in_front else ())
        self._replicas = [
            _ReferenceReplica(
                trace,
                member,
                policies,
                plugin,
                None if observers is None else observers[index],
                [_ReplicaNews(self._router, index), *(() if in_front else listeners)],
            )
            for index, member in enumerate(members)
        ]
        for ledger, replica in zip(self._router.ledgers, self._replicas, strict=True):
            ledger.engine = replica  # it passes on to its engine, also to one that is started again
        self._expected = ExpectedArrivals(trace)
        self._requests: dict[int, ReferenceRequest] = {}  # by row; also the refused ones that did arrive
        self._refused: dict[int, str] = {}
        self._faults = fault_times(members)
        self._past_ps = 0
        self._failed: dict[int, str] = {}
        self._replica = [NEVER] * len(trace)
        self._gaps: list[TokenGaps] = []

    def run(self) -> FleetOutcome:
        """Play the whole day, an instant at a time."""
        while True:
            ends = [replica.ends_ps for replica in self._replicas if replica.ends_ps is not None]
            arrival = [] if self._expected.next_ps is None else [self._expected.next_ps]
            fault = [] if self._faults[-1].at_ps == FOREVER else [self._faults[-1].at_ps]
            move = [] if self._router.rescheduler.next_ps == FOREVER else [self._router.rescheduler.next_ps]
            if not ends and not arrival and not move and not (fault and self._router.waiting):
                if self._router.waiting:
                    self._fail(self._router.abandon(self._past_ps))
                return self._outcome()
            self._past_ps = min(ends + arrival + fault + move)
            self._live_through(self._past_ps)

    def _live_through(self, now_ps: int) -> None:
        if now_ps > self._router.report_ps:
            self._router.report(now_ps)
        acting = [replica for replica in self._replicas if replica.ends_ps == now_ps]
        for replica in acting:
            self._finish_step(replica)
        while self._faults[-1].at_ps == now_ps:
            fault = self._faults.pop()
            replica = self._replicas[fault.replica]
            if fault.drains:
                self._router.drain(fault.replica)
                continue
            if fault.recovers:
                self._router.recover(fault.replica)
                continue
            replica.fail(now_ps, fault.until_ps)
            acting = [other for other in acting if other is not replica]
            self._fail(self._router.fail(fault.replica, now_ps))
            self._fail(self._router.give_up(now_ps))
        for order in self._router.moves(now_ps) if self._router.rescheduler.next_ps <= now_ps else ():
            self._move(order, now_ps, acting)
        while self._expected.next_ps is not None and self._expected.next_ps <= now_ps:
            self._take_arrivals(now_ps)
        for row, index in self._router.dispatch(now_ps) if self._router.has_news else ():
            self._replica[row] = index
            replica = self._replicas[index]
            arrived_at = self._arrived_ps[row] * SECONDS_PER_PS
            request = request_of(self._trace, row, now_ps * SECONDS_PER_PS, arrived_at, self._arrived_ps)
            request.replica_id = replica.member.id
            if row in self._requests:  # tried again
                _carry_over(self._requests[row], request)
            self._requests[row] = request
            replica.inbox.append(request)
            if replica.ends_ps is None and replica not in acting:
                acting.append(replica)
        for replica in self._replicas:
            if replica in acting:
                replica.take_in(now_ps)

    def _move(self, order: MoveOrder, now_ps: int, acting: list[_ReferenceReplica]) -> None:
        """Carry out what the rescheduler orders."""
        request, source = self._requests[order.row], self._replicas[order.source]
        now = now_ps * SECONDS_PER_PS
        if isinstance(order, HandOverOrder):
            source.to_stop.append((request, self._router.rescheduler.handed_over))
            return
        destination = self._replicas[order.destination]
        sent_at = self._arrived_ps[order.row] * SECONDS_PER_PS
        again = request_of(self._trace, order.row, now, sent_at, self._arrived_ps)
        again.replica_id = destination.member.id
        _carry_over(request, again)
        if isinstance(order, TakeBackOrder):
            if request in source.inbox:
                source.inbox.remove(request)
            else:
                source.engine.take_back(request, now)
            destination.inbox.append(again)
        else:
            source.engine.forget(request, now)
            again.produced_tokens = request.produced_tokens
            again.carried_tokens = again.high_water_tokens = request.total_tokens - 1
            again.first_token_ps = request.first_token_ps
            again.last_token_ps = request.last_token_ps
            destination.landed.append(again)
        self._requests[order.row] = again
        self._replica[order.row] = order.destination
        if destination.ends_ps is None and destination not in acting:
            acting.append(destination)

    def _fail(self, lost: Mapping[int, str]) -> None:
        for row, reason in lost.items():
            self._failed[row] = reason
            for later in self._expected.rest_of_session(row):
                self._failed[later] = f"an earlier turn of its session failed: {reason}"

    def _take_arrivals(self, now_ps: int) -> None:
        for at_ps, row in self._expected.take(now_ps):
            self._arrived_ps[row] = at_ps
            reason = self._router.arrive(row, at_ps)
            if reason is not None:
                self._refused[row] = reason
                for later in self._expected.rest_of_session(row):
                    self._refused[later] = f"an earlier turn of its session was refused: {reason}"

    def _finish_step(self, replica: _ReferenceReplica) -> None:
        """A step ends: note the gaps before its tokens, and expect the next turn where a request ended."""
        served = replica.engine.finish_step()
        gaps = Counter([request.gap_ps for request in served])
        self._gaps += [TokenGaps(gap, 0, 1, tokens) for gap, tokens in gaps.items() if gap != NEVER]
        for request in served:
            if request.has_ended:
                self._expected.ended(request.row, replica.engine.now_ps)

    def _outcome(self) -> FleetOutcome:
        outcomes = [
            ReplicaOutcome(
                id=replica.member.id,
                requests=ledger.sent,
                completed=ledger.completed,
                prefill_tokens=sum(tokens for step in replica.records for _, tokens, _ in step.chunks),
                decode_tokens=sum(step.decodes for step in replica.records),
                busy_ps=sum(step.duration_ps for step in replica.records),
                steps=len(replica.records),
                kv_blocks=replica.member.rules.kv_blocks,
                kv_blocks_peak=max(
                    [replica.member.rules.kv_blocks - step.blocks_free for step in replica.records], default=0
                ),
                load=LoadPoints(*map(list, list(zip(*replica.curve, strict=True)) or [(), (), (), ()])),
            )
            for replica, ledger in zip(self._replicas, self._router.ledgers, strict=True)
        ]
        day = outcome_of(
            self._arrived_ps,
            self._requests,
            self._refused,
            self._gaps,
            steps=sum(outcome.steps for outcome in outcomes),
            kv_blocks_peak=fullest(outcomes).kv_blocks_peak,
            load=summed([outcome.load for outcome in outcomes]),
        )
        day.failed = self._failed
        return FleetOutcome(day, np.array(self._replica), tuple(outcomes), self._router.rescheduler.moves)


def _carry_over(lost: ReferenceRequest, again: ReferenceRequest) -> None:
    """What the outcome tells of a request that was lost with its replica and is tried again."""
    again.admitted_ps = lost.admitted_ps
    again.cached_tokens = lost.cached_tokens
    again.preemptions = lost.preemptions
    again.recomputed_tokens = lost.recomputed_tokens
    computed = max(lost.computed_tokens, lost.high_water_tokens, lost.lost_tokens)
    again.lost_tokens = min(lost.prompt_tokens, computed)


class _ReplicaNews:
    """Passes on what one replica's engine tells to the router (`Listener`)."""

    hears = (FirstToken, Completed)

    def __init__(self, router: FleetRouter, index: int) -> None:
        self._router = router
        self._index = index

    def observe(self, event: Event) -> None:
        """A first or a last token."""
        row = event.request.id
        assert isinstance(row, int)
        if type(event) is FirstToken:
            self._router.first_token(self._index, row, event.at)
        elif type(event) is Completed:
            self._router.ended(self._index, row, event.at)
