"""Boost: the decay rate of known queues, the limits of the order, and the bound on overtaking."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.event import Admitted, Arrived, Completed
from headway.domain.request import Request
from headway.policies.ordering.boost import Boost, boost_seconds, decay_rate
from headway.testing.examples import examples

COSTS = ServiceCosts(prefill_seconds_per_token=0.001, decode_seconds_per_token=0.0)
"""A prompt of 1,000 tokens is a second of work."""


def exponential(rate: float, count: int = 4_000) -> list[tuple[float, int]]:
    """Its quantiles."""
    return [(-math.log(1 - (number + 0.5) / count) / rate, 1) for number in range(count)]


@pytest.mark.parametrize(
    ("sizes", "arrivals_per_second", "rate"),
    [
        (exponential(1.0), 0.8, 0.2),
        ([(1.0, 1)], 0.8, 0.43084),
        ([(0.5, 1), (2.0, 1)], 0.5, 0.49889),
    ],
)
def test_the_decay_rate_of_queues_that_are_solved(
    sizes: list[tuple[float, int]], arrivals_per_second: float, rate: float
) -> None:
    """One server and Poisson arrivals: the root of γ = λ·(E[e^(γS)] - 1)."""
    assert decay_rate(sizes, exponential(arrivals_per_second)) == pytest.approx(rate, rel=0.01)


def test_above_all_load_the_rate_is_that_at_almost_all() -> None:
    sizes = [(1.0, 1)]
    assert decay_rate(sizes, exponential(1.5)) == pytest.approx(decay_rate(sizes, exponential(0.98)), rel=1e-3)
    assert decay_rate(sizes, exponential(0.98)) > 0


def test_the_rate_is_found_where_arrivals_are_rare_beside_all_sizes() -> None:
    """Every second request comes right after another: e^(γ·1 ms)·½·(e^(-γ·0.1 ms) + 0) = 1."""
    assert decay_rate([(1e-3, 2)], [(100.0, 1), (1e-4, 1)]) == pytest.approx(math.log(2) / 9e-4)
    assert decay_rate([(1e-3, 2)], [(100.0, 2)]) > 1e3  # no request ever waits


def test_known_boosts() -> None:
    assert [boost_seconds([size], 0.2) for size in (0.1, 1, 5)] == pytest.approx([19.61, 8.539, 2.293], rel=1e-3)
    assert boost_seconds([0.5], 0.49889) - boost_seconds([2.0], 0.49889) == pytest.approx(2.106, rel=1e-3)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(1e-4, 10))
@settings(max_examples=examples(200))
def test_a_boost_falls_with_the_size(a: float, b: float, rate: float) -> None:
    if a < b:
        assert boost_seconds([a], rate) >= boost_seconds([b], rate) >= 0


@given(st.lists(st.floats(0.01, 50), min_size=2, max_size=9), st.floats(1e-3, 5))
@settings(max_examples=examples(200))
def test_an_uncertain_size_is_boosted_less_than_its_mean_would_be(sizes: list[float], rate: float) -> None:
    mean = sum(sizes) / len(sizes)
    assert boost_seconds(sizes, rate) <= boost_seconds([mean], rate) * (1 + 1e-9) + 1e-12


def taught(order: Boost, *, seconds: float = 1.0, requests: int = 200, apart: float = 1.25) -> Boost:
    draw = random.Random(0)
    at = 0.0
    for number in range(requests):
        at += draw.expovariate(1 / apart)
        one = Request(number, at, int(1_000 * seconds))
        order.observe(Arrived(one, at))
        order.observe(Completed(one, at, 1))
    return order


def request(arrived_at: float, seconds: float) -> Request:
    made = Request(0, arrived_at, max(1, int(1_000 * seconds)))
    made.estimate = PointEstimate(1, "test")
    return made


def test_it_is_fcfs_until_it_knows_something() -> None:
    order = Boost(costs=COSTS)
    assert order.rank(request(5.0, 0.1)) == 5.0
    taught(order, requests=19)
    assert order.rank(request(5.0, 0.1)) == 5.0


def test_it_finds_the_rate_of_its_traffic() -> None:
    """Of a hundredth of a second each, so that the median's boost is far below its cap."""
    order = taught(Boost(costs=COSTS), requests=3_000, seconds=0.01, apart=0.0125)
    rate = decay_rate([(0.01, 1)], exponential(98.0))
    assert order.decay_rate == pytest.approx(rate, rel=0.3)  # 3,000 draws, sizes to a tenth
    assert order.rank(request(100.0, 1.0)) == pytest.approx(100.0 - boost_seconds([1.0], order.decay_rate), rel=1e-6)


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0.01, 50), st.floats(0.01, 50))
@settings(max_examples=examples(200))
def test_a_request_passes_only_those_that_came_at_most_its_boost_earlier(
    a_at: float, b_at: float, a_seconds: float, b_seconds: float
) -> None:
    order = taught(Boost(costs=COSTS))
    a, b = request(a_at, a_seconds), request(b_at, b_seconds)
    if order.rank(b) < order.rank(a) and b_at > a_at:
        assert b_at - a_at <= boost_seconds([b.prompt_tokens / 1_000], order.decay_rate) + 1e-9


