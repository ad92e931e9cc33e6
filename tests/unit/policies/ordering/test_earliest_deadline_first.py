"""EDF: deadlines, then those without, then arrival."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.domain.request import Request
from headway.policies.ordering.earliest_deadline_first import EarliestDeadlineFirst
from headway.policies.ordering.fcfs import Fcfs
from headway.scheduling.queue import WaitingQueue


def served(queue: WaitingQueue, requests: list[Request]) -> list[object]:
    for request in requests:
        queue.add(request)
    return [queue.pop(1e6).id for _ in requests]


def test_urgent_first_and_none_last() -> None:
    deadlines = {"none early": None, "at 9": 9.0, "at 3": 3.0, "none late": None, "at 9 too": 9.0}
    requests = [Request(name, float(at), 10, deadline=d) for at, (name, d) in enumerate(deadlines.items())]
    order = served(WaitingQueue(EarliestDeadlineFirst()), requests)
    assert order == ["at 3", "at 9", "at 9 too", "none early", "none late"]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_the_same_allowance_for_all_is_fcfs(arrivals: list[int]) -> None:
    requests = [Request(i, float(at), 10, deadline=at + 5.0) for i, at in enumerate(arrivals)]
    assert served(WaitingQueue(EarliestDeadlineFirst()), requests) == served(WaitingQueue(Fcfs()), requests)
