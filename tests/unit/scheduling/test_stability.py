"""Laws of the stability rule, its published form, and whole fleets at its edge."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.policies.routing.least_work import LeastWork
from headway.scheduling.bundle import bundle
from headway.scheduling.stability import (
    RequestNeeds,
    StepCapacity,
    full_batch,
    replicas_for,
    stable_rate,
    volume,
)
from headway.simulator.fleet import simulate_fleet
from headway.simulator.fleet_members import FleetMember
from headway.simulator.fleet_router import FleetPolicies, Routing
from headway.simulator.replica import replica
from headway.simulator.step_time import SECONDS_PER_PS
from headway.simulator.trace import Trace

positive = st.floats(1e-3, 1e6, allow_nan=False)
needs_of_some = st.builds(RequestNeeds, st.floats(0, 1e5), positive, positive, positive)
capacities = st.builds(
    StepCapacity, st.none() | st.floats(1, 1e7), st.none() | st.floats(1, 1e4), st.floats(0, 1e-2), st.floats(1e-4, 1.0)
)


def test_the_volume_of_a_request_is_its_tokens_added_up_step_by_step() -> None:
    for prompt, output, sequences in ((1_000, 100, 1), (7, 3, 4), (50, 0, 1)):
        by_hand = prompt + sum(prompt + sequences * step for step in range(1, output + 1))
        assert volume(prompt, output, sequences) == (sequences * (output + 1), by_hand)


def test_with_free_prompts_and_small_requests_it_is_the_published_rule() -> None:
    _, token_steps = volume(1_000, 100)
    rule = stable_rate(RequestNeeds(0, 101, token_steps, 0), StepCapacity(500_000, None, 1.0, 0.020))
    assert rule == pytest.approx(500_000 / (0.020 * token_steps))
    assert rule == pytest.approx(236, abs=1)  # 25,000,000 token slots a second over 106,050


@given(needs_of_some, capacities, st.floats(1.01, 10))
def test_more_of_anything_never_lowers_the_rate(needs: RequestNeeds, capacity: StepCapacity, factor: float) -> None:
    rate = stable_rate(needs, capacity)
    if capacity.kv_tokens is None and capacity.seats is None:
        assert rate is None
        return
    assert rate is not None
    assert 0 < rate < math.inf
    for better in (
        replace(capacity, kv_tokens=None if capacity.kv_tokens is None else capacity.kv_tokens * factor),
        replace(capacity, seats=None if capacity.seats is None else capacity.seats * factor),
        replace(capacity, step_seconds=capacity.step_seconds / factor),
        replace(capacity, prompt_seconds_per_token=capacity.prompt_seconds_per_token / factor),
    ):
        more = stable_rate(needs, better)
        assert more is not None
        assert more >= rate * (1 - 1e-12)
    twice_as_fast = replace(
        capacity,
        step_seconds=capacity.step_seconds / 2,
        prompt_seconds_per_token=capacity.prompt_seconds_per_token / 2,
    )
    assert stable_rate(needs, twice_as_fast) == pytest.approx(2 * rate)


@given(st.floats(0, 1e5), st.floats(1e-3, 1e4), st.floats(0.05, 1.0))
def test_the_fleet_is_the_least_that_is_stable(rate: float, of_one: float, target: float) -> None:
    count = replicas_for(rate, of_one, target)
    assert rate <= count * of_one * target * (1 + 1e-8)
    assert count == 0 or rate > (count - 1) * of_one * target * (1 - 1e-8)
    assert (count == 0) == (rate == 0)
    assert replicas_for(rate * 2, of_one, target) >= count


def test_no_rate_no_replica_and_no_nonsense() -> None:
    assert replicas_for(0.0, 5.0) == 0
    assert replicas_for(1e-9, 5.0) == 1
    assert replicas_for(5e-324, 5.0) == 1
    for wrong in ((-1.0, 5.0, 1.0), (math.nan, 5.0, 1.0), (math.inf, 5.0, 1.0), (1.0, 0.0, 1.0), (1.0, 5.0, 0.0)):
        with pytest.raises(ValueError, match="no fleet serves"):
            replicas_for(*wrong)


# Whole fleets: of the size that the rule says, and of one fewer

SHAPES = {
    "short prompts, seats bind": (200, 200, {"max_num_seqs": 64}),
    "long prompts, memory binds": (4_000, 300, {"kv_tokens": 100_000}),
    "prompts bind": (6_000, 20, {}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_fleet_of_that_size_is_stable_and_one_replica_fewer_is_not(shape: str) -> None:
    prompt, output, limits = SHAPES[shape]
    server = replica("h100", "llama-3.1-8b", prefix_caching=False, **limits)  # type: ignore[arg-type]
    rules, time = server.rules, server.step_time
    seat_steps, token_steps = volume(prompt, output)
    needs = RequestNeeds(prompt, seat_steps, token_steps, prompt + output)
    kv_tokens, seats = rules.kv_blocks * rules.block_tokens, rules.max_num_seqs
    batch = round(full_batch(needs, kv_tokens, seats) or 1)
    context = round(batch * token_steps / seat_steps)
    decoding = time.mixed_step(batch, context, [], batch) * SECONDS_PER_PS
    budget = rules.max_num_batched_tokens - batch
    chunks = [(min(prompt, budget), 0)] * max(1, budget // prompt)
    mixed = time.mixed_step(batch, context, chunks, batch) * SECONDS_PER_PS
    per_token = (mixed - decoding) / sum(new for new, _ in chunks)
    of_one = stable_rate(needs, StepCapacity(kv_tokens, seats, per_token, decoding))
    assert of_one is not None
    rate = 2.55 * of_one  # three replicas have load 0.85, two have 1.28
    assert replicas_for(rate, of_one) == 3
    backlogs = {count: _backlogs(count, rate, prompt, output, server) for count in (2, 3)}
    early, late = backlogs[3]
    assert late < 30 or late < 1.5 * early, backlogs
    early, late = backlogs[2]
    assert late > 1.5 * early > 50, backlogs


def _backlogs(count: int, rate: float, prompt: int, output: int, server) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """Requests that wait at half the time of arrivals, and at its end."""
    dice = np.random.default_rng(7)
    number = 3_000
    arrived = np.cumsum(dice.exponential(1 / rate, number))
    trace = Trace(
        "even",
        arrived,
        dice.integers(prompt // 2, prompt * 3 // 2, number),
        dice.integers(output // 2, output * 3 // 2, number),
    )
    members = [FleetMember(f"r{place}", server.rules, server.step_time, server.costs) for place in range(count)]
    policies = FleetPolicies(bundle(costs=server.costs, seed=0), lambda costs: bundle(costs=costs, seed=0))
    day = simulate_fleet(trace, members, Routing(LeastWork()), policies).day
    assert (day.admitted_ps >= 0).all()
    waiting = [
        int(((day.arrived_ps <= at) & (day.admitted_ps > at)).sum()) for at in day.arrived_ps[[number // 2, number - 1]]
    ]
    return waiting[0], waiting[1]
