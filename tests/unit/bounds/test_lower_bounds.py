"""No simulated policy is below the lower bounds, on days of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.bench.experiment.saturation import at_rate
from headway.bench.workloads import WORKLOADS
from headway.bounds.chains import chains
from headway.bounds.crowding import capped_ramp
from headway.bounds.lower_bounds import LowerBounds, lower_bounds
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.replica import replica
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import PS_PER_SECOND, Chunk, LinearStepTime, StepTime
from headway.simulator.trace import Trace
from headway.testing.examples import examples
from headway.testing.strategies import PolicyNames, bundles, engine_rules, step_times, traces

Make = Callable[..., Trace]


PROFILES = (
    ("l4", "llama-3.1-8b"),
    ("h100", "qwen3-30b-a3b"),
    ("rtx-4090", "llama-3.1-8b"),
    ("a100", "llama-2-13b"),
    ("h200", "llama-3.1-70b"),
)


class Unfloored:
    """A step time that tells nothing of itself."""

    def __init__(self, inner: StepTime) -> None:
        self._inner = inner

    def decode_step(self, requests: int) -> tuple[int, int]:
        return self._inner.decode_step(requests)

    def mixed_step(self, decodes: int, context_tokens: int, chunks: Sequence[Chunk], sampled: int) -> int:
        return self._inner.mixed_step(decodes, context_tokens, chunks, sampled)


def check(trace: Trace, rules: EngineRules, step_time: StepTime, day: DayOutcome) -> LowerBounds:
    """The day is nowhere below the bounds: not in the mean, nor in any of its completions."""
    bounds = lower_bounds(trace, rules, step_time)
    completed = day.ended_ps != NEVER
    assert bounds.requests == completed.sum()
    if not bounds.requests:
        assert bounds.mean_e2e_seconds is None
        return bounds
    mean = float((day.ended_ps - day.arrived_ps)[completed].astype(np.float64).mean()) / PS_PER_SECOND
    assert bounds.mean_e2e_seconds is not None
    assert bounds.mean_e2e_seconds <= mean * (1 + 1e-12)
    found = chains(trace, rules)
    last = np.sort(np.maximum.reduceat(day.ended_ps[found.rows], found.starts))
    assert (last >= np.array(bounds.completions_ps)).all(), (last, bounds.completions_ps)
    for part in bounds.parts:
        assert 0 <= part.mean_e2e_seconds <= bounds.mean_e2e_seconds
    first = float((day.first_token_ps - day.arrived_ps)[completed].astype(np.float64).mean()) / PS_PER_SECOND
    assert bounds.mean_ttft_seconds is not None
    assert 0 < bounds.mean_ttft_seconds <= first * (1 + 1e-12)
    return bounds


@pytest.mark.slow
@settings(max_examples=examples(500))
@given(trace=traces(), rules=engine_rules(), step_time=step_times(), bundle=bundles())
def test_no_policy_is_below_the_bound(
    trace: Trace, rules: EngineRules, step_time: LinearStepTime, bundle: PolicyNames
) -> None:
    check(trace, rules, step_time, simulate(trace, rules, step_time, bundle.make(trace)))


@pytest.mark.slow
@settings(max_examples=examples(200))
@given(
    trace=traces(min_size=3),
    rules=engine_rules(prefix_caching=True),
    step_time=step_times(),
    bundle=bundles(admission="greedy"),
    blocks=st.integers(8, 14),
)
def test_nor_where_memory_is_so_short_that_requests_are_preempted(
    trace: Trace, rules: EngineRules, step_time: LinearStepTime, bundle: PolicyNames, blocks: int
) -> None:
    rules = replace(rules, kv_blocks=blocks, reserve_full_prompt=False, watermark=0.0)
    check(trace, rules, step_time, simulate(trace, rules, step_time, bundle.make(trace)))


@pytest.mark.slow
@settings(max_examples=examples(200))
@given(
    trace=traces(min_size=3),
    rules=engine_rules(asynchronous=False, prefix_caching=False),
    step_time=step_times(),
    share=st.sampled_from([0.3, 0.6, 1.0]),
)
def test_nor_where_alike_prompts_share_blocks(
    trace: Trace, rules: EngineRules, step_time: LinearStepTime, share: float
) -> None:
    """Memory goes further with fusion, and the bound by memory is lower."""
    bundle = PolicyNames("shortest-prompt-first", "greedy", "latest-admitted", "oracle")
    fused = replace(rules, fused_share=share)
    bounds = check(trace, fused, step_time, simulate(trace, fused, step_time, bundle.make(trace)))
    exact = lower_bounds(trace, rules, step_time)
    if bounds.mean_e2e_seconds is not None and exact.mean_e2e_seconds is not None:
        assert bounds.mean_e2e_seconds <= exact.mean_e2e_seconds * (1 + 1e-12)


@pytest.mark.slow
@settings(max_examples=examples(150))
@given(
    trace=traces(),
    rules=engine_rules(),
    bundle=bundles(),
    profile=st.sampled_from(PROFILES),
)
def test_nor_under_the_built_in_step_times(
    trace: Trace, rules: EngineRules, bundle: PolicyNames, profile: tuple[str, str]
) -> None:
    step_time = replica(*profile, tp=None).step_time
    bounds = check(trace, rules, step_time, simulate(trace, rules, step_time, bundle.make(trace)))
    silent = lower_bounds(trace, rules, Unfloored(step_time))
    if bounds.mean_e2e_seconds is not None:
        assert silent.mean_e2e_seconds is not None
        assert silent.mean_e2e_seconds <= bounds.mean_e2e_seconds * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["shortest-prompt-first", "random"])
@pytest.mark.parametrize(
    ("workload", "requests", "rate"),
    [("chat", 300, 12), ("chat", 300, 40), ("reasoning", 120, 1), ("coding-agents", 150, 2), ("bursts", 200, 20)],
)
def test_nor_on_days_crowded_enough_for_every_bound_to_count(
    workload: str, requests: int, rate: float, order: str
) -> None:
    """Drawn days are too short for a steady crowd; these are of the built-in workloads, on two cards."""
    for card in ("h100", "rtx-4090"):
        server = replica(card, "llama-3.1-8b", tp=None)
        trace = at_rate(WORKLOADS[workload].generate(requests, seed=3), rate)
        rules = replace(server.rules, prefix_caching=trace.prefix_ids is not None)
        make = PolicyNames(order, "greedy", "latest-admitted", "oracle").make
        for one in (rules, replace(rules, async_scheduling=False, max_num_seqs=64)):
            check(trace, one, server.step_time, simulate(trace, one, server.step_time, make(trace)))


def test_crowding_says_most_where_many_decode_side_by_side() -> None:
    """Thirty a second that need half a second each by themselves: two thirds of the time go to what they read."""
    count, outputs = 3_000, 50
    trace = Trace("steady", np.arange(count) / 30, np.full(count, 1_000), np.full(count, outputs))
    rules = EngineRules(kv_blocks=1_000_000)
    step_time = LinearStepTime(fixed_ps=10**10, ps_per_token=10**6, ps_per_context_token=4 * 10**5)
    day = simulate(trace, rules, step_time, PolicyNames("fcfs", "greedy", "latest-admitted", "oracle").make(trace))
    bounds = check(trace, rules, step_time, day)
    parts = {part.name: part.mean_e2e_seconds for part in bounds.parts}
    assert parts["crowding"] == bounds.mean_e2e_seconds
    assert parts["crowding"] > 1.8 * max(seconds for name, seconds in parts.items() if name != "crowding")
    decoding = 49 * (1_024 * 4e-7 + 1e-6)  # seconds a request takes of everybody's time, besides its prompt
    crowd = 30 * 49 * 0.01 / (1 - 30 * (decoding + 1_000 * 1e-6))  # who must decode at once, or there are too few steps
    assert parts["crowding"] == pytest.approx(50 * 0.01 + crowd * decoding, rel=0.05)  # and a day has ends


@given(
    start=st.floats(0, 50),
    slope=st.sampled_from([0.0, 0.25, 1.0, 7.0]),
    first=st.integers(1, 40),
    count=st.integers(0, 30),
    cap=st.floats(0.5, 80),
)
def test_a_capped_ramp_is_the_sum_it_says(start: float, slope: float, first: int, count: int, cap: float) -> None:
    whole = sum(min(start + slope * (first + k), cap) for k in range(count))
    assert capped_ramp(start, slope, np.array([first]), np.array([count]), cap)[0] == pytest.approx(whole, abs=1e-9)


def test_fixed_costs_and_the_wait_for_the_machine_add_up() -> None:
    """Two at once, two tokens each: both sit through two steps of 1 s; one machine of 3 and 5 s of work beside."""
    rules = EngineRules(kv_blocks=100)
    trace = Trace("two", np.zeros(2), np.array([2, 4]), np.array([2, 2]))
    parts = {
        part.name: part.mean_e2e_seconds for part in lower_bounds(trace, rules, LinearStepTime(10**12, 10**12, 0)).parts
    }
    assert parts["steps and work"] == pytest.approx(2 + (3 + (3 + 5)) / 2)


def test_the_first_tokens_of_a_burst_wait_for_the_prompts_before_them() -> None:
    """The same two: a step of 1 s each, and 2 and 4 s of prompt on one machine."""
    trace = Trace("two", np.zeros(2), np.array([2, 4]), np.array([2, 2]))
    bounds = lower_bounds(trace, EngineRules(kv_blocks=100), LinearStepTime(10**12, 10**12, 0))
    assert bounds.mean_ttft_seconds == pytest.approx(1 + (2 + (2 + 4)) / 2)


def test_a_request_alone_is_as_fast_as_its_bound() -> None:
    """Tight where nothing is given away: one request, one chunk, linear time."""
    rules = EngineRules(kv_blocks=1_000, async_scheduling=False, max_num_seqs=1)
    step_time = LinearStepTime(5 * 10**9, 10**7, 10**4)
    trace = Trace("one", np.array([3.0]), np.array([700]), np.array([90]))
    day = simulate(trace, rules, step_time, PolicyNames("fcfs", "greedy", "latest-admitted", "oracle").make(trace))
    bounds = check(trace, rules, step_time, day)
    took = (day.ended_ps[0] - day.arrived_ps[0]) / PS_PER_SECOND
    assert bounds.mean_e2e_seconds == pytest.approx(took, rel=1e-6)


def test_a_burst_of_prompts_is_bound_by_computing() -> None:
    """100 prompts of 8,192 tokens at once, one output token each: shortest first, one step each, by hand."""
    rules = EngineRules(kv_blocks=100_000)
    trace = Trace("prompts", np.zeros(100), np.full(100, 8_192), np.ones(100, np.int64))
    bounds = lower_bounds(trace, rules, LinearStepTime(10**9, 10**8, 0))
    step = (10**9 + 8_192 * 10**8) / PS_PER_SECOND
    parts = {part.name: part.mean_e2e_seconds for part in bounds.parts}
    assert parts["prefill compute"] == pytest.approx(step * 101 / 2, rel=1e-6)
    assert parts["kv volume"] == pytest.approx((10**9 / PS_PER_SECOND) * 512 / 100_000 * 101 / 2, rel=1e-6)
    assert parts["alone"] == pytest.approx(step, rel=1e-6)


def test_shared_prefixes_are_credited_once() -> None:
    """Ten requests with one document: it is computed once, and each pays for a tenth of it."""
    rules = EngineRules(kv_blocks=100_000, prefix_caching=True)
    ids = [[0] for _ in range(10)]
    trace = Trace("shared", np.zeros(10), np.full(10, 512 + 16), np.ones(10, np.int64), prefix_ids=ids)
    step_time = LinearStepTime(0, 10**9, 0)
    parts = {part.name: part.mean_e2e_seconds for part in lower_bounds(trace, rules, step_time).parts}
    assert parts["prefill compute"] == pytest.approx((51.2 + 16) * 1e-3 * 11 / 2, rel=1e-6)
    assert parts["alone"] == pytest.approx(16e-3, rel=1e-6)
    cold = lower_bounds(trace, replace(rules, prefix_caching=False), step_time)
    assert {part.name: part.mean_e2e_seconds for part in cold.parts}["alone"] == pytest.approx(0.528, rel=1e-6)


def test_a_session_telescopes() -> None:
    """Two turns with a pause: the bound is on what the client waits, not on what it thinks."""
    trace = Trace(
        "session",
        np.array([1.0, 2.0]),
        np.array([10, 20]),
        np.array([5, 5]),
        session=np.array([0, 0]),
        turn=np.array([0, 1]),
        think_seconds=np.array([0.0, 1000.0]),
    )
    rules = EngineRules(kv_blocks=100)
    found = chains(trace, rules)
    assert (len(found), found.think_ps.tolist()) == (1, [1000 * PS_PER_SECOND])
    bounds = lower_bounds(trace, rules, LinearStepTime(10**12, 0, 0))
    assert bounds.mean_e2e_seconds == pytest.approx(5.0, rel=1e-6)
    assert len(bounds.completions_ps) == 1


def test_refused_requests_and_what_follows_them_have_no_latency() -> None:
    trace = Trace(
        "refusals",
        np.zeros(4),
        np.array([10, 99_999, 10, 10]),
        np.array([5, 5, 5, 5]),
        session=np.array([7, 7, 7, -1]),
        turn=np.array([0, 1, 2, 0]),
        think_seconds=np.zeros(4),
    )
    found = chains(trace, EngineRules(kv_blocks=10))
    assert sorted(found.rows.tolist()) == [0, 3]
    assert lower_bounds(trace, EngineRules(kv_blocks=10), LinearStepTime(1, 1, 1)).requests == 2


def test_no_request_served_means_no_bound() -> None:
    trace = Trace("none", np.zeros(1), np.array([10_000]), np.array([5]))
    bounds = lower_bounds(trace, EngineRules(kv_blocks=1), LinearStepTime(1, 1, 1))
    assert (bounds.requests, bounds.parts, bounds.mean_e2e_seconds) == (0, (), None)


def test_prefix_blocks_that_do_not_divide_are_refused() -> None:
    trace = Trace("odd", np.zeros(1), np.array([40]), np.array([5]), prefix_ids=[[0]], prefix_block_tokens=24)
    with pytest.raises(ValueError, match="block_tokens"):
        lower_bounds(trace, EngineRules(kv_blocks=100, prefix_caching=True), LinearStepTime(1, 1, 1))
