"""Weighted fair queue: virtual finish times by hand, the bound on the gap of two tenants, and the inner ordering."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.event import Admitted, Cancelled
from headway.domain.request import Request
from headway.policies.ordering.highest_response_ratio import HighestResponseRatio
from headway.policies.ordering.shortest_prompt_first import ShortestPromptFirst
from headway.policies.ordering.weighted_fair_queue import WeightedFairQueue
from headway.testing.examples import examples
from tests.support.tenant_desk import Desk, request

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}


def expected(r: Request) -> int:
    assert r.estimate is not None
    return int(r.estimate.remaining_mean(0))


def charge(r: Request) -> float:
    return (r.prompt_tokens + 2 * expected(r)) / WEIGHTS[r.tenant]


def test_the_least_virtual_finish_time_is_served() -> None:
    """By hand: a's requests end at 120, 240, …, b's at 1,020, so b's first comes after eight of a's."""
    desk = Desk(WeightedFairQueue())
    desk.arrive(request("b", prompt_tokens=1_000), *(request("a") for _ in range(12)))
    assert "".join(desk.admit().tenant for _ in range(10)) == "aaaaaaaaba"
    assert desk.policy.standing(request("b")) == 1_020 + 120


def test_a_small_request_of_one_tenant_passes_a_large_one_of_another() -> None:
    """Under fair-share the one that came first would go first, whatever its size."""
    desk = Desk(WeightedFairQueue())
    large, small = request("a", prompt_tokens=9_000, at=0.0), request("b", prompt_tokens=10, at=1.0)
    desk.arrive(large, small)
    assert desk.admit(2.0) is small


def test_coming_back_from_idling_earns_no_credit() -> None:
    desk = Desk(WeightedFairQueue())
    desk.arrive(*(request("busy") for _ in range(20)))
    for _ in range(10):
        desk.admit()
    desk.arrive(request("newcomer"), request("newcomer"), request("newcomer"))
    assert desk.policy.service("newcomer") == desk.policy.service("busy") == 1_200
    assert [desk.admit().tenant for _ in range(6)].count("newcomer") == 3


def test_what_is_given_back_lowers_the_virtual_time() -> None:
    """A bound beyond reason, taken at its word, holds back no later newcomer once the answer has come."""
    desk = Desk(WeightedFairQueue())
    desk.arrive(request("absurd", expected=2**62))
    absurd = desk.admit()
    assert desk.policy.service("newcomer") == 100 + 2 * 2.0**24
    desk.complete(absurd, 10)
    assert desk.policy.service("newcomer") == 120


def test_an_overrun_is_charged_to_its_tenant_alone() -> None:
    desk = Desk(WeightedFairQueue())
    desk.arrive(request("a"))
    desk.complete(desk.admit(), 5_000)
    assert desk.policy.service("a") == 100 + 2 * 5_000
    assert desk.policy.service("b") == 120


def test_a_preempted_request_has_paid() -> None:
    desk = Desk(WeightedFairQueue())
    desk.arrive(request("a", prompt_tokens=5_000))
    r = desk.admit()
    desk.preempt(r)
    assert desk.policy.standing(r) == desk.policy.service("a") == 5_020
    assert desk.admit() is r
    assert desk.policy.service("a") == 5_020


@given(st.randoms(use_true_random=False))
@settings(max_examples=examples(100))
def test_service_of_two_backlogged_tenants_is_within_a_bound_of_their_weights(chance: Random) -> None:
    """Over every interval in which both wait: the largest charge of each, over its weight; lengths come true."""
    inner = chance.choice([None, ShortestPromptFirst()])
    desk, running = Desk(WeightedFairQueue(inner=inner, tenant_weights=WEIGHTS)), list[Request]()
    largest = dict.fromkeys(WEIGHTS, 0.0)
    given_service, charged = dict.fromkeys(WEIGHTS, 0.0), set[object]()
    gaps: dict[tuple[str, str], list[float]] = {}  # since both wait: differences of service
    for step in range(200):
        if chance.random() < 0.5:
            r = request(chance.choice(list(WEIGHTS)), chance.choice([1, 50, 5_000]), chance.choice([1, 20, 900]))
            largest[r.tenant] = max(largest[r.tenant], charge(r))
            desk.arrive(r)
        elif len(desk.queue):
            r = desk.admit(float(step))
            running.append(r)
            if r.id not in charged:  # a preempted request has paid
                charged.add(r.id)
                given_service[r.tenant] += charge(r)
        if running and chance.random() < 0.4:
            done = running.pop(chance.randrange(len(running)))
            if chance.random() < 0.2:
                desk.preempt(done, float(step))
            else:
                desk.complete(done, expected(done), float(step))
        waiting = {r.tenant for r in desk.queue}
        for pair in [("a", "b"), ("a", "c"), ("b", "c")]:
            if not waiting.issuperset(pair):
                gaps.pop(pair, None)
                continue
            seen = gaps.setdefault(pair, [])
            seen.append(given_service[pair[0]] - given_service[pair[1]])
            assert max(seen) - min(seen) <= sum(largest[tenant] for tenant in pair) + 1e-6


@given(st.randoms(use_true_random=False))
@settings(max_examples=examples(100))
def test_wrong_estimates_add_their_errors_to_the_gap_and_no_more(chance: Random) -> None:
    """Both tenants always wait; requests end at random, longer or shorter than expected, or are left."""
    desk, running = Desk(WeightedFairQueue()), list[Request]()
    largest, errors = {"a": 0, "b": 0}, 0
    for step in range(80):
        for tenant in ("a", "b"):
            while sum(r.tenant == tenant for r in desk.queue) < 2:
                desk.arrive(request(tenant, chance.choice([1, 10_000]), chance.choice([1, 100, 9_000]), at=float(step)))
        if chance.random() < 0.6:
            r = desk.admit(float(step))
            running.append(r)
            largest[r.tenant] = max(largest[r.tenant], r.prompt_tokens + 2 * expected(r))
        elif running:
            r = running.pop(chance.randrange(len(running)))
            came = chance.choice([0, 1, expected(r), 3 * expected(r)])
            errors += 2 * abs(came - expected(r))
            if chance.random() < 0.5:
                desk.complete(r, came, float(step))
            else:
                r.produced_tokens = came
                desk.policy.observe(Cancelled(r, float(step)))
        # What is next may be larger than anything served so far, so the heads count too.
        heads = {t: max(r.prompt_tokens + 2 * expected(r) for r in desk.queue if r.tenant == t) for t in "ab"}
        bound = max(max(largest[t], heads.get(t, 0)) for t in "ab")
        assert abs(desk.policy.service("a") - desk.policy.service("b")) <= bound + errors


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5_000)), min_size=1, max_size=30), st.integers(2, 9))
@settings(max_examples=examples(100))
def test_the_unit_of_size_does_not_matter(sizes: list[tuple[str, int]], factor: int) -> None:
    orders = []
    for scale in (1, factor):
        desk = Desk(WeightedFairQueue(output_weight=0.0))
        made = [request(tenant, tokens * scale, at=float(i)) for i, (tenant, tokens) in enumerate(sizes)]
        desk.arrive(*made)
        orders.append([made.index(desk.admit(99.0)) for _ in made])
    assert orders[0] == orders[1]


def test_the_choice_stands_until_the_inner_one_changes_in_any_tenant() -> None:
    """b's next request would be the small one from 10 s on, and that has the least finish time of all."""
    desk = Desk(WeightedFairQueue(inner=HighestResponseRatio()))
    other = request("a", 5_000, at=9.0)
    long, short = request("b", 10_000, at=0.0), request("b", 1_000, at=9.0)
    desk.arrive(other, long, short)
    assert desk.queue.head(9.5) is other
    assert desk.queue.stands_until(9.5) == pytest.approx(10.0, abs=1e-6)
    assert desk.queue.head(10.5) is short


def test_shared_accounts_are_one_virtual_time() -> None:
    first, second = WeightedFairQueue(), WeightedFairQueue()
    second.share_accounts(first)
    r = request("a", prompt_tokens=500)
    Desk(first).arrive(r)
    first.observe(Admitted(r, 0.0))
    assert second.service("b") == second.service("a") == 520
