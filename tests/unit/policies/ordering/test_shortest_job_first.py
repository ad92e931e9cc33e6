"""Shortest job first: prefill and decode time together, against sums by hand."""

from __future__ import annotations

import pytest

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.request import Request
from headway.policies.ordering.shortest_job_first import ShortestJobFirst

COSTS = ServiceCosts(prefill_seconds_per_token=0.001, decode_seconds_per_token=0.02)


def request(prompt_tokens: int, output_tokens: int, cached: int = 0, produced: int = 0) -> Request:
    made = Request(0, 0.0, prompt_tokens, cached_prompt_tokens=cached, produced_tokens=produced)
    made.estimate = PointEstimate(output_tokens, "test")
    return made


def test_adds_prefill_and_decode_seconds() -> None:
    rank = ShortestJobFirst(costs=COSTS).rank
    assert rank(request(1000, 50)) == pytest.approx(1.0 + 1.0)
    assert rank(request(1000, 50, cached=600)) == pytest.approx(0.4 + 1.0)
    assert rank(request(1000, 50, produced=20)) == pytest.approx(1.02 + 0.6)


def test_a_long_prompt_with_a_short_answer_precedes_a_short_prompt_with_a_long_one() -> None:
    rank = ShortestJobFirst(costs=COSTS).rank
    assert rank(request(2000, 10)) < rank(request(100, 200))


def test_without_an_estimate_it_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"request 'x' has no length estimate.*predictor"):
        ShortestJobFirst(costs=COSTS).rank(Request("x", 0.0, 10))
