"""Deadlines pass in their order, for those who still wait, and nobody who left is kept in memory for long."""

from __future__ import annotations

from headway.gateway.queueing.deadlines import Deadlines
from headway.gateway.queueing.request_state import GatewayRequest, RequestMove
from tests.support.gateway_requests import gateway_request


def queued(number: int, deadline: float | None) -> GatewayRequest:
    request = gateway_request(number, deadline=deadline)
    request.move(RequestMove.QUEUED)
    return request


def test_they_pass_in_order_once_and_only_for_those_who_wait() -> None:
    deadlines = Deadlines()
    late, soon, never, left = queued(1, 9.0), queued(2, 2.0), queued(3, None), queued(4, 1.0)
    for one in (late, soon, never, left):
        deadlines.queued(one)
    left.move(RequestMove.ENDED)
    assert deadlines.passed(1.5) == []
    assert deadlines.passed(10.0) == [soon, late]
    assert deadlines.passed(99.0) == []


def test_those_who_left_are_forgotten_long_before_their_deadline() -> None:
    deadlines = Deadlines()
    waiting = [queued(number, 1e5) for number in range(10)]
    for one in waiting:
        deadlines.queued(one)
    for number in range(10, 10_010):
        gone = queued(number, 1e6)
        deadlines.queued(gone)
        gone.move(RequestMove.ENDED)
    assert len(deadlines._heap) < 200
    assert deadlines.passed(1e5) == waiting
