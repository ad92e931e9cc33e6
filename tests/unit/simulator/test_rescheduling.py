"""Rescheduling in a simulated fleet: both clocks move the same requests, and each is in one place all the time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest

from headway.domain.replica_view import OccupiedReplica, ReplicaView
from headway.domain.request import RequestView
from headway.policies.contracts import Move, ReschedulingPolicy
from headway.policies.rescheduling.migrate import Migrate
from headway.policies.rescheduling.stay import Stay
from headway.policies.rescheduling.take_back import TakeBack
from headway.scheduling.bundle import bundle
from headway.simulator.arrivals import FOREVER
from headway.simulator.fleet import simulate_fleet
from headway.simulator.fleet_members import FleetMember, Outage
from headway.simulator.fleet_rescheduling import MOVES_MAX
from headway.simulator.fleet_router import FleetPolicies, Queueing, Routing
from headway.simulator.reference_fleet import simulate_reference_fleet
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND, LinearStepTime
from headway.simulator.trace import Trace
from tests.days.test_golden_days import COSTS
from tests.support.nasty_days import KINDS, nasty_day
from tests.unit.simulator.test_fleets import live_by_both_clocks, nasty_fleet

SEEDS = range(4)


class Restless:
    """Moves whatever may move, chosen by all it is shown, and writes that down."""

    moves_max = 3

    def __init__(self, period_seconds: float, *, waiting: bool = True, running: bool = True) -> None:
        self.period_seconds = period_seconds
        self.shown: list[tuple[Any, ...]] = []
        self.landed: Counter[object] = Counter()  # by request: how often it was found at another replica than before
        self._places: dict[object, str] = {}
        self._kinds = (waiting, running)

    def moves(self, replicas: Sequence[OccupiedReplica], now: float) -> Sequence[Move]:
        shown = [
            (
                one.replica.id,
                one.replica.requests,
                one.replica.prefill_tokens,
                one.replica.kv_tokens,
                one.waiting_requests,
                one.contents_as_of,
                *[(sent.request.id, sent.kv_tokens, sent.may_move) for sent in (*one.waiting, *one.running)],
            )
            for one in replicas
        ]
        assert [len(one.waiting) for one in replicas] == [one.waiting_requests for one in replicas]
        places = Counter(sent.request.id for one in replicas for sent in (*one.waiting, *one.running))
        assert set(places.values()) <= {1}, "a request is in one place"
        for one in replicas:
            for sent in (*one.waiting, *one.running):
                place = self._places.setdefault(sent.request.id, one.replica.id)
                self.landed[sent.request.id] += place != one.replica.id
                self._places[sent.request.id] = one.replica.id
        self.shown.append((now, *shown))
        dice = random.Random(repr(self.shown[-1]))
        moves = []
        for source in replicas:
            mobile = [
                sent.request
                for wanted, sents in zip(self._kinds, (source.waiting, source.running), strict=True)
                for sent in sents
                if wanted and sent.may_move
            ]
            others = [one for one in replicas if one is not source]
            if mobile and len(moves) < self.moves_max:
                request, destination = dice.choice(mobile), dice.choice(others)
                if destination.could_take(request):
                    moves.append(Move(source, destination, request))
        return moves


MAKERS: dict[str, Callable[[float], ReschedulingPolicy]] = {
    "waiting": lambda period: Restless(period, running=False),
    "running": lambda period: Restless(period, waiting=False),
    "all": Restless,
    "take-back": lambda period: TakeBack(period_seconds=period, least_gain_seconds=0.0),
    "migrate": lambda period: Migrate(period_seconds=period),
}


@pytest.mark.parametrize("queue", get_args(Queueing))
@pytest.mark.parametrize("what", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_both_clocks_move_the_same_requests(kind: str, what: str, queue: Queueing) -> None:
    for seed in SEEDS:
        dice = random.Random(f"rescheduling, {kind}, {what}, {queue}, {seed}")
        day = nasty_day(kind, 2_000 + seed)
        members = [replace(one, kv_bytes_per_token=dice.choice([0, 10**5, 10**7])) for one in nasty_fleet(dice, day)]
        period = dice.choice([0.05, 0.3, 2.0])
        signal_seconds = dice.choice([0.0, 0.0, 0.3, 2.0])
        live_by_both_clocks(day, members, queue, signal_seconds, partial(MAKERS[what], period))


def test_a_request_moves_a_bounded_number_of_times() -> None:
    """However restless the policy: three times while it runs, and once while it waits."""
    most = {"waiting": 0, "running": 0}
    for seed in range(8):
        dice = random.Random(f"bounded, {seed}")
        day = nasty_day("no cache", 3_000 + seed)
        members = [replace(one, outages=()) for one in nasty_fleet(dice, day)]
        for what in ("waiting", "running"):
            policies: list[Restless] = []

            def made(what: str = what, policies: list[Restless] = policies) -> Restless:
                policies.append(Restless(0.05, waiting=what == "waiting", running=what == "running"))
                return policies[-1]

            live_by_both_clocks(day, members, "replicas", 0.0, made)
            for policy in policies:
                most[what] = max(most[what], *policy.landed.values(), 0)
    assert most == {"waiting": 1, "running": MOVES_MAX}


@pytest.mark.parametrize(("rescheduling", "lost"), [(Stay(), 4), (Migrate(period_seconds=0.05), 0)])
def test_a_replica_that_drains_is_emptied_in_time(rescheduling: ReschedulingPolicy, lost: int) -> None:
    """Four long requests run at r0, which fails at 30 s and says so 20 s before."""
    trace = Trace("four", np.zeros(4), np.full(4, 40), np.full(4, 90))
    rules = EngineRules(kv_blocks=400, block_tokens=4, max_num_seqs=8, max_num_batched_tokens=512)
    step = LinearStepTime(PS_PER_SECOND, 0, 0)  # a second, whatever it computes
    members = [
        FleetMember("r0", rules, step, COSTS, (Outage(30 * PS_PER_SECOND, FOREVER, 20 * PS_PER_SECOND),)),
        FleetMember("r1", rules, step, COSTS),
    ]
    for clock in (simulate_fleet, simulate_reference_fleet):
        policies = FleetPolicies(bundle(costs=COSTS, seed=0), lambda costs: bundle(costs=costs, seed=0))
        outcome = clock(trace, members, Routing(ToTheFirst(), "replicas", 0.0, rescheduling), policies)
        assert len(outcome.day.failed) == lost
        assert outcome.replica.tolist() == [int(not lost)] * 4
        assert outcome.moves == 4 - lost


class ToTheFirst:
    """A routing policy that knows one replica."""

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        return replicas[0]
