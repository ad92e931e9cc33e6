"""A class is a head start of so many seconds, and no more."""

from __future__ import annotations

import pytest

from headway.domain.request import Request
from headway.policies.ordering.priority_aging import PriorityAging


def order(policy: PriorityAging, *come: tuple[float, int]) -> list[int]:
    requests = [Request(n, arrived_at, 100, priority=priority) for n, (arrived_at, priority) in enumerate(come)]
    return [
        int(request.id) for request in sorted(requests, key=lambda request: (policy.rank(request), request.arrived_at))
    ]


def test_the_urgent_overtake_those_who_came_within_their_head_start() -> None:
    policy = PriorityAging(seconds_per_class=10.0)
    assert order(policy, (0.0, 2), (19.0, 0), (21.0, 0)) == [1, 0, 2]
    assert order(policy, (0.0, 1), (9.0, 0), (9.5, -1), (11.0, 0)) == [2, 1, 0, 3]
    assert order(policy, (5.0, 0), (4.0, 0)) == [1, 0]


def test_without_ageing_it_is_another_policy() -> None:
    with pytest.raises(ValueError, match="seconds_per_class must be above 0"):
        PriorityAging(seconds_per_class=0.0)
