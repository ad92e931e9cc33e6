"""Equals keep the order of arrival: by hand, on a whole day, and where requests only look alike."""

from __future__ import annotations

import numpy as np
import pytest

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.later_deadlines import LaterDeadlines
from headway.domain.request import Request, RequestView, expected_output_tokens
from headway.scheduling.bundle import bundle
from headway.scheduling.equals import Equals
from headway.scheduling.queue import WaitingQueue
from headway.scheduling.scheduler import Scheduler
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import LinearStepTime
from headway.simulator.trace import Trace
from headway.testing.scripted import ScriptedBatch, StampedPrediction

COSTS = ServiceCosts(prefill_seconds_per_token=1e-4, decode_seconds_per_token=0.02)


class ExpectedTokensFirst:
    follows_what_is_learned = True

    def rank(self, request: RequestView) -> float:
        return expected_output_tokens(request)


class Door:
    """A queue whose predictor expects `expected` tokens of every request, or of those named in `known` their own."""

    def __init__(self) -> None:
        self.expected = 100
        self.known: dict[object, int] = {}
        self.asked = 0
        self.queue = WaitingQueue(ExpectedTokensFirst(), predict=self.predict)

    def predict(self, request: RequestView) -> PointEstimate:
        self.asked += 1
        return PointEstimate(self.known.get(request.id, self.expected), "door")

    def arrive(self, number: int, expected: int, at: float | None = None, **looks: object) -> Request:
        self.expected = expected
        request = Request(number, float(number) if at is None else at, 10, **looks)  # type: ignore[arg-type]
        request.estimate = self.predict(request)
        self.queue.add(request)
        return request

    def drain(self) -> list[object]:
        served = []
        while self.queue:
            head = self.queue.head(0.0)
            assert self.queue.pop(0.0) is head
            served.append(head.id if head else None)
        return served


@pytest.mark.parametrize(
    "ordering", ["smallest-volume-first", "shortest-job-first", "priced-work", "goodput-first", "ewsjf"]
)
def test_identical_requests_wait_no_longer_than_under_fcfs(ordering: str) -> None:
    """Estimates fall while `histogram` learns, and the last to come would go first by them."""
    count = 100
    trace = Trace("alike", np.arange(count) * 0.02, np.full(count, 200), np.full(count, 20))
    rules = EngineRules(kv_blocks=64, max_num_seqs=4, async_scheduling=False)
    step_time = LinearStepTime(10**10, 10**7, 10**4)

    def first_tokens(order: str) -> list[int]:
        policies = bundle(ordering=order, prediction="histogram", costs=COSTS, seed=0)
        day = simulate(trace, rules, step_time, policies)
        return (day.first_token_ps - day.arrived_ps).tolist()  # type: ignore[no-any-return]

    assert first_tokens(ordering) == first_tokens("fcfs")


def test_the_group_is_served_by_its_best_rank_in_order_of_arrival() -> None:
    door = Door()
    door.arrive(0, 300)
    door.arrive(1, 200, priority=1)
    door.arrive(2, 100)
    door.arrive(3, 250)
    # 2 ranks first: its equal 0 goes; again: 2 goes; then 1 by its own 200; 3 last.
    assert door.drain() == [0, 2, 1, 3]


@pytest.mark.parametrize(
    "looks",
    [
        {"tenant": "t"},
        {"session": "s"},
        {"max_output_tokens": 9},
        {"deadline": 9.0},
        {"later_deadlines": LaterDeadlines(end=9.0)},
        {"priority": 1},
        {"cached_prompt_tokens": 1},
        {"produced_tokens": 1},
        {"sequences": 2},
    ],
    ids=str,
)
def test_requests_that_differ_in_anything_are_no_equals(looks: dict[str, object]) -> None:
    door = Door()
    door.arrive(0, 300)
    door.arrive(1, 200, **looks)
    assert door.drain() == [1, 0]


def test_requests_of_which_the_predictor_expects_different_lengths_are_no_equals() -> None:
    """They look alike, but it knows their ids: an oracle, or a client's hint."""
    door = Door()
    door.known = {0: 300, 1: 200, 2: 200}
    for number in range(3):
        door.arrive(number, 0)
    asked = door.asked
    assert [door.queue.head(0.0).id for _ in range(5)] == [1] * 5  # type: ignore[union-attr]
    assert door.asked == asked + 2, "the answer stands"
    assert door.drain() == [1, 2, 0]


