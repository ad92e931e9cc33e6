"""Deadlines pass in their order, for those who still wait, and nobody who left is kept in memory for long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from headway.gateway.queueing.deadlines import Deadlines


def exchange(deadline: float | None, is_queued: bool = True) -> Any:
    return SimpleNamespace(request=SimpleNamespace(deadline=deadline), is_queued=is_queued)


def test_they_pass_in_order_once_and_only_for_those_who_wait() -> None:
    deadlines = Deadlines()
    late, soon, never, left = exchange(9.0), exchange(2.0), exchange(None), exchange(1.0)
    for one in (late, soon, never, left):
        deadlines.queued(one)
    left.is_queued = False
    assert deadlines.passed(1.5) == []
    assert deadlines.passed(10.0) == [soon, late]
    assert deadlines.passed(99.0) == []


def test_those_who_left_are_forgotten_long_before_their_deadline() -> None:
    deadlines = Deadlines()
    waiting = [exchange(1e5) for _ in range(10)]
    for one in waiting:
        deadlines.queued(one)
    for _ in range(10_000):
        gone = exchange(1e6)
        deadlines.queued(gone)
        gone.is_queued = False
    assert len(deadlines._heap) < 200
    assert deadlines.passed(1e5) == waiting
