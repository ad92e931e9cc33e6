"""The optimum of small instances: below every policy, above every bound, confirmed by a second solver."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.bounds.discrete import Attempt, DiscreteRequest, Instance, lower_bound, replay, serve
from headway.bounds.doubling import route
from headway.bounds.exact_search import least_total_latency
from tests.support.bound_instances import instances
from tests.unit.bounds.test_discrete import POLICIES

pytest.importorskip("highspy", reason="the optimum needs highspy: pip install headway[opt]")

from headway.bounds.optimum import TooLarge, optimum, relaxation
from headway.testing.examples import examples


def by_trying_all(instance: Instance, latest: int) -> int:
    """Least total latency over every choice of starts."""
    best = None
    spans = [range(request.arrived, latest + 1) for request in instance.requests]
    for starts in product(*spans):
        attempts = [Attempt(i, start, instance.requests[i].output) for i, start in enumerate(starts)]
        try:
            cost = replay(instance, attempts).total_latency
        except ValueError:
            continue
        best = cost if best is None else min(best, cost)
    assert best is not None
    return best


@pytest.mark.slow
@settings(max_examples=examples(60))
@given(instances(most=3, memory=9))
def test_it_is_the_least_of_all(instance: Instance) -> None:
    latest = max(request.arrived for request in instance.requests) + sum(r.output for r in instance.requests)
    found = optimum(instance)
    assert found.is_proven
    assert found.total_latency == by_trying_all(instance, latest)


@pytest.mark.slow
@settings(max_examples=examples(80))
@given(instances(most=5, memory=16))
def test_no_policy_is_below_it_and_no_bound_above(instance: Instance) -> None:
    found = optimum(instance)
    assert found.is_proven
    assert least_total_latency(instance, states_most=100_000) == found.total_latency
    again = replay(instance, [Attempt(i, s, instance.requests[i].output) for i, s in enumerate(found.starts)])
    assert again.total_latency == found.total_latency
    assert lower_bound(instance) <= found.total_latency
    assert relaxation(instance) <= found.total_latency + 1e-6
    for policy in POLICIES.values():
        assert replay(instance, serve(instance, policy(instance))).total_latency >= found.total_latency
    assert replay(instance, route(instance)).total_latency >= found.total_latency


def test_by_hand() -> None:
    """Prop. 1 of arXiv 2607.09248 in small: the large prompt first blocks everybody, the small ones first do not."""
    instance = Instance((DiscreteRequest(8, 1), *[DiscreteRequest(1, 4)] * 2), 9)
    found = optimum(instance)
    assert (found.total_latency, found.is_proven, found.gap) == (1 + 5 + 6, True, 0.0)


def test_it_says_how_far_it_got_when_stopped() -> None:
    requests = tuple(DiscreteRequest(1 + i % 5, 3 + 7 * i % 23) for i in range(24))
    told: list[tuple[float, float]] = []
    found = optimum(
        Instance(requests, 40), time_limit_seconds=0.5, progress=lambda best, bound: told.append((best, bound))
    )
    assert lower_bound(Instance(requests, 40)) <= found.bound < found.total_latency
    assert not found.is_proven
    assert 0 < found.gap < 1


def test_the_search_gives_up_when_told() -> None:
    assert least_total_latency(Instance((DiscreteRequest(1, 9),) * 6, 20), states_most=3) is None
    assert least_total_latency(Instance((), 5)) == 0


def test_too_large_is_said_at_once() -> None:
    with pytest.raises(TooLarge, match="fewer or shorter"):
        optimum(Instance((DiscreteRequest(500, 400),) * 200, 1000))


@pytest.mark.slow
@settings(max_examples=3, derandomize=True)
@given(st.data())
def test_constraint_programming_agrees(data: st.DataObject) -> None:
    pytest.importorskip("pandas", reason="CP-SAT needs ortools: pip install headway[opt]")
    from importlib.util import find_spec

    if find_spec("ortools") is None:
        pytest.skip("CP-SAT needs ortools: pip install headway[opt]")
    from headway.bounds.constraint_program import optimum_by_constraints

    instance = data.draw(instances(most=6, memory=20))
    cost, bound, starts = optimum_by_constraints(instance)
    attempts = [Attempt(i, start, instance.requests[i].output) for i, start in enumerate(starts)]
    assert cost == bound == replay(instance, attempts).total_latency == optimum(instance).total_latency