def test_the_earlier_arrival_is_first_even_if_it_came_into_the_queue_later() -> None:
    door = Door()
    door.arrive(0, 300, at=5.0)
    door.arrive(1, 300, at=1.0)
    door.arrive(2, 200, at=9.0)
    assert door.drain() == [1, 0, 2]


def test_one_that_left_is_not_served_and_one_that_came_back_is_new() -> None:
    door = Door()
    first = door.arrive(0, 300)
    door.arrive(1, 250)
    door.arrive(2, 200)
    assert door.queue.remove(0) is first
    assert door.queue.head(0.0).id == 1  # type: ignore[union-attr]
    door.queue.remove(1)
    door.queue.add(first)
    assert door.drain() == [0, 2]


def test_a_request_whose_work_changes_and_changes_back_has_the_equals_that_it_looks_like() -> None:
    door = Door()
    for number, expected in enumerate([300, 250, 200]):
        door.arrive(number, expected)
    first = door.queue._where[0][1][3]
    first.cached_prompt_tokens = 5
    door.queue.requeue(0)
    assert door.queue.head(0.0).id == 1  # type: ignore[union-attr]
    second = door.queue._where[1][1][3]
    for cached in (5, 0, 5, 0):
        second.cached_prompt_tokens = cached
        door.queue.requeue(1)
    assert door.drain() == [1, 2, 0]
    for number, expected in enumerate([300, 250, 200], 3):
        middle = door.arrive(number, expected)
        if number == 4:
            left = middle
    left.cached_prompt_tokens = 5
    door.queue.requeue(4)
    assert door.drain() == [3, 5, 4], "it left its equals from their middle"
    for number, expected in enumerate([300, 300], 5):
        door.arrive(number, expected, at=1.0)
    door.queue.requeue(5)
    assert door.drain() == [5, 6], "it keeps its place"


def test_of_equals_behind_the_head_only_the_first_is_a_candidate() -> None:
    door = Door()
    for number, expected in enumerate([400, 300, 350, 200]):
        door.arrive(number, expected, tenant="" if number in (0, 3) else "t")
    assert door.queue.head(0.0).id == 0  # type: ignore[union-attr]
    assert [request.id for request in door.queue.following(0.0, 9)] == [1]
    door.queue.resume(Request(9, 0.0, 10))
    assert [request.id for request in door.queue.following(0.0, 9)] == [0, 1]


def test_without_learning_nothing_is_compared() -> None:
    class Silent:
        def rank(self, request: RequestView) -> float:
            return expected_output_tokens(request)

    door = Door()
    door.queue = WaitingQueue(Silent(), predict=door.predict)
    door.arrive(0, 300)
    door.arrive(1, 200)
    assert door.drain() == [1, 0]
    assert door.asked == 2


def test_a_storm_of_cancellations_leaves_nothing_behind() -> None:
    """All but the first leave again, one after the other: what is kept of them stays in proportion to what waits."""
    equals = Equals(StampedPrediction({}).predict)
    equals.add(Request("stays", 0.0, 10), 0)
    most = 0
    for number in range(1, 2_000):
        equals.add(Request(number, 1.0, 10), number)
        equals.remove(number)
        most = max(most, sum(map(len, equals._alike.values())))
    assert 60 < most < 80
    equals.remove("stays")
    assert not equals._alike
    assert not equals._waiting
    assert equals._left == 0


def test_an_order_that_is_suspended_and_reinstated_keeps_its_equals() -> None:
    door = Door()
    door.arrive(0, 300)
    door.arrive(1, 200)
    door.queue = door.queue.under(ExpectedTokensFirst())
    assert door.drain() == [0, 1]


def test_scheduler_and_backfilling_agree_on_the_head() -> None:
    policies = bundle(
        ordering="smallest-volume-first", admission="backfill", prediction="running-mean", costs=COSTS, seed=0
    )
    scheduler = Scheduler(policies)
    requests = [Request(number, float(number), 10) for number in range(3)]
    scheduler.arrive(requests[0], 0.0)
    ended = Request("ended", 0.0, 10, produced_tokens=1)
    for request in requests[1:]:
        scheduler.complete(ended, request.arrived_at)
        scheduler.arrive(request, request.arrived_at)
    batch = ScriptedBatch([Request("runs", 0.0, 10)])
    assert scheduler.candidate([], batch, None, 3.0) is requests[0]  # type: ignore[arg-type]
    assert [scheduler.admit(3.0).id for _ in range(3)] == [0, 1, 2]
