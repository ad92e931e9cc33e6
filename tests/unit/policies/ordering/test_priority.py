"""Priority: vLLM's key, (priority, arrival)."""

from __future__ import annotations

from headway.domain.request import Request
from headway.policies.ordering.priority import Priority
from headway.scheduling.queue import WaitingQueue


def test_lower_classes_first_then_arrival() -> None:
    requests = [Request(f"{priority}@{at}", at, 10, priority=priority) for at, priority in enumerate([1, 0, -1, 0, 1])]
    queue = WaitingQueue(Priority(), resumed="by-rank")
    for request in requests:
        queue.add(request)
    served = [queue.pop(9.0) for _ in requests]
    assert served == sorted(requests, key=lambda r: (r.priority, r.arrived_at))
    assert [r.id for r in served] == ["-1@2", "0@1", "0@3", "1@0", "1@4"]
