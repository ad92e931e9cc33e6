"""Turns between queues: no queue starves, whatever arrives and whatever fits."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.queueing.queue_turns import PASSES_MAX, Turns


@dataclass
class Queue:
    key: str
    service: float = 0.0
    heads: int = 1_000

    def standing(self, now: float) -> float:
        return self.service


def serve(turns: Turns[Queue], queues: list[Queue], fits: set[str]) -> Queue | None:
    """One dispatch at a place that all queues want, as the dispatcher does it."""
    passed: list[Queue] = []
    for queue in turns.order([one for one in queues if one.heads], 0.0):
        if queue.key in fits:
            turns.served(queue, passed)
            queue.heads -= 1
            return queue
        passed.append(queue)
        if turns.is_owed(queue):
            return None
    return None


@given(st.integers(2, 6), st.lists(st.integers(0, 3), max_size=200))
def test_queues_that_all_have_heads_that_fit_are_served_alike_however_often_they_are_looked_at(
    number: int, looks: list[int]
) -> None:
    queues = [Queue(str(k)) for k in range(number)]
    turns: Turns[Queue] = Turns()
    everything = {queue.key for queue in queues}
    for extra_looks in looks:
        for _ in range(extra_looks):
            turns.order(queues, 0.0)
        serve(turns, queues, everything)
        left = [queue.heads for queue in queues]
        assert max(left) - min(left) <= 1


@given(st.lists(st.sets(st.sampled_from("abc")), max_size=300))
def test_a_head_that_does_not_fit_is_passed_a_bounded_number_of_times(rounds: list[set[str]]) -> None:
    queues = [Queue(key) for key in "abc"]
    turns: Turns[Queue] = Turns()
    passes = dict.fromkeys("abc", 0)
    for fits in rounds:
        served = serve(turns, queues, fits)
        if served is None:
            continue
        passes[served.key] = 0
        for other in queues:
            if other.key != served.key and other.key not in fits:
                passes[other.key] += 1
        # Every queue is first in turn after at most one dispatch of each other; from then on passes count.
        assert max(passes.values()) <= PASSES_MAX + len(queues)


@given(st.lists(st.floats(0.0, 10.0), min_size=2, max_size=5))
def test_the_tenant_with_the_least_service_comes_first(services: list[float]) -> None:
    queues = [Queue(str(number), service) for number, service in enumerate(services)]
    turns: Turns[Queue] = Turns()
    turns.served(queues[services.index(min(services))], [])
    assert turns.order(queues, 0.0)[0].service == min(services)


def test_a_queue_that_is_forgotten_comes_back_as_a_new_one() -> None:
    turns: Turns[Queue] = Turns()
    a, b = Queue("a"), Queue("b")
    turns.served(a, [])
    turns.served(b, [])
    turns.forget(b)
    assert turns.order([a, b], 0.0) == [b, a]
