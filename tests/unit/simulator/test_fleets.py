"""Fleets: the fast clock and the plain one live the same nasty days, and every day keeps the laws of a fleet."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, get_args

import numpy as np
import pytest

from headway.domain.costs import ServiceCosts
from headway.domain.event import Event
from headway.domain.replica_view import ReplicaView
from headway.domain.request import Request, RequestView
from headway.policies.contracts import ReschedulingPolicy
from headway.policies.rescheduling.stay import Stay
from headway.policies.routing.least_work import LeastWork
from headway.policies.routing.round_robin import RoundRobin
from headway.scheduling.bundle import bundle
from headway.simulator.adapter_rules import AdapterRules
from headway.simulator.arrivals import FOREVER, RequestFactory
from headway.simulator.fleet import simulate_fleet
from headway.simulator.fleet_members import FleetMember, Outage
from headway.simulator.fleet_outcome import FleetOutcome, ReplicaOutcome
from headway.simulator.fleet_rescheduling import KvLink
from headway.simulator.fleet_router import FleetPolicies, Queueing, Routing
from headway.simulator.outcome import NEVER
from headway.simulator.reference_fleet import simulate_reference_fleet
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import PS_PER_SECOND, LinearStepTime
from headway.simulator.trace import Trace
from headway.testing.day_laws import StepRecords
from headway.testing.strategies import ADAPTER_NAMES
from tests.days.test_golden_days import COSTS, RULES, STEP_TIME, mixed
from tests.support.nasty_days import KINDS, NastyDay, nasty_day
from tests.support.paper_days import requests
from tests.unit.simulator.test_both_engines import gaps

SEEDS = range(10)


class Chronicle:
    """Every event of one queue or of several: what, when, and what a policy could read of the request then."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []
        self.places: list[tuple[str, str | None]] = []  # of each, the replica that its request was sent to last

    def observe(self, event: Event) -> None:
        request = event.request
        assert isinstance(request, Request)
        self.places.append((type(event).__name__, request.replica_id))
        facts = [getattr(request, name) for name in Request.__slots__ if name not in ("estimate", "looked_up_at")]
        comparable = [tuple(fact) if isinstance(fact, list) else fact for fact in facts]
        self.lines.append((event.at, type(event).__name__, *event[2:], *comparable))


class Curious:
    """A routing policy that writes down all it is shown, and chooses by it."""

    def __init__(self) -> None:
        self.shown: list[tuple[Any, ...]] = []

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        figures = [
            (
                replica.id,
                replica.requests,
                replica.prefill_tokens,
                replica.decode_tokens,
                replica.kv_tokens,
                replica.as_of,
                replica.cached_prompt_tokens(request, prefix),
            )
            for replica in replicas
        ]
        self.shown.append((request.id, tuple(prefix), now, *figures))
        return replicas[hash(tuple(map(tuple, figures))) % len(replicas)]


