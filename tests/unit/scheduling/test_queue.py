"""The waiting queue: against a naive one over random lives, and by hand where it is clever."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest

from headway.domain.request import Request, RequestView
from headway.policies.contracts import LaneId
from headway.policies.ordering.fair_share import FairShare
from headway.policies.ordering.fcfs import Fcfs
from headway.scheduling.queue import WaitingQueue
from headway.testing import laws


class ShortestPrompt:
    def rank(self, request: RequestView) -> float:
        return request.prompt_tokens


class OldestTenantFirst:
    """A lane a tenant; the tenant whose head waits longest, but "late" only from t = 100 on. Counts its questions."""

    def __init__(self) -> None:
        self.choices = self.forecasts = 0

    def lane(self, request: RequestView) -> LaneId:
        return request.tenant

    def rank(self, request: RequestView) -> float:
        return 0.0

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        self.choices += 1
        open_lanes = [lane for lane in heads if lane != "late" or now >= 100] or list(heads)
        return min(open_lanes, key=lambda lane: (heads[lane].arrived_at, lane))  # a tie must not go by the lanes' order

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        self.forecasts += 1
        return 100.0 if now < 100 and "late" in heads and len(heads) > 1 else math.inf


class ByArrival:
    def rank(self, request: RequestView) -> float:
        return request.arrived_at


def waiting(id: int, prompt: int = 1, at: float = 0.0, tenant: str = "") -> Request:
    return Request(id, at, prompt, tenant=tenant)


def drain(queue: WaitingQueue, now: float = 0.0) -> list[object]:
    order = []
    while queue:
        head = queue.head(now)
        popped = queue.pop(now)
        assert head is popped
        order.append(popped.id)
    return order


@pytest.mark.parametrize("ordering", [ShortestPrompt, ByArrival])
@pytest.mark.parametrize("law", laws.RANKED)
def test_laws_with_ranked_orders_of_our_own(law, ordering) -> None:
    law(ordering)


@pytest.mark.parametrize("law", laws.LANED)
def test_laws_with_a_laned_order_of_our_own(law) -> None:
    law(OldestTenantFirst)


def test_rank_then_arrival_then_ticket() -> None:
    queue = WaitingQueue(ShortestPrompt())
    for request in (waiting(0, 5, 1.0), waiting(1, 5, 0.5), waiting(2, 3, 9.0), waiting(3, 5, 0.5)):
        queue.add(request)
    assert drain(queue) == [2, 1, 3, 0]


@pytest.mark.parametrize("ruled_anew", [False, True])
@pytest.mark.parametrize("aside", [(0,), (1,), (2,), (2, 0), (0, 1, 2)])
def test_a_request_that_was_set_aside_comes_back_to_its_place_among_equals(
    aside: tuple[int, ...], ruled_anew: bool
) -> None:
    queue = WaitingQueue(Fcfs())
    requests = [waiting(number, at=1.0) for number in range(4)]
    for request in requests[:3]:
        queue.add(request)
    for number in aside:
        queue.set_aside(number)
    assert len(queue) == 3 - len(aside)
    queue.add(requests[3])
    if ruled_anew:
        queue = queue.under(ShortestPrompt())
    for number in aside:
        queue.add(requests[number])
    assert drain(queue) == [0, 1, 2, 3]


def test_of_a_request_that_was_set_aside_and_ended_nothing_is_kept() -> None:
    queue = WaitingQueue(Fcfs())
    queue.add(waiting(0))
    queue.set_aside(0)
    queue.set_aside(7)  # it does not wait
    queue.forget(0)
    queue.forget(7)
    assert not queue._aside
    queue.add(waiting(1))
    queue.add(waiting(0))
    assert drain(queue) == [1, 0]


def test_an_empty_queue_has_no_head_and_nothing_to_pop() -> None:
    queue = WaitingQueue(OldestTenantFirst())
    assert queue.head(0.0) is None
    assert queue.stands_until(0.0) == math.inf
    assert queue.remove(7) is None
    with pytest.raises(IndexError, match="the queue is empty"):
        queue.pop(0.0)


def test_a_request_waits_once() -> None:
    queue = WaitingQueue(ByArrival())
    queue.add(waiting(0))
    queue.resume(waiting(1))
    for number in (0, 1):
        with pytest.raises(ValueError, match=f"request {number} is already waiting"):
            queue.add(waiting(number))
        with pytest.raises(ValueError, match=f"request {number} is already waiting"):
            queue.resume(waiting(number))
    assert sorted(request.id for request in queue) == [0, 1]


def test_the_preempted_come_back_in_front_the_latest_victim_first() -> None:
    queue = WaitingQueue(ShortestPrompt(), "front")
    queue.add(waiting(0, 1))
    for number in (1, 2, 3):
        queue.resume(waiting(number, 100))
    assert queue.remove(2) is not None
    assert queue.stands_until(0.0) == math.inf
    assert drain(queue) == [3, 1, 0]


def test_or_by_their_rank() -> None:
    queue = WaitingQueue(ShortestPrompt(), "by-rank")
    queue.add(waiting(0, 50))
    queue.resume(waiting(1, 100))
    queue.resume(waiting(2, 1))
    assert drain(queue) == [2, 0, 1]


def test_a_choice_is_kept_until_the_time_it_may_change() -> None:
    ordering = OldestTenantFirst()
    queue = WaitingQueue(ordering)
    queue.add(waiting(0, at=0.0, tenant="late"))
    queue.add(waiting(1, at=1.0, tenant="a"))
    for now in (2.0, 3.0, 99.0):
        assert queue.head(now).id == 1
        assert queue.stands_until(now) == 100.0
    assert (ordering.choices, ordering.forecasts) == (1, 1)
    queue.add(waiting(2, at=5.0, tenant="a"))  # behind a head: nothing to decide
    assert queue.head(99.5).id == 1
    assert ordering.choices == 1
    assert queue.head(100.0).id == 0
    assert queue.stands_until(100.0) == math.inf
    assert ordering.choices == 2


def test_a_new_head_is_chosen_from_at_once() -> None:
    queue = WaitingQueue(OldestTenantFirst())
    queue.add(waiting(1, at=5.0, tenant="a"))
    assert queue.head(6.0).id == 1
    queue.add(waiting(2, at=4.0, tenant="b"))
    assert queue.head(6.0).id == 2
    queue.remove(2)
    assert queue.head(6.0).id == 1


def test_reconsider_asks_the_ordering_anew() -> None:
    ordering = OldestTenantFirst()
    queue = WaitingQueue(ordering)
    queue.add(waiting(1, tenant="a"))
    queue.head(0.0)
    queue.head(0.0)
    assert ordering.choices == 1
    queue.reconsider()
    queue.head(0.0)
    assert ordering.choices == 2


@pytest.mark.parametrize("ordering", [ShortestPrompt, OldestTenantFirst])
def test_a_storm_of_aborts_loses_nobody_and_keeps_no_memory(ordering) -> None:
    """After 5,000 of 5,050 have left, what the heaps hold is of the order of what waits; the order is unharmed."""
    chance = random.Random(0)
    queue = WaitingQueue(ordering())
    everyone = [waiting(i, chance.randrange(1, 500), at=float(i), tenant=chance.choice("abc")) for i in range(5_050)]
    for request in everyone:
        queue.add(request)
    staying = set(chance.sample(range(5_050), 50))
    leaving = [request for request in everyone if request.id not in staying]
    chance.shuffle(leaving)
    for request in leaving:
        assert queue.remove(request.id) is request
    assert len(queue) == 50
    assert {request.id for request in queue} == staying
    assert sum(len(lane) for lane in queue._lanes.values()) <= 50 + 64
    key = (lambda r: (r.prompt_tokens, r.id)) if ordering is ShortestPrompt else (lambda r: r.id)
    assert drain(queue) == [r.id for r in sorted((everyone[i] for i in staying), key=key)]


def test_lanes_without_anybody_are_forgotten() -> None:
    queue = WaitingQueue(OldestTenantFirst())
    for number in range(1_000):
        queue.add(waiting(number, tenant=str(number)))
        queue.remove(number)
    assert not queue._lanes
    assert not queue._heads
    assert not queue._dead


def test_lane_sizes_are_of_those_who_wait() -> None:
    queue = WaitingQueue(FairShare())
    for number, tenant in enumerate("aab"):
        queue.add(Request(number, float(number), 10, tenant=tenant))
    assert queue.lane_sizes() == {("a", None): 2, ("b", None): 1}
    queue.remove(0)
    queue.remove(2)
    assert queue.lane_sizes() == {("a", None): 1}
    assert WaitingQueue(Fcfs()).lane_sizes() == {}


@pytest.mark.parametrize("which", [0, 1])
def test_a_request_whose_work_changed_keeps_its_place_among_those_of_its_time(which: int) -> None:
    """Three of one rank that arrived at once; asked for again, the first or second stays where it was."""
    queue = WaitingQueue(ByArrival())
    requests = [Request(number, 1.0, 10) for number in range(3)]
    for request in requests:
        queue.add(request)
    queue.requeue(which)
    assert len(queue) == 3
    assert [queue.pop(2.0).id for _ in range(3)] == [0, 1, 2]


def test_a_request_whose_work_changed_moves_by_its_rank() -> None:
    queue = WaitingQueue(ShortestPrompt())
    first, second = Request(1, 0.0, 10), Request(2, 0.0, 20)
    queue.add(first)
    queue.add(second)
    first.prompt_tokens = 30
    queue.requeue(1)
    assert [queue.pop(2.0).id for _ in range(2)] == [2, 1]


class Redraws:
    """Lanes by `by`; redrawn when the test says so. The least lane first."""

    def __init__(self) -> None:
        self.redrawn = 0
        self.by = lambda request: "all"
        self.asked = 0

    def lane(self, request: RequestView) -> LaneId:
        self.asked += 1
        return self.by(request)

    def rank(self, request: RequestView) -> float:
        return 0.0

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        return min(heads, key=str)

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        return now + 1.0


def test_a_redraw_moves_every_request_that_waits_and_no_other() -> None:
    ordering = Redraws()
    queue = WaitingQueue(ordering)
    for number, prompt in enumerate([3, 1, 2, 1]):
        queue.add(waiting(number, prompt, at=float(number)))
    queue.remove(2)
    queue.reconsider()
    assert ordering.asked == 4, "nothing was redrawn"
    ordering.redrawn, ordering.by = 1, lambda request: request.prompt_tokens
    queue.reconsider()
    assert ordering.asked == 7
    assert queue.lane_sizes() == {3: 1, 1: 2}
    assert not queue._dead
    assert queue.head(0.0).id == 1
    assert queue.remove(0).id == 0
    assert queue.lane_sizes() == {1: 2}
    assert drain(queue) == [1, 3]
    queue.reconsider()
    assert ordering.asked == 7


def test_in_front_of_the_lanes_nothing_changes_with_time() -> None:
    queue = WaitingQueue(Redraws())
    queue.add(waiting(0))
    assert queue.stands_until(5.0) == 6.0
    queue.resume(waiting(1))
    assert queue.stands_until(5.0) == math.inf
    assert queue.pop(5.0).id == 1
    assert queue.stands_until(5.0) == 6.0


@pytest.mark.parametrize(("limit", "behind"), [(0, []), (1, [1]), (2, [1, 0]), (3, [1, 0, 3])])
def test_the_preempted_count_among_those_behind_the_head(limit: int, behind: list[int]) -> None:
    queue = WaitingQueue(ByArrival())
    queue.add(waiting(0, at=0.0))
    queue.add(waiting(3, at=3.0))
    queue.resume(waiting(1))
    queue.resume(waiting(2))
    assert queue.head(9.0).id == 2
    assert [request.id for request in queue.following(9.0, limit)] == behind


def test_heaps_are_rebuilt_once_most_of_them_is_dead() -> None:
    queue = WaitingQueue(ByArrival())
    for number in range(200):
        queue.add(waiting(number, at=float(number)))
    for number in range(1, 101):
        queue.remove(number)
    assert len(queue._dead) == 0
    assert len(queue._lanes[None]) == 100
    for number in range(101, 150):
        queue.remove(number)
    assert len(queue._dead) == 49


def test_after_a_redraw_each_lane_is_in_order_of_rank() -> None:
    class ByPrompt(Redraws):
        def rank(self, request: RequestView) -> float:
            return -request.prompt_tokens

    ordering = ByPrompt()
    queue = WaitingQueue(ordering)
    for number, prompt in enumerate([1, 5, 3, 9, 7, 2]):
        queue.add(waiting(number, prompt, at=float(number)))
    ordering.redrawn, ordering.by = 1, lambda request: request.prompt_tokens % 2
    queue.reconsider()
    assert drain(queue) == [5, 3, 4, 1, 2, 0]


def test_of_many_lanes_as_many_heads_as_asked_for_are_named() -> None:
    ordering = Redraws()
    ordering.by = lambda request: request.prompt_tokens
    queue = WaitingQueue(ordering)
    for number in range(5):
        queue.add(waiting(number, number + 1))
    assert [request.id for request in queue.following(0.0, 2)] == [1, 2]
    assert [request.id for request in queue.following(0.0, 9)] == [1, 2, 3, 4]