def test_the_dial_goes_from_shortest_first_to_fcfs() -> None:
    short_late, long_early = request(100.0, 0.1), request(0.0, 30.0)
    eager = taught(Boost(costs=COSTS, decay_factor=1e-3))
    assert eager.rank(short_late) < eager.rank(long_early)
    patient = taught(Boost(costs=COSTS, decay_factor=1e3))
    assert patient.rank(long_early) < patient.rank(request(1.0, 0.1))


def test_the_rate_does_not_follow_the_load_of_the_minute() -> None:
    calm = taught(Boost(costs=COSTS), requests=500, seconds=0.01, apart=0.1)
    crowded = taught(Boost(costs=COSTS), requests=500, seconds=0.01, apart=0.008)
    assert calm.decay_rate == pytest.approx(crowded.decay_rate, rel=0.05)  # of binned values


def test_the_median_is_boosted_by_a_minute_at_most_before_the_dial() -> None:
    slow = taught(Boost(costs=COSTS), seconds=20.0, apart=25.0)
    assert boost_seconds([20.0], slow.decay_rate) == pytest.approx(60.0, rel=0.1)  # sizes are known to a tenth
    dialled = taught(Boost(costs=COSTS, decay_factor=0.1), seconds=20.0, apart=25.0)
    assert dialled.decay_rate == pytest.approx(0.1 * slow.decay_rate)


def test_sizes_are_corrected_by_how_long_work_takes_in_a_backlog() -> None:
    """Ten wait, and a hundredth of a second of priced work is let in every three hundredths."""
    order = Boost(costs=COSTS)
    waiting = [Request(number, 0.0, 10) for number in range(500)]
    for one in waiting:
        order.observe(Arrived(one, 0.0))
    for number, one in enumerate(waiting):
        order.observe(Admitted(one, 0.03 * (number + 1)))
    plain = taught(Boost(costs=COSTS), seconds=0.01, apart=0.04)
    taught(order, seconds=0.01, apart=0.04)
    assert order.rank(request(1.0, 0.01)) < plain.rank(request(1.0, 0.01))
    assert order.decay_rate < plain.decay_rate / 2, "sizes are three times as large"


def test_arrivals_all_at_once_teach_nothing() -> None:
    order = Boost(costs=COSTS)
    for number in range(50):
        one = Request(number, 1.0, 1_000)
        order.observe(Arrived(one, 1.0))
        order.observe(Completed(one, 2.0, 1))
    assert order.rank(request(3.0, 1.0)) == 3.0


def test_a_factor_out_of_bounds_is_told() -> None:
    with pytest.raises(ValueError, match="decay_factor must be above 0"):
        Boost(costs=COSTS, decay_factor=0.0)


def test_the_tail_of_one_server_is_shorter_than_under_fcfs() -> None:
    """Poisson arrivals, sizes ½ and 2 s, load 0.8: fewer waits beyond the 99th percentile of FCFS, at that load's γ."""
    draw, jobs, at = random.Random(3), [], 0.0
    for number in range(30_000):
        at += draw.expovariate(0.64)
        jobs.append(Request(number, at, draw.choice([500, 2_000])))
    order = Boost(costs=COSTS, decay_factor=0.249 / 0.042)  # γ at this load ÷ what the cap of a minute makes of it
    responses = {name: served(jobs, name, order) for name in ("fcfs", "boost")}
    bound = sorted(responses["fcfs"])[int(0.99 * len(jobs))]
    beyond = {name: sum(seconds > bound for seconds in found) for name, found in responses.items()}
    assert beyond["boost"] < 0.95 * beyond["fcfs"]
    assert sum(responses["boost"]) < sum(responses["fcfs"])


def served(jobs: list[Request], name: str, order: Boost) -> list[float]:
    """Response times on one server that finishes what it began."""
    import heapq

    waiting: list[tuple[float, int]] = []
    found, now, coming = [], 0.0, 0
    while coming < len(jobs) or waiting:
        if not waiting:
            now = max(now, jobs[coming].arrived_at)
        while coming < len(jobs) and jobs[coming].arrived_at <= now:
            job = jobs[coming]
            order.observe(Arrived(job, job.arrived_at))
            heapq.heappush(waiting, (order.rank(job) if name == "boost" else job.arrived_at, coming))
            coming += 1
        job = jobs[heapq.heappop(waiting)[1]]
        now += job.prompt_tokens / 1_000
        if name == "boost":
            order.observe(Completed(job, now, 1))
        found.append(now - job.arrived_at)
    return found