def nasty_fleet(dice: random.Random, day: NastyDay) -> list[FleetMember]:
    """One to four replicas; some have less memory, or are slower."""
    members = []
    for number in range(dice.randint(1, 4)):
        rules, step_time = day.rules, day.step_time
        if dice.random() < 0.3:
            rules = replace(rules, kv_blocks=max(1, rules.kv_blocks * 2 // 3), async_scheduling=dice.random() < 0.5)
        if rules.adapters is not None and dice.random() < 0.5:
            names = frozenset(dice.sample(ADAPTER_NAMES, dice.randint(1, 3)))
            rules = replace(rules, adapters=replace(rules.adapters, names=names))
        if dice.random() < 0.3:
            step_time = LinearStepTime(dice.choice([1, 7 * 10**9]), 10**6, dice.choice([0, 10**5]))
        outages, at_ps = [], 0
        while dice.random() < 0.3:
            at_ps += round(dice.choice([0.0, 1 / 3, 5.0, 20.0, 40.0]) * PS_PER_SECOND) + 2
            until_ps = at_ps + dice.choice([1, 10**11, 10**13])
            notice_ps = min(dice.choice([0, 0, 10**11, 10**13]), at_ps - 2 - (outages[-1].until_ps if outages else 0))
            outages.append(Outage(at_ps - 1, until_ps, max(0, notice_ps)))
            at_ps = until_ps
        if outages and dice.random() < 0.2:
            outages[-1] = outages[-1]._replace(until_ps=FOREVER)
        costs = ServiceCosts(1e-4, 0.01 * (1 + number))
        members.append(FleetMember(f"r{number}", rules, step_time, costs, tuple(outages)))
    return members


def fleet_policies(day: NastyDay) -> FleetPolicies:
    return FleetPolicies(day.policies.make(day.trace), lambda _: day.policies.make(day.trace))


def facts(outcome: ReplicaOutcome) -> list[Any]:
    """All but its curve, which the fast engine draws with fewer points."""
    return [getattr(outcome, field.name) for field in fields(outcome) if field.name != "load"]


def check_fleet_day(
    trace: Trace, members: Sequence[FleetMember], outcome: FleetOutcome, logs: Sequence[StepRecords]
) -> None:
    """Conservation, causality, and memory and time of each replica."""
    day = outcome.day
    for row in range(len(trace)):
        lived = [int(column[row]) for column in (day.arrived_ps, day.admitted_ps, day.first_token_ps, day.ended_ps)]
        if row in day.refused:
            assert lived[1:] == [NEVER] * 3
            assert outcome.replica[row] == NEVER
        elif row in day.failed:
            assert any(member.outages for member in members)
            assert lived[3] == NEVER
        else:
            assert 0 <= lived[0] <= lived[1] < lived[2] <= lived[3]
            rules = members[int(outcome.replica[row])].rules
            assert rules.context_tokens >= trace.prompt_tokens[row] + trace.output_tokens[row]
            assert rules.serves(RequestFactory(trace).adapter(row))
    for index, (member, replica, log) in enumerate(zip(members, outcome.replicas, logs, strict=True)):
        rows = np.flatnonzero(outcome.replica == index)
        lost = [row for row in rows.tolist() if row in day.failed]
        assert replica.completed == len(rows) - len(lost)
        if not any(other.outages for other in members) and not outcome.moves:
            assert replica.requests == len(rows)
            assert {row for step in log.steps for row in step.admitted} == set(rows.tolist())
        over_ps = 0
        for step in log.steps:
            assert 0 <= step.blocks_free <= member.rules.kv_blocks
            assert step.decodes + len(step.chunks) <= member.rules.max_num_seqs
            down = [outage for outage in member.outages if outage.from_ps < step.started_ps < outage.until_ps]
            assert not down or step.started_ps == over_ps, "only a step composed before the failure may start in it"
            assert step.started_ps >= over_ps or member.outages
            over_ps = step.started_ps + step.duration_ps
        assert replica.kv_blocks_peak == max(
            [member.rules.kv_blocks - step.blocks_free for step in log.steps], default=0
        )
        assert replica.busy_ps == sum(step.duration_ps for step in log.steps)
        assert replica.prefill_tokens == sum(tokens for step in log.steps for _, tokens, _ in step.chunks)
        assert replica.decode_tokens == sum(step.decodes for step in log.steps)


def live_by_both_clocks(
    day: NastyDay,
    members: Sequence[FleetMember],
    queue: Queueing,
    signal_seconds: float,
    make_rescheduling: Callable[[], ReschedulingPolicy] = Stay,
) -> FleetOutcome:
    """The day as both clocks live it, which must be the same."""
    lived = []
    for clock in (simulate_fleet, simulate_reference_fleet):
        logs, chronicle, curious = [StepRecords() for _ in members], Chronicle(), Curious()
        rescheduling = make_rescheduling()
        outcome = clock(
            day.trace,
            members,
            Routing(curious, queue, signal_seconds, rescheduling, KvLink(3e9, 0.01)),
            fleet_policies(day),
            plugin=day.plugin,
            observers=logs,
            listeners=[chronicle],
        )
        check_fleet_day(day.trace, members, outcome, logs)
        lived.append((outcome, logs, chronicle, curious, rescheduling))
    (fast, fast_logs, fast_told, fast_shown, fast_moves), (plain, plain_logs, plain_told, plain_shown, plain_moves) = (
        lived
    )
    assert fast_shown.shown == plain_shown.shown
    assert getattr(fast_moves, "shown", []) == getattr(plain_moves, "shown", [])
    assert [log.steps for log in fast_logs] == [log.steps for log in plain_logs]
    assert [facts(one) for one in fast.replicas] == [facts(one) for one in plain.replicas]
    for name in (
        "arrived_ps",
        "admitted_ps",
        "first_token_ps",
        "ended_ps",
        "cached_tokens",
        "preemptions",
        "recomputed_tokens",
    ):
        assert getattr(fast.day, name).tolist() == getattr(plain.day, name).tolist(), name
    assert fast.replica.tolist() == plain.replica.tolist()
    assert fast.moves == plain.moves
    assert fast.day.refused == plain.day.refused
    assert fast.day.failed == plain.day.failed
    if not fast.day.failed and not any(member.outages for member in members):
        assert gaps(fast.day) == gaps(plain.day)
    assert Counter(fast_told.lines) == Counter(plain_told.lines)
    return fast


@pytest.mark.parametrize("queue", get_args(Queueing))
@pytest.mark.parametrize("kind", KINDS)
def test_both_clocks_live_the_same_day(kind: str, queue: Queueing) -> None:
    for seed in SEEDS:
        dice = random.Random(f"fleet, {kind}, {queue}, {seed}")
        day = nasty_day(kind, 1_000 + seed)
        members = nasty_fleet(dice, day)
        live_by_both_clocks(day, members, queue, dice.choice([0.0, 0.0, 0.3, 2.0]))


@pytest.mark.parametrize("caching", [False, True])
def test_a_fleet_of_one_is_today_s_replica(caching: bool) -> None:
    rules = replace(RULES, kv_blocks=900, async_scheduling=caching)
    trace = mixed(300, 12.0, 8, shared=True, sessions=caching)
    alone = simulate(trace, rules, STEP_TIME, bundle(ordering="highest-response-ratio", costs=COSTS, seed=0))
    policies = FleetPolicies(
        bundle(costs=COSTS, seed=0),
        lambda costs: bundle(ordering="highest-response-ratio", costs=costs, seed=0),
    )
    fleet = simulate_fleet(
        trace, [FleetMember("r0", rules, STEP_TIME, COSTS)], Routing(RoundRobin(), "replicas"), policies
    )
    for field in fields(alone):
        one, other = getattr(alone, field.name), getattr(fleet.day, field.name)
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other, field.name


SECOND = PS_PER_SECOND
STEP = LinearStepTime(SECOND, 0, 0)  # a second, whatever it computes


def lost_and_found(outages: Sequence[tuple[Outage, ...]], queue: Queueing, seats: int = 4) -> FleetOutcome:
    """Six requests of three tokens, one a second, on replicas that fail so; both clocks say the same."""
    trace = Trace("six", np.arange(6) * 1.0, np.full(6, 4), np.full(6, 3))
    rules = EngineRules(kv_blocks=100, block_tokens=4, max_num_seqs=seats, max_num_batched_tokens=64)
    members = [FleetMember(f"r{n}", rules, STEP, COSTS, fails) for n, fails in enumerate(outages)]
    days = []
    for clock in (simulate_fleet, simulate_reference_fleet):
        policies = FleetPolicies(bundle(costs=COSTS, seed=0), lambda costs: bundle(costs=costs, seed=0))
        days.append(clock(trace, members, Routing(RoundRobin(), queue), policies))
    assert days[0].day.failed == days[1].day.failed
    assert days[0].day.refused == days[1].day.refused
    assert days[0].day.ended_ps.tolist() == days[1].day.ended_ps.tolist()
    return days[0]


@pytest.mark.parametrize("queue", get_args(Queueing))
def test_what_has_no_token_yet_is_tried_at_another_replica(queue: Queueing) -> None:
    """Request 0 is at r0 and 1 at r1 when r0 fails, half way through the first step."""
    outcome = lost_and_found([(Outage(SECOND // 2, 3 * SECOND),), ()], queue)
    assert outcome.day.failed == {}
    assert (outcome.day.ended_ps > 0).all()
    assert outcome.replica[0] == 1
    assert outcome.replicas[0].requests - outcome.replicas[0].completed == 1


@pytest.mark.parametrize("queue", get_args(Queueing))
def test_what_a_replica_had_computed_when_it_failed_is_computed_again(queue: Queueing) -> None:
    """A prompt of 40 tokens, 16 a step: r0 fails in the second of its steps, of which both count."""
    trace = Trace("one", np.zeros(1), np.full(1, 40), np.full(1, 3))
    rules = EngineRules(kv_blocks=100, block_tokens=4, max_num_seqs=4, max_num_batched_tokens=16)
    members = [FleetMember("r0", rules, STEP, COSTS, (Outage(3 * SECOND // 2, FOREVER),))]
    members.append(FleetMember("r1", rules, STEP, COSTS))
    for clock in (simulate_fleet, simulate_reference_fleet):
        told = Chronicle()
        policies = FleetPolicies(bundle(costs=COSTS, seed=0), lambda costs: bundle(costs=costs, seed=0))
        outcome = clock(trace, members, Routing(RoundRobin(), queue), policies, listeners=[told])
        computed = outcome.replicas[0].prefill_tokens
        assert computed >= 32
        assert outcome.day.recomputed_tokens.tolist() == [min(computed, 40)]
        assert [(kind, at) for kind, at in told.places if kind in ("FirstToken", "Completed")] == [
            ("FirstToken", "r1"),
            ("Completed", "r1"),
        ]


@pytest.mark.parametrize("queue", get_args(Queueing))
def test_what_has_a_token_fails_with_its_replica(queue: Queueing) -> None:
    outcome = lost_and_found([(Outage(3 * SECOND // 2, 90 * SECOND),), ()], queue)
    assert outcome.day.failed == {0: "r0 failed after its first token"}
    assert outcome.day.first_token_ps[0] == SECOND
    assert outcome.day.ended_ps[0] == NEVER


def test_a_second_failure_is_the_last() -> None:
    outcome = lost_and_found([(Outage(SECOND // 2, FOREVER),), (Outage(3 * SECOND // 4, FOREVER),), ()], "replicas")
    assert outcome.day.failed == {0: "2 replicas failed, r1 the last"}
    assert set(outcome.replica[1:].tolist()) == {2}


def test_without_another_replica_nothing_is_tried_again() -> None:
    outcome = lost_and_found([(Outage(SECOND // 2, 3 * SECOND),)], "gateway")
    assert outcome.day.failed == {0: "r0 failed, and no other is up"}
    assert outcome.day.refused == dict.fromkeys((1, 2), "no replica that could serve it is up")
    assert (outcome.day.ended_ps[3:] > 0).all()


def test_what_waits_in_front_fails_if_no_replica_comes_back() -> None:
    outcome = lost_and_found([(Outage(7 * SECOND // 2, FOREVER),)], "gateway", seats=1)
    assert outcome.day.failed[1] == "r0 failed, and no other is up"
    assert outcome.day.failed[2] == outcome.day.failed[3] == "no replica came back"
    assert set(outcome.day.refused) == {4, 5}


def test_what_fits_only_a_replica_that_never_comes_back_fails() -> None:
    """Request 1 waits for the large replica; the small one is up, but cannot hold it."""
    trace = Trace("two", np.zeros(2), np.full(2, 40), np.full(2, 3))
    large = EngineRules(kv_blocks=100, block_tokens=4, max_num_seqs=1, max_num_batched_tokens=64)
    members = [
        FleetMember("large", large, STEP, COSTS, (Outage(3 * SECOND // 2, FOREVER),)),
        FleetMember("small", replace(large, kv_blocks=4), STEP, COSTS),
    ]
    for clock in (simulate_fleet, simulate_reference_fleet):
        policies = FleetPolicies(bundle(costs=COSTS, seed=0), lambda costs: bundle(costs=costs, seed=0))
        outcome = clock(trace, members, Routing(RoundRobin()), policies)
        assert outcome.day.failed == {0: "large failed after its first token", 1: "no replica came back"}


def test_an_outage_before_time_0_or_inside_another_is_refused() -> None:
    with pytest.raises(ValueError, match="r0 fails before time 0"):
        FleetMember("r0", RULES, STEP, COSTS, (Outage(-1, 5),))
    with pytest.raises(ValueError, match="r0 drains before time 0"):
        FleetMember("r0", RULES, STEP, COSTS, (Outage(5, 9, 6),))
    with pytest.raises(ValueError, match="before it serves again"):
        FleetMember("r0", RULES, STEP, COSTS, (Outage(1, 5), Outage(4, 9)))
    with pytest.raises(ValueError, match="at least one replica"):
        lost_and_found([], "gateway")


@pytest.mark.parametrize("queue", ["gateway", "replicas"])
def test_an_adapter_goes_only_where_it_is_and_holds_up_no_other(queue: Queueing) -> None:
    """Two requests for `sql` at a replica of one seat, then one for the base model, which the other replica serves."""
    rules = replace(RULES, max_num_seqs=1)
    members = [
        FleetMember(name, replace(rules, adapters=AdapterRules(names=names)), STEP_TIME, COSTS)
        for name, names in (("plain", frozenset[str]()), ("tuned", frozenset(["sql"])))
    ]
    trace = replace(requests(*[(64, 40)] * 5, adapter=[0, 0, -1, 0, 1]), adapters=("sql", "nowhere"))
    for clock in (simulate_fleet, simulate_reference_fleet):
        policies = FleetPolicies(bundle(costs=COSTS, seed=0), lambda _: bundle(costs=COSTS, seed=0))
        outcome = clock(trace, members, Routing(LeastWork(), queue), policies)
        assert outcome.replica.tolist() == [1, 1, 0, 1, NEVER]
        assert outcome.day.refused == {4: "no replica has the adapter 'nowhere'"}
        assert outcome.day.admitted_ps[2] == 0, "it does not wait behind requests that it cannot help"
