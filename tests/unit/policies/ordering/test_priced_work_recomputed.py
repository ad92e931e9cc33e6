"""priced-work told in plain lists, as docs/priced-work.md describes it, beside the policy on drawn days."""

from __future__ import annotations

import math
from random import Random

import pytest

from headway.domain.estimate import PointEstimate
from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Preempted
from headway.domain.request import Request
from headway.policies.ordering.priced_work import PricedWork, work


class Waiting:
    """One request in the real queue."""

    def __init__(self, request: Request, size: float, spared: bool, lane: tuple[bool, int]) -> None:
        self.request, self.size, self.spared, self.lane = request, size, spared, lane
        self.turn: float | None = None  # when the shadow let it in
        self.overdue_at_once = False

    def due(self, tail: float, patience: float) -> float:
        if self.overdue_at_once:
            return -math.inf
        if self.turn is None:
            return math.inf
        waited = self.turn - self.request.arrived_at
        return self.request.arrived_at + max(patience * waited, tail)


class Plain:
    """The policy in plain lists: a shadow in order of arrival is given as much work as the real queue."""

    def __init__(self) -> None:
        self.queue: list[Waiting] = []
        self.shadow: list[Waiting] = []
        self.ahead = self.credit = 0.0
        self.works: list[float] = []
        self.waits: list[float] = []

    @property
    def tail(self) -> float:
        """What 99 of 100 of the last 2,000 would have waited in order of arrival at most."""
        rising = sorted(self.waits[-2_000:])
        return rising[min(len(rising) - 1, int(0.99 * len(rising)))] if rising else 0.0

    def makes_way(self, size: float) -> bool:
        rising = sorted(self.works[-2_000:])
        if self.credit <= 0 or len(rising) < 20:
            return False
        share = 1 - self.credit / 200
        return size > rising[min(len(rising) - 1, int(share * len(rising)))]

    def lane(self, size: float) -> tuple[bool, int]:
        return self.makes_way(size), math.floor(math.log(size) / math.log(1.5))

    def arrive(self, request: Request) -> None:
        size = work(request)
        one = Waiting(request, size, self.makes_way(size), self.lane(size))
        self.credit = min(0.009 * 2_000, self.credit + 0.009) - one.spared
        self.queue.append(one)
        self.shadow.append(one)
        self.works.append(size)

    def heads(self) -> dict[tuple[bool, int], Waiting]:
        first: dict[tuple[bool, int], Waiting] = {}
        for one in sorted(self.queue, key=lambda one: one.request.arrived_at):
            first.setdefault(one.lane, one)
        return first

    def choose(self, now: float) -> tuple[bool, int]:
        heads, tail = self.heads(), self.tail
        overdue = [
            (one.request.arrived_at, lane)
            for lane, one in heads.items()
            if one.due(tail, 50.0 if one.spared else 2.0) <= now
        ]
        return min(overdue)[1] if overdue else min(heads)

    def next_change(self, now: float) -> float:
        tail = self.tail
        dues = [one.due(tail, 50.0 if one.spared else 2.0) for one in self.heads().values()]
        return min([due for due in dues if due > now], default=math.inf)

    def leave(self, one: Waiting, at: float, admitted: bool) -> None:
        self.queue.remove(one)
        if one.overdue_at_once:
            refunded = False
        else:
            refunded = one.spared and at <= one.due(self.tail, 2.0)
            if admitted:
                self.ahead += one.size
            elif one in self.shadow:
                self.shadow.remove(one)
            else:
                self.ahead += one.size
        self.credit += refunded
        while self.shadow and (not self.queue or self.shadow[0].size <= self.ahead * (1 + 1e-9)):
            turn = self.shadow.pop(0)
            self.ahead -= turn.size
            turn.turn = at
            self.waits.append(at - turn.request.arrived_at)
        if not self.shadow:
            self.ahead = 0.0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("busy", [0.9, 1.5])
def test_the_policy_decides_as_the_description(seed: int, busy: float) -> None:
    lots, policy, plain = Random(seed), PricedWork(), Plain()
    now, number, preempted = 0.0, 0, 0
    running: list[Request] = []
    spared = overdue = 0
    for _ in range(900):
        now += lots.choice([0.25, 0.5, 1.0])
        if lots.random() < 0.5 * busy:
            number += 1
            large = lots.random() < 0.02
            request = Request(number, now, lots.randint(3_000, 9_000) if large else lots.randint(1, 400))
            request.estimate = PointEstimate(lots.randint(1, 300), "test")
            assert policy.lane(request) == plain.lane(work(request))
            policy.observe(Arrived(request, now))
            plain.arrive(request)
            spared += plain.queue[-1].spared
        heads = plain.heads()
        views = {lane: one.request for lane, one in heads.items()}
        if views:
            assert policy.next_change(views, now) == pytest.approx(plain.next_change(now))
            chosen = policy.choose(views, now)
            assert chosen == plain.choose(now)
            overdue += chosen != min(views)
        if heads and lots.random() < 0.5:
            one = heads[plain.choose(now)]
            if lots.random() < 0.08:
                one = lots.choice(plain.queue)
                end = lots.choice([Cancelled, lambda who, at: Completed(who, at, 1)])
                policy.observe(end(one.request, now))
                plain.leave(one, now, admitted=False)
            else:
                policy.observe(Admitted(one.request, now))
                plain.leave(one, now, admitted=True)
                running.append(one.request)
        if running and lots.random() < 0.02:
            back = running.pop(lots.randrange(len(running)))
            policy.observe(Preempted(back, now))
            waits = Waiting(back, 0.0, False, plain.lane(work(back)))
            waits.overdue_at_once = True
            plain.queue.append(waits)
            preempted += 1
    assert min(preempted, overdue, spared) > 0, "the day has some of each"
