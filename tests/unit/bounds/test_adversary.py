"""The search for worst instances repeats by seed and stays in its regime."""

from __future__ import annotations

import numpy as np
import pytest

from headway.bounds.adversary import Ratio, Regime, draw, search
from headway.bounds.discrete import Instance, replay, serve
from headway.bounds.exact_search import least_total_latency
from headway.bounds.reference_policies import fcfs_peak, svf

HALF = Regime("half", 5, 12, lambda request, memory: 2 * request.peak <= memory)


def cost(instance: Instance) -> int:
    return replay(instance, serve(instance, fcfs_peak(instance))).total_latency


def test_it_finds_worse_than_chance_and_repeats() -> None:
    found = search(cost, HALF, np.random.default_rng(3), draws=20, steps=150)
    assert found.worst.value > found.mean >= 1
    assert found.worst.cost == cost(found.worst.instance)
    assert found.worst.optimum == least_total_latency(found.worst.instance)
    assert all(2 * request.peak <= 12 for request in found.worst.instance.requests)
    assert found == search(cost, HALF, np.random.default_rng(3), draws=20, steps=150)
    assert found.solved <= found.tried


def test_what_a_policy_does_not_take_is_passed_over() -> None:
    def picky(instance: Instance) -> int:
        if len(instance.requests) > 3:
            raise ValueError("too many for me")
        return replay(instance, serve(instance, svf(instance))).total_latency

    found = search(picky, HALF, np.random.default_rng(0), draws=20, steps=50)
    assert len(found.worst.instance.requests) <= 3
    with pytest.raises(ValueError, match="half"):
        search(lambda _: _never(), HALF, np.random.default_rng(0), draws=2, steps=2)


def _never() -> int:
    raise ValueError("none for me")


def test_drawn_instances_belong_to_their_regime() -> None:
    late = Regime("late", 6, 20, lambda request, _: request.output > request.prompt, latest=9)
    rng = np.random.default_rng(1)
    requests = [request for _ in range(50) for request in draw(late, rng).requests]
    assert all(r.output > r.prompt >= 1 and r.arrived <= 9 for r in requests)
    assert {r.arrived for r in requests} == set(range(10))


def test_a_ratio_is_a_ratio() -> None:
    assert Ratio(Instance((), 1), 6, 4).value == 1.5
