"""Overflow probability: its forecast against drawn futures, its sums against a fresh start, its z in practice."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import GeometricEstimate, PointEstimate
from headway.domain.event import Completed, Preempted
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.admission.overflow_probability import OverflowProbability
from headway.scheduling.bundle import bundle
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import LinearStepTime
from headway.simulator.trace import Trace
from headway.testing.scripted import ScriptedBatch

BLOCK = 16


def running(count: int, mean: float, lots: random.Random) -> list[Request]:
    requests = []
    for number in range(count):
        request = Request(number, 0.0, lots.randint(50, 400), produced_tokens=lots.randint(0, 300))
        request.estimate = GeometricEstimate(mean, None, "test")
        requests.append(request)
    return requests


def candidate(prompt_tokens: int = 200, mean: float = 200.0) -> Request:
    request = Request("candidate", 0.0, prompt_tokens)
    request.estimate = GeometricEstimate(mean, None, "test")
    return request


def drawn_overflow(requests: list[Request], blocks: int, mean: float, futures: int = 2_000) -> float:
    """Share of drawn futures in which blocks do not suffice at some step, nobody else joining."""
    lots = np.random.default_rng(7)
    held = np.array([request.prompt_tokens + request.produced_tokens for request in requests])
    overflowed = 0
    for _ in range(futures):
        ends = lots.geometric(1 / mean, len(requests))
        peak = max(int((-(-(held[ends >= t] + t) // BLOCK)).sum()) for t in ends)
        overflowed += peak > blocks
    return overflowed / futures


@pytest.mark.parametrize("z", [1.0, 2.0, 3.0])
def test_the_normal_forecast_is_near_the_share_of_drawn_futures(z: float) -> None:
    """The least memory at which z deviations fit overflows about as often as a normal sum does, or a little more.

    More, since the peak over all instants exceeds that of any one.
    """
    requests = [*running(60, 200.0, random.Random(3)), candidate()]
    batch = ScriptedBatch(requests[:-1])
    policy = OverflowProbability(z_start=z)
    blocks = next(
        total
        for total in range(500, 5_000)
        if policy.hold_steps(requests[-1], batch, MemoryView(total, total, BLOCK), 0.0) == 0
    )
    wanted = 0.5 * math.erfc(z / math.sqrt(2))
    assert wanted / 3 <= drawn_overflow(requests, blocks, 200.0) <= 4 * wanted + 0.01


def test_sums_kept_by_difference_are_those_of_a_fresh_policy() -> None:
    lots = random.Random(5)
    requests = running(40, 150.0, lots)
    batch = ScriptedBatch(requests[:20])
    waiting = requests[20:]
    asked_often = OverflowProbability()
    for _ in range(300):
        batch.decode(lots.choice([0, 1, 1, 3, 17]))
        if waiting and lots.random() < 0.2:
            batch.join(waiting.pop())
        elif batch.size > 5 and lots.random() < 0.2:
            waiting.insert(0, batch.running()[lots.randrange(batch.size)])
            batch.leave(waiting[0])
        for total in (1_000, 1_400, 1_800):
            memory = MemoryView(total // 3, total, BLOCK)
            fresh = OverflowProbability().hold_steps(candidate(), batch, memory, 0.0)
            assert asked_often.hold_steps(candidate(), batch, memory, 0.0) == fresh


def test_known_lengths_leave_no_deviation() -> None:
    """With points the forecast is the curve itself: one request holds 100 and ends at 132, so 9 blocks are used."""
    one = Request(0, 0.0, 100)
    one.estimate = PointEstimate(32, "test")
    other = Request(1, 0.0, 100)
    other.estimate = PointEstimate(32, "test")
    batch = ScriptedBatch([one])

    def holds(total: int) -> int:
        return OverflowProbability(z_start=8.0).hold_steps(other, batch, MemoryView(total, total, BLOCK), 0.0)

    assert holds(19) == 0
    assert holds(16) > 0


def test_what_is_lost_raises_z_and_what_is_done_lowers_it() -> None:
    policy = OverflowProbability(overflow_target=0.01, learning_rate=0.5, z_start=2.0)
    request = Request(0, 0.0, 60)
    for _ in range(100):
        policy.observe(Completed(request, 0.0, 40))
    assert policy.z == pytest.approx(2.0 - 100 * 0.5 * 0.01)
    request.produced_tokens = 40
    policy.observe(Preempted(request, 0.0))  # as much as a whole mean request
    assert policy.z == pytest.approx(1.5 + 0.5)
    for _ in range(100):
        policy.observe(Preempted(request, 0.0))
    assert policy.z == 8.0


def test_before_anybody_completed_a_request_lost_counts_as_one_and_no_more() -> None:
    policy = OverflowProbability(z_start=1.0, learning_rate=0.5)
    policy.observe(Preempted(Request(0, 0.0, 3_000, produced_tokens=100), 0.0))
    assert policy.z == 1.5
    policy.observe(Preempted(Request(1, 0.0, 1_900, produced_tokens=100, cached_prompt_tokens=1_000), 0.0))
    assert policy.z == 1.75


def test_blocks_shared_by_those_who_run_are_counted_once() -> None:
    requests = running(10, 100.0, random.Random(1))
    for request in requests:
        request.prompt_tokens, request.cached_prompt_tokens = 1_600, 1_500
    batch = ScriptedBatch(requests)
    head = candidate(100, 50.0)
    really_used = 300  # ten times 100 blocks of prompt if nothing were shared
    assert OverflowProbability().hold_steps(head, batch, MemoryView(500, 800, BLOCK), 0.0) == 0
    for request in requests:
        request.cached_prompt_tokens = 0
    assert OverflowProbability().hold_steps(head, batch, MemoryView(800 - really_used, 800, BLOCK), 0.0) > 0


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.003, 0.02])
def test_the_share_lost_comes_out_as_asked(target: float) -> None:
    """A day of memory pressure without any oracle: what is computed twice is about what was to be."""
    lots = np.random.default_rng(11)
    count = 3_000
    trace = Trace(
        name="pressure",
        arrived_seconds=np.cumsum(lots.exponential(0.03, count)),
        prompt_tokens=lots.integers(100, 600, count),
        output_tokens=lots.geometric(1 / 250, count),
    )
    rules = replace(EngineRules(kv_blocks=2_000), max_num_seqs=256, max_num_batched_tokens=2_048)
    policies = bundle(
        ordering="fcfs",
        admission="overflow-probability",
        preemption="latest-admitted",
        prediction="histogram",
        options={"admission": {"overflow_target": target}},
        costs=ServiceCosts(1e-4, 1e-2),
        seed=0,
        truth=None,
    )
    outcome = simulate(trace, rules, LinearStepTime(8 * 10**9, 10**7, 10**4, 10**7), policies)
    share = outcome.recomputed_tokens.sum() / (trace.prompt_tokens + trace.output_tokens).sum()
    assert (outcome.ended_ps >= 0).all()
    assert target / 3 <= share <= 2 * target


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"overflow_target": 0.0}, "overflow_target must be between 0 and 1"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0"),
        ({"z_start": 9.0}, "z_start must be from -4 to 8"),
        ({"steps_between": 0}, "steps_between must be at least 1"),
    ],
)
def test_bad_options_are_said(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OverflowProbability(**options)  # type: ignore[arg-type]


def test_without_a_length_estimate_it_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="name a predictor with --prediction"):
        OverflowProbability().hold_steps(Request(1, 0.0, 5), ScriptedBatch([candidate()]), MemoryView(9, 9, BLOCK), 0.0)
