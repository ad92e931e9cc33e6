"""Ageing: the bound on overtaking, and that the fixed number orders as the moving one would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.request import Request
from headway.policies.ordering.shortest_job_first import service_seconds
from headway.policies.ordering.shortest_job_first_aging import ShortestJobFirstAging

COSTS = ServiceCosts(prefill_seconds_per_token=0.001, decode_seconds_per_token=0.02)


def request(arrived_at: float, prompt_tokens: int, output_tokens: int) -> Request:
    made = Request(0, arrived_at, prompt_tokens)
    made.estimate = PointEstimate(output_tokens, "test")
    return made


requests = st.builds(
    request,
    st.integers(0, 10_000).map(lambda tenths: tenths / 8),
    st.integers(1, 100_000),
    st.integers(1, 10_000),
)


def test_a_request_of_ten_seconds_is_overtaken_within_a_hundred() -> None:
    rank = ShortestJobFirstAging(costs=COSTS, service_seconds_per_second_waited=0.1).rank
    long = request(50.0, 2000, 400)  # 2 s + 8 s
    assert service_seconds(long, COSTS) == pytest.approx(10.0)
    tiny_seconds = service_seconds(request(0.0, 1, 1), COSTS)  # 0.021 s: overtakes for 0.21 s less
    assert rank(request(50 + 100 - 10 * tiny_seconds - 0.01, 1, 1)) < rank(long)
    assert rank(request(50 + 100 - 10 * tiny_seconds + 0.01, 1, 1)) > rank(long)


@given(requests, requests, st.sampled_from([0.01, 0.1, 1.0]))
def test_nobody_is_overtaken_later_than_the_bound(first: Request, second: Request, ageing: float) -> None:
    rank = ShortestJobFirstAging(costs=COSTS, service_seconds_per_second_waited=ageing).rank
    if second.arrived_at - first.arrived_at > service_seconds(first, COSTS) / ageing + 1e-6:
        assert rank(first) < rank(second)


@given(requests, requests, st.floats(2_000, 1e5))
def test_orders_as_size_less_credit_does_at_any_moment(a: Request, b: Request, now: float) -> None:
    rank = ShortestJobFirstAging(costs=COSTS, service_seconds_per_second_waited=0.1).rank

    def moving(r: Request) -> float:
        return service_seconds(r, COSTS) - 0.1 * (now - r.arrived_at)

    if abs(moving(a) - moving(b)) > 1e-6:
        assert (rank(a) < rank(b)) == (moving(a) < moving(b))


def test_no_ageing_is_another_policy() -> None:
    with pytest.raises(ValueError, match="service_seconds_per_second_waited must be above 0"):
        ShortestJobFirstAging(costs=COSTS, service_seconds_per_second_waited=0)
