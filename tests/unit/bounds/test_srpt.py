"""Preemptive SRPT completes its k-th request no later than any priority order."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from headway.bounds.srpt import earliest_completions

JOBS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), max_size=5)


def in_order(jobs: list[tuple[int, int]], order: tuple[int, ...]) -> list[int]:
    """Completions of strict priority in this order, one unit of time after the other; rising."""
    left = [work for _, work in jobs]
    ends = [released if work == 0 else None for released, work in jobs]
    now = 0
    while any(end is None for end in ends):
        ready = next((job for job in order if left[job] and jobs[job][0] <= now), None)
        now += 1
        if ready is not None:
            left[ready] -= 1
            if not left[ready]:
                ends[ready] = now
    return sorted(end for end in ends if end is not None)


@given(JOBS)
def test_no_priority_order_completes_its_kth_earlier(jobs: list[tuple[int, int]]) -> None:
    earliest = earliest_completions([released for released, _ in jobs], [work for _, work in jobs])
    assert earliest == sorted(earliest)
    for order in permutations(range(len(jobs))):
        assert all(one <= other for one, other in zip(earliest, in_order(jobs, order), strict=True))


def test_by_hand() -> None:
    assert earliest_completions([0, 1, 1], [5, 1, 2]) == [2, 4, 8]
    assert earliest_completions([0, 10], [3, 1]) == [3, 11]
    assert earliest_completions([], []) == []
