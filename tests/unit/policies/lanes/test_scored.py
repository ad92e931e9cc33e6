"""Scored lanes: the choice among heads recomputed from the published score, and what moves it."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.event import Admitted, Arrived, Cancelled, Completed
from headway.domain.request import Request
from headway.policies.ordering.ewsjf import Ewsjf
from headway.policies.ordering.ewsjf_authors import EwsjfAuthors
from headway.policies.ordering.ewsjf_published import EwsjfPublished

PER_TOKEN = 1e-3
COSTS = ServiceCosts(prefill_seconds_per_token=PER_TOKEN, decode_seconds_per_token=0.02)
WEIGHTS: dict[str, Any] = {"w_base": 0.7, "a_u": 0.002, "b_u": 0.5, "a_f": 0.0005, "b_f": 0.2}


class Desk:
    """Requests in lanes, the heads of which are asked about; none has a first token, so costs stay as they were."""

    def __init__(self, ordering: Any) -> None:
        self.ordering = ordering
        self.waiting: dict[int, list[Request]] = {}
        self.tickets: dict[object, int] = {}

    def come(self, number: int, prompt: int, at: float, cached: int = 0) -> Request:
        request = Request(number, at, prompt, cached_prompt_tokens=cached)
        request.estimate = PointEstimate(20, "test")
        self.waiting.setdefault(self.ordering.lane(request), []).append(request)
        self.ordering.observe(Arrived(request, at))
        self.tickets[number] = len(self.tickets)
        return request

    def heads(self) -> dict[int, Request]:
        return {
            lane: min(some, key=lambda r: (r.arrived_at, self.tickets[r.id])) for lane, some in self.waiting.items()
        }

    def admit(self, lane: int, now: float) -> Request:
        return self.go(lane, self.heads()[lane], Admitted, now)

    def go(self, lane: int, request: Request, event: Any, now: float) -> Request:
        self.waiting[lane].remove(request)
        if not self.waiting[lane]:
            del self.waiting[lane]
        self.ordering.observe(event(request, now))
        return request


def sizes(request: Request, feature: str) -> int:
    if feature == "prompt-tokens":
        return request.prompt_tokens
    if feature == "uncached-tokens":
        return request.prompt_tokens - request.cached_prompt_tokens
    return max(1, int(math.sqrt(2 * request.prompt_tokens * 20 + 20 * 20 + 20)))


def published(desk: Desk, lane: int, head: Request, now: float, feature: str, by_queue: bool) -> float:
    """q/(b + 1)·(w_base + w_urg·W/C(b) + w_fair·ln(b + 1)), both weights along the mean size of the lane."""
    lanes = desk.ordering._lanes.router.lanes
    place, own = next((place, own) for place, own in enumerate(lanes) if own.number == lane)
    size = sizes(head, feature)
    cost = PER_TOKEN * max(1, size) ** 2 / 1_024 if feature == "kv-volume" else PER_TOKEN * max(1, size)
    urgency = max(0.0 if by_queue else 1e-3, 0.002 * own.mean + 0.5)
    fairness = max(0.0, 0.0005 * own.mean + 0.2)
    score = 0.7 + urgency * (now - head.arrived_at) / cost + fairness * math.log(size + 1)
    return score * (len(lanes) - place) / (size + 1) if by_queue else score


@pytest.mark.parametrize("feature", ["prompt-tokens", "uncached-tokens", "kv-volume"])
@pytest.mark.parametrize("by_queue", [False, True])
def test_the_highest_score_is_chosen_and_stays_so_until_it_is_foretold(by_queue: bool, feature: str) -> None:
    lots = Random(4)
    more: dict[str, Any] = {} if by_queue else {"overdue_seconds": 1e9}
    make: Any = EwsjfPublished if by_queue else Ewsjf
    desk = Desk(make(costs=COSTS, feature=feature, fill="score", **WEIGHTS, **more))
    now = 0.0
    for number in range(330):  # lanes are learned at the 250th
        now += lots.random()
        prompt = int(lots.lognormvariate(6, 1.5)) + 1
        desk.come(number, prompt, now, cached=lots.choice([0, 0, prompt // 2]))
        if number == 249:  # the queue asks for all lanes again
            desk.waiting = regrouped(desk)
        heads = desk.heads()
        scores = {lane: published(desk, lane, head, now, feature, by_queue) for lane, head in heads.items()}
        chosen = desk.ordering.choose(heads, now)
        assert scores[chosen] == pytest.approx(max(scores.values()))
        until = desk.ordering.next_change(heads, now)
        assert until >= now
        later = min(until, now + 50) - 1e-6
        if later > now:
            scores = {lane: published(desk, lane, head, later, feature, by_queue) for lane, head in heads.items()}
            assert scores[chosen] == pytest.approx(max(scores.values()))
        if lots.random() < 0.5:
            desk.admit(chosen, now)


def regrouped(desk: Desk) -> dict[int, list[Request]]:
    lanes: dict[int, list[Request]] = {}
    for request in [request for some in desk.waiting.values() for request in some]:
        lanes.setdefault(desk.ordering.lane(request), []).append(request)
    return lanes


def test_of_equal_scores_the_earlier_arrival_goes_then_the_lower_lane() -> None:
    desk = Desk(Ewsjf(costs=COSTS, fill="score", overdue_seconds=1e9))
    desk.come(0, 1_000, 5.0)
    desk.come(1, 100, 5.0)
    assert desk.ordering.choose(desk.heads(), 5.0) == min(desk.heads()), "both have waited not at all"
    desk.come(2, 10_000, 4.0)
    both = {lane: head for lane, head in desk.heads().items() if head.id in (1, 2)}
    late = 4.0 + 10_000 / 9_900  # 1 s of 100 tokens against 100 of 10,000: waits of 1 : 100
    assert desk.ordering.choose(both, late + 0.01) in both


def test_the_authors_score_is_chosen() -> None:
    lots, desk = Random(6), Desk(EwsjfAuthors(lanes=4, lane_tokens=100, step=150))
    for number in range(60):
        desk.come(number, lots.randint(1, 900), number * 0.1)
    now = 6.0
    while desk.waiting:
        now += 0.05
        heads = desk.heads()

        def score(head: Request, now: float = now) -> float:
            size = head.prompt_tokens
            return (now - head.arrived_at) * (1 + 0.5 * math.log(size + 1)) * 150 / (size // 150 + 1)

        chosen = desk.ordering.choose(heads, now)
        assert score(heads[chosen]) == pytest.approx(max(score(head) for head in heads.values()))
        desk.admit(chosen, now)


def test_the_authors_go_on_with_a_lane_then_compare_again() -> None:
    desk = Desk(EwsjfAuthors(lanes=3, lane_tokens=100, step=0))
    for number, (prompt, at) in enumerate([(50, 0.0), (60, 9.0), (150, 1.0), (250, 2.0)]):
        desk.come(number, prompt, at)
    order = []
    while desk.waiting:
        order.append(desk.admit(desk.ordering.choose(desk.heads(), 10.0), 10.0).id)
    # waited · (1 + 0.5·ln(b + 1)) is 29.7, 3.1, 31.6 and 30.1; the first leaves its lane empty, so all are compared
    assert order == [2, 3, 0, 1]


def test_a_step_goes_on_with_the_lanes_nearest_to_its_first() -> None:
    desk = Desk(Ewsjf(costs=COSTS, fill="lane-and-neighbours", overdue_seconds=1e9))
    for number, (prompt, at) in enumerate(
        [(1_000, 0.0), (5_000, 9.0), (10, 9.9), (1_500, 9.5), (600, 9.6), (1_005, 9.8)]
    ):
        desk.come(number, prompt, at)
    order = []
    while desk.waiting:
        heads = desk.heads()
        chosen = desk.ordering.choose(heads, 10.0)
        if order and len(heads) > 1:
            assert desk.ordering.next_change(heads, 10.0) == 10.0, "within a step each admission asks again"
        order.append(desk.admit(chosen, 10.0).id)
    assert order == [0, 5, 4, 3, 2, 1], "400 and 500 away, then 990, then 4,000"
    desk.come(9, 5_000, 9.0)
    desk.come(10, 10, 9.9)
    assert desk.heads()[desk.ordering.choose(desk.heads(), 11.0)].id == 10, "another step begins with the score"


@pytest.mark.parametrize(("others", "turn"), [(300, 5.0), (100, 7.0)])
def test_the_guard_lets_the_oldest_go_in_its_turn(others: int, turn: float) -> None:
    """A quarter of the work after 5 s: 900 tokens go once 2,700 of others went ahead, four requests a second."""
    desk = Desk(Ewsjf(costs=COSTS, fill="score", overdue_seconds=5.0, overdue_share=0.25))
    long = desk.come(0, 900, 0.0)
    desk.come(99, 900, 0.0)  # came with it, but later
    now = 0.0
    for number in range(100, 200):
        now += 0.25
        desk.come(number, others, now - 2.0)
        heads = desk.heads()
        chosen = desk.ordering.choose(heads, now)
        assert (heads[chosen] is long) == (now >= turn)
        if heads[chosen] is long:
            assert desk.ordering.next_change(heads, now) == math.inf
            desk.admit(chosen, now)
            break
        if others == 300 and now == 4.75:
            assert desk.ordering.next_change(heads, now) == 5.0
        desk.admit(chosen, now)
    guard = desk.ordering._lanes.guard
    assert (now, guard.tokens_ahead) == (turn, 0)
    desk.go(
        next(lane for lane, some in desk.waiting.items() if 99 in [r.id for r in some]),
        desk.heads()[chosen],
        Admitted,
        7.5,
    )
    assert guard.tokens_ahead == 0, "the next oldest is overdue as well"


@pytest.mark.parametrize("end", [Cancelled, lambda who, at: Completed(who, at, 1)])
def test_those_who_leave_are_forgotten(end: Any) -> None:
    desk = Desk(Ewsjf(costs=COSTS))
    kept = desk.come(0, 500, 0.0)
    for number in range(1, 240):
        request = desk.come(number, 5_000, 0.5)
        lane = next(lane for lane, some in desk.waiting.items() if request in some)
        desk.go(lane, request, end, 0.5)
    lanes = desk.ordering._lanes
    assert len(lanes._placed) == 1
    assert len(lanes._oldest) <= 2 + 64 + 1
    assert sum(lane.waiting for lane in lanes.router.lanes) == 1
    assert desk.ordering.choose(desk.heads(), 70.0) in desk.waiting
    assert desk.heads()[desk.ordering.choose(desk.heads(), 70.0)] is kept


def test_a_head_that_comes_back_with_more_work_is_scored_afresh() -> None:
    desk = Desk(Ewsjf(costs=COSTS, fill="score", overdue_seconds=1e9))
    back = desk.come(0, 1_000, 0.0)
    desk.come(1, 3_000, 0.0)
    lane = desk.ordering.choose(desk.heads(), 6.0)
    assert desk.heads()[lane] is back
    desk.admit(lane, 6.0)
    back.produced_tokens = 9_000
    desk.waiting.setdefault(desk.ordering.lane(back), []).append(back)
    assert desk.heads()[desk.ordering.choose(desk.heads(), 6.0)].id == 1


def test_one_head_never_changes() -> None:
    desk = Desk(Ewsjf(costs=COSTS))
    desk.come(0, 500, 0.0)
    assert desk.ordering.next_change(desk.heads(), 1.0) == math.inf
