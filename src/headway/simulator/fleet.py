"""A fleet's day on fast engines: one clock over N of them.

The clock stops wherever one replica's doings may matter to another: at arrivals, and at steps that bring a first or a
last token. At such an instant, in this order: the steps that end there; the requests that arrive; the router sends; the
engines that are due compose. Between instants no engine is touched, however many steps it takes (`driven_engine.py`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from heapq import heappop, heappush, heapreplace

import numpy as np

from headway.domain.event import Listener
from headway.simulator.arrivals import FOREVER, Arrivals
from headway.simulator.day_columns import DayColumns
from headway.simulator.driven_engine import DrivenEngine
from headway.simulator.fleet_outcome import FleetOutcome, ReplicaOutcome, fullest, summed
from headway.simulator.fleet_router import FleetMember, FleetPolicies, FleetRouter, ReplicaNews, Routing
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
        self._engines = [
            DrivenEngine(
                served,
                member.rules,
                member.step_time,
                policies.at_replica(member.costs),
                plugin,
                None if observers is None else observers[index],
                [ReplicaNews(self._router, index), *(() if in_front else listeners)],
                self._arrivals,
            )
            for index, member in enumerate(members)
        ]
        for ledger, engine in zip(self._router.ledgers, self._engines, strict=True):
            ledger.engine = engine
        self._replica = array("q", [NEVER]) * len(trace)
        self._agenda: list[tuple[int, int]] = []  # (when an engine acts next, its index); some are out of date

    def run(self) -> FleetOutcome:
        """Play the whole day."""
        arrivals, router, engines, agenda = self._arrivals, self._router, self._engines, self._agenda
        while True:
            at_ps, index = agenda[0] if agenda else _NOTHING
            if arrivals.next_ps <= at_ps:
                if arrivals.next_ps == FOREVER:
                    break
                self._live_through(arrivals.next_ps, set())
                continue
            engine = engines[index]
            if engine.next_ps != at_ps:  # it was to act then, and something came in between
                heappop(agenda)
                continue
            if at_ps > router.report_ps:
                router.report(at_ps)
            composes = engine.finish()
            if router.has_news or arrivals.next_ps <= at_ps or at_ps in [entry[0] for entry in agenda[1:3]]:
                heappop(agenda)
                if not composes:
                    self._note(index)
                self._live_through(at_ps, {index} if composes else set())
                continue
            # As at most instants, it concerns this engine alone.
            if composes:
                engine.compose_steps()
            if engine.next_ps == FOREVER:
                heappop(agenda)
            else:
                heapreplace(agenda, (engine.next_ps, index))
        if router.waiting:
            raise ValueError(f"the routing policy lets {router.waiting} requests wait although every replica is idle")
        return self._outcome()

    def _live_through(self, now_ps: int, due: set[int]) -> None:
        """All that happens at an instant, besides the steps that ended there of engines that are `due`."""
        arrivals, agenda = self._arrivals, self._agenda
        if now_ps > self._router.report_ps:
            self._router.report(now_ps)
        while agenda and agenda[0][0] == now_ps:
            index = heappop(agenda)[1]
            engine = self._engines[index]
            if engine.next_ps == now_ps:
                if engine.finish():
                    due.add(index)
                else:
                    self._note(index)
        while arrivals.next_ps <= now_ps:
            self._take_arrivals(now_ps)
        if self._router.has_news:
            self._send(now_ps, due)
        for index in sorted(due):
            self._engines[index].compose_steps()
            self._note(index)

    def _send(self, now_ps: int, due: set[int]) -> None:
        """Send what the router says; engines that are to compose now become due."""
        for row, index in self._router.dispatch(now_ps):
            self._replica[row] = index
            engine = self._engines[index]
            before = engine.next_ps
            if engine.deliver(row, now_ps):
                due.add(index)
            elif engine.next_ps != before:
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
        for member, ledger, engine in zip(self._members, self._router.ledgers, self._engines, strict=True):
            engine.end_day(last_ps)
            replicas.append(
                ReplicaOutcome(
                    id=member.id,
                    requests=ledger.sent,
                    completed=ledger.completed,
                    prefill_tokens=engine.prefill_tokens,
                    decode_tokens=engine.decode_tokens,
                    busy_ps=engine.busy_ps,
                    steps=engine.steps,
                    kv_blocks=member.rules.kv_blocks,
                    kv_blocks_peak=engine.curve.blocks_peak,
                    load=engine.curve.points(),
                )
            )
        load = summed([replica.load for replica in replicas])
        day = self._columns.outcome(sum(replica.steps for replica in replicas), fullest(replicas).kv_blocks_peak, load)
        return FleetOutcome(day, np.array(self._replica), tuple(replicas))


def check_members(members: Sequence[FleetMember]) -> None:
    """Raise ValueError unless there is a replica, and each has a name of its own."""
    if not members:
        raise ValueError("a fleet needs at least one replica")
    ids = [member.id for member in members]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two replicas are named {twice}; give each a name of its own")
