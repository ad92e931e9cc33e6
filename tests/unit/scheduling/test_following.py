"""Who may pass the head: those behind it in the order they would be served, and nothing is disturbed by asking."""

from __future__ import annotations

import random

from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import Request, RequestView
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.ordering.highest_response_ratio import HighestResponseRatio
from headway.policies.ordering.shortest_prompt_first import ShortestPromptFirst
from headway.policies.prediction.declared_max import DeclaredMax
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.queue import WaitingQueue
from headway.scheduling.scheduler import Policies, Scheduler
from headway.testing.scripted import ScriptedBatch

MEMORY = MemoryView(10, 10, 16)


class PassAll:
    """Lets anybody pass, and counts."""

    look_ahead = 3

    def __init__(self) -> None:
        self.passes = 0

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        return 1

    def may_pass(
        self, request: RequestView, head: RequestView, batch: BatchView, memory: MemoryView, now: float
    ) -> bool:
        return request.prompt_tokens < head.prompt_tokens

    def passed(self, head: RequestView) -> None:
        self.passes += 1


def test_those_behind_the_head_come_in_the_order_of_service() -> None:
    lots = random.Random(2)
    for _ in range(50):
        queue = WaitingQueue(ShortestPromptFirst())
        requests = [Request(number, float(number), lots.randint(1, 9)) for number in range(lots.randint(1, 30))]
        for request in requests:
            queue.add(request)
        for request in lots.sample(requests, len(requests) // 4):
            queue.remove(request.id)
        limit = lots.randint(1, 8)
        behind = queue.following(0.0, limit)
        order = [queue.pop(0.0) for _ in range(len(queue))]
        assert behind == order[1 : limit + 1]


def test_the_preempted_wait_in_front_of_the_rest() -> None:
    queue = WaitingQueue(Fcfs())
    for number in range(3):
        queue.add(Request(number, float(number), 5))
    queue.resume(Request("first victim", 0.0, 5))
    queue.resume(Request("last victim", 0.0, 5))
    assert [request.id for request in queue.following(0.0, 3)] == ["first victim", 0, 1]


def test_of_other_lanes_the_heads_are_named_and_nothing_changes() -> None:
    queue = WaitingQueue(HighestResponseRatio())
    for number, prompt_tokens in enumerate([10, 10, 10, 10, 1_000, 100_000]):
        queue.add(Request(number, 0.0, prompt_tokens))
    assert [request.id for request in queue.following(1.0, 5)] == [1, 2, 4, 5]
    assert len(queue) == 6
    assert queue.head(1.0) is not None


def brain(admission: PassAll | Greedy) -> Scheduler:
    scheduler = Scheduler(Policies(Fcfs(), admission, LatestAdmitted(), DeclaredMax()))
    for number, prompt_tokens in enumerate([50, 60, 10, 20, 5]):
        scheduler.arrive(Request(number, float(number), prompt_tokens), 0.0)
    return scheduler


def test_without_backfilling_the_head_blocks() -> None:
    scheduler, batch = brain(Greedy()), ScriptedBatch([Request("runs", 0.0, 5)])
    head = scheduler.candidate([], batch, MEMORY, 0.0)
    assert head is not None
    assert head.id == 0
    assert not scheduler.backfills
    assert scheduler.candidate([head], batch, MEMORY, 0.0) is None


def test_with_it_those_who_may_pass_are_named_one_by_one() -> None:
    policy = PassAll()
    scheduler, batch = brain(policy), ScriptedBatch([Request("runs", 0.0, 5)])
    head = scheduler.candidate([], batch, MEMORY, 0.0)
    assert head is not None
    first = scheduler.candidate([head], batch, MEMORY, 0.0)
    assert first is not None
    assert first.id == 2  # 1 is larger than the head
    second = scheduler.candidate([head, first], batch, MEMORY, 0.0)
    assert second is not None
    assert second.id == 3
    assert scheduler.candidate([head, first, second], batch, MEMORY, 0.0) is None  # 4 is past the look-ahead
    scheduler.admit_past(first, head, 0.0)
    assert policy.passes == 1
    assert [request.id for request in scheduler.queue.following(0.0, 9)] == [1, 3, 4]
    assert scheduler.head(0.0) is head


def test_in_an_empty_batch_nobody_passes() -> None:
    scheduler = brain(PassAll())
    head = scheduler.candidate([], ScriptedBatch(), MEMORY, 0.0)
    assert head is not None
    assert scheduler.candidate([head], ScriptedBatch(), MEMORY, 0.0) is None
