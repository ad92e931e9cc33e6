"""FCFS: arrival order, whatever else is known."""

from __future__ import annotations

from headway.domain.request import Request
from headway.policies.ordering.fcfs import Fcfs
from headway.scheduling.queue import WaitingQueue


def test_serves_by_arrival_even_if_queued_in_another_order() -> None:
    queue = WaitingQueue(Fcfs())
    for name, arrived_at, prompt_tokens in (("late", 2.0, 1), ("early", 1.0, 100_000), ("last", 3.0, 1)):
        queue.add(Request(name, arrived_at, prompt_tokens))
    assert [queue.pop(9.0).id for _ in range(3)] == ["early", "late", "last"]
