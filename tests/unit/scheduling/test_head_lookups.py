"""Looking a head up again: when an answer is old, and when a new one moves the request."""

from __future__ import annotations

import pytest

from headway.domain.costs import ServiceCosts
from headway.domain.request import Request
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.ordering.shortest_uncached_prefill_first import ShortestUncachedPrefillFirst
from headway.scheduling.bundle import bundle
from headway.scheduling.head_lookups import is_stale, note_answer
from headway.scheduling.queue import WaitingQueue
from headway.scheduling.scheduler import Scheduler


@pytest.mark.parametrize(("cached", "moves"), [(250, False), (251, True), (1_000, True), (0, False)])
def test_a_quarter_of_the_work_is_not_much(cached: int, moves: bool) -> None:
    request = Request(0, 0.0, 1_000)
    assert note_answer(request, cached, 5.0) is moves
    assert (request.cached_prompt_tokens, request.looked_up_at) == (cached, 5.0)


def test_what_the_cache_has_lost_moves_a_request_too() -> None:
    request = Request(0, 0.0, 1_000, cached_prompt_tokens=900)
    assert note_answer(request, 0, 5.0)


def test_an_answer_is_old_after_a_second_and_after_a_preemption() -> None:
    request = Request(0, 0.0, 1_000)
    assert is_stale(request, 0.0), "never asked"
    note_answer(request, 0, 5.0)
    assert [is_stale(request, now) for now in (5.0, 5.999, 6.0)] == [False, False, True]
    note_answer(request, 0, 6.0)
    scheduler = Scheduler(bundle(ordering="fcfs", costs=ServiceCosts(25e-6, 0.01), seed=0))
    scheduler.arrive(request, 6.0)
    scheduler.admit(6.0)
    scheduler.preempted(request, 6.1)
    assert is_stale(request, 6.1)


def test_a_request_queued_again_stands_where_its_work_puts_it() -> None:
    queue = WaitingQueue(ShortestUncachedPrefillFirst())
    warm, cold = Request("warm", 0.0, 1_000, cached_prompt_tokens=900), Request("cold", 0.0, 500)
    queue.add(warm)
    queue.add(cold)
    assert queue.head(0.0) is warm
    note_answer(warm, 0, 0.0)
    queue.requeue("warm")
    assert queue.head(0.0) is cold
    assert len(queue) == 2


def test_a_preempted_request_stays_in_front_when_it_is_queued_again() -> None:
    queue = WaitingQueue(Fcfs())
    early, preempted, latest = Request("early", 0.0, 10), Request("preempted", 1.0, 10), Request("latest", 2.0, 10)
    queue.add(early)
    queue.resume(preempted)
    queue.resume(latest)
    queue.requeue("preempted")
    assert [queue.pop(3.0).id for _ in range(3)] == ["latest", "preempted", "early"]
