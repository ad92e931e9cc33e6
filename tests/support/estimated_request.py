"""A request with an estimated output length."""

from __future__ import annotations

from headway.domain.estimate import PointEstimate
from headway.domain.request import Request


def estimated_request(number: int, prompt: int = 100, output: int = 10) -> Request:
    made = Request(number, 0.0, prompt)
    made.estimate = PointEstimate(output, "test")
    return made
