"""A request of the fast engine has every field that policies may read, although its constructor is written out."""

from __future__ import annotations

from headway.domain.request import Request
from headway.simulator.tracked import TrackedRequest


def test_it_starts_as_any_request_does() -> None:
    tracked = TrackedRequest(7, 1.5, 40, "t", "s", 9, 3.0, -1, False)
    plain = Request(7, 1.5, 40, tenant="t", session="s", max_output_tokens=9, deadline=3.0, priority=-1)
    assert {name: getattr(tracked, name) for name in Request.__slots__} == {
        name: getattr(plain, name) for name in Request.__slots__
    }
    assert all(hasattr(tracked, name) for name in TrackedRequest.__slots__)
