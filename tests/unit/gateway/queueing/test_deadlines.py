"""Deadlines pass in their order, for those who are still due, and nobody who left is kept in memory for long."""

from __future__ import annotations

from headway.gateway.queueing.deadlines import Deadlines
from headway.gateway.queueing.request_state import GatewayRequest
from tests.support.gateway_requests import gateway_request


class Waiting:
    """Requests that wait, and their deadlines."""

    def __init__(self) -> None:
        self.requests: dict[int, GatewayRequest] = {}
        self.deadlines = Deadlines(lambda request: request.arrived.deadline, self.requests.get)

    def add(self, number: int, deadline: float | None) -> GatewayRequest:
        request = self.requests[number] = gateway_request(number, deadline=deadline)
        self.deadlines.add(request)
        return request


def test_they_pass_in_order_once_and_only_for_those_who_wait() -> None:
    waiting = Waiting()
    late, soon = waiting.add(1, 9.0), waiting.add(2, 2.0)
    waiting.add(3, None)
    waiting.add(4, 1.0)
    waiting.deadlines.add(soon)  # it was taken back
    del waiting.requests[4]
    assert waiting.deadlines.passed(1.5) == []
    assert waiting.deadlines.passed(10.0) == [soon, late]
    assert waiting.deadlines.passed(99.0) == []


def test_those_who_left_are_forgotten_long_before_their_deadline() -> None:
    waiting = Waiting()
    staying = [waiting.add(number, 1e5) for number in range(10)]
    for number in range(10, 10_010):
        waiting.add(number, 1e6)
        del waiting.requests[number]
    assert len(waiting.deadlines._heap) < 200
    assert waiting.deadlines.passed(1e5) == staying


def test_only_its_number_is_kept_so_that_a_request_that_has_ended_is_freed_with_its_body() -> None:
    waiting = Waiting()
    waiting.add(1, 1e6)
    assert waiting.deadlines._heap == [(1e6, 1)]
