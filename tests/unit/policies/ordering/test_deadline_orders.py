"""Deadline plus work and QoServe: the orders that they contain, and which requests are set aside."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.costs import ServiceCosts
from headway.domain.request import Request
from headway.policies.contracts import RankedOrdering
from headway.policies.ordering.deadline_plus_work import DeadlinePlusWork
from headway.policies.ordering.earliest_deadline_first import EarliestDeadlineFirst
from headway.policies.ordering.qoserve import Qoserve
from headway.policies.ordering.shortest_job_first import prefill_seconds
from headway.policies.ordering.shortest_uncached_prefill_first import ShortestUncachedPrefillFirst
from headway.testing.examples import examples

COSTS = ServiceCosts(prefill_seconds_per_token=0.001, decode_seconds_per_token=0.02)


def request(deadline: float | None, prompt_tokens: int, arrived_at: float = 0.0) -> Request:
    return Request(0, arrived_at, prompt_tokens, deadline=deadline)


eighths = st.integers(0, 4_000).map(lambda number: number / 8)
requests = st.builds(request, eighths, st.integers(1, 100_000), eighths)


def before(order: RankedOrdering, a: Request, b: Request) -> bool:
    return order.rank(a) < order.rank(b)


@given(requests, requests)
@settings(max_examples=examples(200))
def test_at_weight_nought_it_is_earliest_deadline_first(a: Request, b: Request) -> None:
    assert before(DeadlinePlusWork(costs=COSTS, work_weight=0.0), a, b) == before(EarliestDeadlineFirst(), a, b)


@given(requests, requests)
@settings(max_examples=examples(200))
def test_at_a_huge_weight_it_is_shortest_first(a: Request, b: Request) -> None:
    if a.prompt_tokens != b.prompt_tokens:
        huge = DeadlinePlusWork(costs=COSTS, work_weight=1e6)
        assert before(huge, a, b) == before(ShortestUncachedPrefillFirst(), a, b)


@given(requests, requests, st.floats(0, 100))
@settings(max_examples=examples(200))
def test_at_minus_one_it_is_least_laxity_at_any_moment(a: Request, b: Request, now: float) -> None:
    def laxity(one: Request) -> float:
        assert one.deadline is not None
        return one.deadline - now - prefill_seconds(one, COSTS)

    if abs(laxity(a) - laxity(b)) > 1e-6:
        assert before(DeadlinePlusWork(costs=COSTS, work_weight=-1.0), a, b) == (laxity(a) < laxity(b))


def test_the_keys_of_the_published_hybrid() -> None:
    rank = DeadlinePlusWork(costs=COSTS, work_weight=1.0).rank
    keys = [rank(request(10, 1_000)), rank(request(9, 9_000)), rank(request(9.5, 500))]
    assert keys == pytest.approx([11, 18, 10])


def test_without_a_deadline_the_allowance_counts_from_the_arrival() -> None:
    rank = DeadlinePlusWork(costs=COSTS, no_deadline_seconds=7.0).rank
    assert rank(request(None, 1_000, arrived_at=5.0)) == pytest.approx(5 + 7 + 1)


@pytest.mark.parametrize("weight", [-1.5, math.inf, math.nan])
def test_a_weight_out_of_bounds_is_told(weight: float) -> None:
    with pytest.raises(ValueError, match="work_weight must be at least -1"):
        DeadlinePlusWork(costs=COSTS, work_weight=weight)


def test_a_hopeless_request_waits_for_those_that_can_be_in_time() -> None:
    order = Qoserve(costs=COSTS)
    hopeless, fine = request(3.0, 2_000), request(50.0, 2_000)
    heads = {order.lane(one): one for one in (hopeless, fine)}
    assert order.choose(heads, 0.5) == order.lane(hopeless), "it has the earlier deadline, and can make it"
    assert order.next_change(heads, 0.5) == pytest.approx(1.0)
    assert order.choose(heads, 1.5) == order.lane(fine)
    assert order.choose({order.lane(hopeless): hopeless}, 1.5) == order.lane(hopeless), "alone it is served"


def test_a_request_without_a_deadline_is_never_set_aside() -> None:
    order = Qoserve(costs=COSTS, no_deadline_seconds=10.0)
    patient, urgent = request(None, 2_000), request(120.0, 2_000)
    heads = {order.lane(one): one for one in (patient, urgent)}
    assert order.choose(heads, 100.0) == order.lane(patient)


@given(st.lists(requests, min_size=1, max_size=6), st.floats(0, 600))
@settings(max_examples=examples(200))
def test_nobody_that_can_be_in_time_waits_for_one_that_cannot(waiting: list[Request], now: float) -> None:
    order = Qoserve(costs=COSTS)
    heads = {order.lane(one): one for one in waiting}
    chosen = heads[order.choose(heads, now)]  # type: ignore[index]

    def is_late(one: Request) -> bool:
        assert one.deadline is not None
        return now > one.deadline - prefill_seconds(one, COSTS)

    assert not is_late(chosen) or all(is_late(head) for head in heads.values())
    assert all(order.rank(chosen) <= order.rank(head) for head in heads.values() if is_late(head) == is_late(chosen))


def test_lanes_need_a_width() -> None:
    with pytest.raises(ValueError, match="lane_seconds must be at least 1e-06"):
        Qoserve(costs=COSTS, lane_seconds=0.0)
