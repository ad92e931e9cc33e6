"""A fleet's day on fast engines: one clock over N of them.

The clock stops wherever one replica's doings may matter to another: at arrivals, and at steps that bring a first or a
last token. At such an instant, in this order: the steps that end there; the requests that arrive; the router sends; the
engines that are due compose. Between instants no engine is touched, however many steps it takes (`driven_engine.py`).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush, heapreplace
from typing import NamedTuple

import numpy as np

from headway.domain.event import Listener
from headway.simulator.arrivals import FOREVER, Arrivals
from headway.simulator.day_columns import DayColumns
from headway.simulator.driven_engine import DrivenEngine, Inbox
from headway.simulator.fleet_members import FleetMember
from headway.simulator.fleet_outcome import FleetOutcome, ReplicaOutcome, fullest, joined, summed
from headway.simulator.fleet_rescheduling import HandOverOrder, MoveOrder, TakeBackOrder
from headway.simulator.fleet_router import FleetPolicies, FleetRouter, Routing
from headway.simulator.outcome import NEVER, StepObserver
from headway.simulator.rules import NO_PLUGIN, PluginRules
from headway.simulator.skipping import ServedTrace
from headway.simulator.trace import Trace


def simulate_fleet(
    trace: Trace,
    members: Sequence[FleetMember],
    routing: Routing,
    policies: FleetPolicies,
    *,
    plugin: PluginRules = NO_PLUGIN,
    observers: Sequence[StepObserver] | None = None,
    listeners: Sequence[Listener] = (),
) -> FleetOutcome:
    """Replay a trace on a fleet and return what became of every request, and what every replica did.

    Args:
        trace: the requests, with their true output lengths.
        members: the replicas, at least one, with different ids.
        routing: which of them gets a request, and where requests wait; used up.
        policies: of the queues; used up.
        plugin: what the vLLM plug-in does in each engine beside its policies.
        observers: one for each replica; receive its steps.
        listeners: receive every event of the queues that the bundle's policies rule.

    Raises:
        ValueError: there is no replica; blocks do not divide the trace's prefix blocks; a policy broke its contract.
    """
    return _FleetDay(trace, members, routing, policies, plugin, observers, listeners).run()


_NOTHING = (FOREVER, 0)


class _FleetDay:
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
        check_members(members)
        self._members = members
        self._columns = DayColumns(len(trace))
        self._arrivals = Arrivals(trace)
        served = ServedTrace(trace, self._columns)
        in_front = routing.queue == "gateway"
        self._router = FleetRouter(
            trace, served.requests, members, routing, policies.in_front, listeners if in_front else ()
        )
        self._made_with = (served, policies, plugin, observers, () if in_front else tuple(listeners))
        self._engines = [self._started(index, 0) for index in range(len(members))]
        self._past_engines: list[list[DrivenEngine]] = [[] for _ in members]  # of each replica, those that failed
        self._faults = fault_times(members)
        self._fault_ps = self._faults[-1].at_ps
        self._failed: dict[int, str] = {}
        self._replica = array("q", [NEVER]) * len(trace)
        self._past_ps = 0
        self._agenda: list[tuple[int, int]] = []  # (when an engine acts next, its index); some are out of date

    def _started(self, index: int, at_ps: int) -> DrivenEngine:
        """A new engine of a replica, which serves from then on."""
        served, policies, plugin, observers, listeners = self._made_with
        member = self._members[index]
        engine = DrivenEngine(
            served,
            member.rules,
            member.step_time,
            policies.at_replica(member.costs),
            plugin,
            None if observers is None else observers[index],
            listeners,
            Inbox(self._arrivals, self._router, index),
            member.id,
        )
        engine.start_at(at_ps)
        self._router.ledgers[index].engine = engine
        return engine

    def run(self) -> FleetOutcome:
        """Play the whole day."""
        arrivals, router, engines, agenda = self._arrivals, self._router, self._engines, self._agenda
        moves = router.rescheduler
        while True:
            at_ps, index = agenda[0] if agenda else _NOTHING
            outside_ps = arrivals.next_ps
            if self._fault_ps < outside_ps:  # noqa: PLR1730 - min() would cost a call in the hot path
                outside_ps = self._fault_ps
            if moves.next_ps < outside_ps:  # noqa: PLR1730 - likewise
                outside_ps = moves.next_ps
            if outside_ps <= at_ps:
                is_idle = arrivals.next_ps == at_ps == moves.next_ps == FOREVER
                if outside_ps == FOREVER or (is_idle and not router.waiting):
                    break
                self._live_through(outside_ps, [])
                continue
            engine = engines[index]
            if engine.next_ps != at_ps:  # it was to act then, and something came in between
                heappop(agenda)
                continue
            if at_ps > router.report_ps:
                router.report(at_ps)
            composes = engine.finish()
            if router.has_news or arrivals.next_ps <= at_ps or self._others_act_at(at_ps):
                heappop(agenda)
                if not composes:
                    self._note(index)
                self._live_through(at_ps, [index] if composes else [])
                continue
            # As at most instants, it concerns this engine alone.
            if composes:
                engine.compose_steps()
            if engine.next_ps == FOREVER:
                heappop(agenda)
            else:
                heapreplace(agenda, (engine.next_ps, index))
        self._abandon()
        return self._outcome()

    def _abandon(self) -> None:
        """Nothing happens any more; requests that wait fail."""
        router = self._router
        if not router.waiting:
            return
        if router.is_next_servable():
            raise ValueError(f"the routing policy lets {router.waiting} requests wait although every replica is idle")
        self._fail(router.abandon(self._past_ps))

    def _others_act_at(self, now_ps: int) -> bool:
        """Whether the agenda's second entry is of that time too; in a heap it stands at place 1 or 2."""
        agenda = self._agenda
        count = len(agenda)
        return (count > 1 and agenda[1][0] == now_ps) or (count > 2 and agenda[2][0] == now_ps)

    def _live_through(self, now_ps: int, due: list[int]) -> None:
        """All that happens at an instant, besides the steps that ended there of engines that are `due`."""
        self._past_ps = now_ps
        arrivals, agenda, router = self._arrivals, self._agenda, self._router
        if now_ps > router.report_ps:
            router.report(now_ps)
        while agenda and agenda[0][0] == now_ps:
            index = heappop(agenda)[1]
            engine = self._engines[index]
            if engine.next_ps == now_ps:
                if engine.finish():
                    due.append(index)
                else:
                    self._note(index)
        while self._fault_ps == now_ps:
            self._take_fault(self._faults.pop(), due)
        if router.rescheduler.next_ps <= now_ps:
            for order in router.moves(now_ps):
                self._move(order, now_ps, due)
        while arrivals.next_ps <= now_ps:
            self._take_arrivals(now_ps)
        if router.has_news:
            self._send(now_ps, due)
        if len(due) > 1:
            due.sort()
        for index in due:
            self._engines[index].compose_steps()
            self._note(index)

    def _take_fault(self, fault: FleetFault, due: list[int]) -> None:
        """A replica drains, fails, or serves again."""
        self._fault_ps = self._faults[-1].at_ps
        index = fault.replica
        if fault.drains:
            self._router.drain(index)
            return
        if fault.recovers:
            self._router.recover(index)
            return
        engine = self._engines[index]
        engine.stop(fault.at_ps)
        self._past_engines[index].append(engine)
        self._engines[index] = self._started(index, fault.until_ps)
        if index in due:
            due.remove(index)
        self._fail(self._router.fail(index, fault.at_ps))
        self._fail(self._router.give_up(fault.at_ps))

    def _fail(self, lost: Mapping[int, str]) -> None:
        for row, reason in lost.items():
            self._failed[row] = reason
            for later in self._arrivals.following(row):
                self._failed[later] = f"an earlier turn of its session failed: {reason}"

    def _send(self, now_ps: int, due: list[int]) -> None:
        """Send what the router says; engines that are to compose now become due."""
        for row, index in self._router.dispatch(now_ps):
            self._replica[row] = index
            before = self._engines[index].next_ps
            self._await(index, before, due, is_due=self._engines[index].deliver(row, now_ps))

    def _move(self, order: MoveOrder, now_ps: int, due: list[int]) -> None:
        """Carry out what the rescheduler orders."""
        row, source = order.row, self._engines[order.source]
        before = source.next_ps
        if isinstance(order, HandOverOrder):
            is_due = source.stop_request(row, now_ps, self._router.rescheduler.handed_over)
            self._await(order.source, before, due, is_due=is_due)
            return
        self._replica[row] = order.destination
        destination = self._engines[order.destination]
        if isinstance(order, TakeBackOrder):
            self._await(order.source, before, due, is_due=source.take_back(row, now_ps))
            before = destination.next_ps
            is_due = destination.deliver(row, now_ps)
        else:
            carried = source.hand_over(row, now_ps)
            before = destination.next_ps
            is_due = destination.land(row, now_ps, carried)
        self._await(order.destination, before, due, is_due=is_due)

    def _await(self, index: int, before_ps: int, due: list[int], *, is_due: bool) -> None:
        """An engine was given something: it composes now, or acts at another time than before."""
        if is_due:
            if index not in due:
                due.append(index)
        elif self._engines[index].next_ps != before_ps:
            self._note(index)

    def _note(self, index: int) -> None:
        at_ps = self._engines[index].next_ps
        if at_ps != FOREVER:
            heappush(self._agenda, (at_ps, index))

    def _take_arrivals(self, now_ps: int) -> None:
        columns = self._columns
        for at_ps, row in self._arrivals.take(now_ps):
            columns.arrived_ps[row] = at_ps
            reason = self._router.arrive(row, at_ps)
            if reason is not None:
                columns.refused[row] = reason
                for later in self._arrivals.following(row):
                    columns.refused[later] = f"an earlier turn of its session was refused: {reason}"

    def _outcome(self) -> FleetOutcome:
        last_ps = max(0, max(self._columns.ended_ps, default=0))
        replicas = []
        for index, (member, ledger) in enumerate(zip(self._members, self._router.ledgers, strict=True)):
            self._engines[index].end_day(last_ps)
            engines = [*self._past_engines[index], self._engines[index]]
            replicas.append(
                ReplicaOutcome(
                    id=member.id,
                    requests=ledger.sent,
                    completed=ledger.completed,
                    prefill_tokens=sum(engine.prefill_tokens for engine in engines),
                    decode_tokens=sum(engine.decode_tokens for engine in engines),
                    busy_ps=sum(engine.busy_ps for engine in engines),
                    steps=sum(engine.steps for engine in engines),
                    kv_blocks=member.rules.kv_blocks,
                    kv_blocks_peak=max(engine.curve.blocks_peak for engine in engines),
                    load=joined([engine.curve.points() for engine in engines]),
                )
            )
        load = summed([replica.load for replica in replicas])
        day = self._columns.outcome(sum(replica.steps for replica in replicas), fullest(replicas).kv_blocks_peak, load)
        day.failed = self._failed
        return FleetOutcome(day, np.array(self._replica), tuple(replicas), self._router.rescheduler.moves)


class FleetFault(NamedTuple):
    """A replica fails at `at_ps` until `until_ps`, or recovers at `at_ps`, or drains from then on."""

    at_ps: int
    replica: int
    recovers: bool
    until_ps: int
    drains: bool = False


def fault_times(members: Sequence[FleetMember]) -> list[FleetFault]:
    """What fails and recovers, the first last; behind it one that never comes."""
    faults = [FleetFault(FOREVER, 0, False, FOREVER)]
    for index, member in enumerate(members):
        for outage in member.outages:
            faults.append(FleetFault(outage.from_ps, index, False, outage.until_ps))
            if outage.notice_ps:
                faults.append(FleetFault(outage.from_ps - outage.notice_ps, index, False, outage.from_ps, True))
            if outage.until_ps < FOREVER:
                faults.append(FleetFault(outage.until_ps, index, True, outage.until_ps))
    return sorted(faults, key=lambda fault: (fault.at_ps, not fault.recovers, fault.replica), reverse=True)


def check_members(members: Sequence[FleetMember]) -> None:
    """Raise ValueError unless there is a replica, and each has a name of its own."""
    if not members:
        raise ValueError("a fleet needs at least one replica")
    ids = [member.id for member in members]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two replicas are named {twice}; give each a name of its own")
