"""Policies in the papers' discrete model: feasible on every instance, and right by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.bounds.discrete import (
    Attempt,
    DiscreteRequest,
    Instance,
    lower_bound,
    peak_of,
    replay,
    serve,
)
from headway.bounds.reference_policies import (
    AMin,
    a_max,
    current_check,
    fcfs_peak,
    mc_sf,
    peak_sum_check,
    sorted_f,
    svf,
    svf_one_bit,
)
from tests.support.bound_instances import instances

POLICIES = {
    "svf": svf,
    "svf, peak sum": lambda instance: svf(instance, peak_sum_check),
    "svf, current capacity": lambda instance: svf(instance, current_check),
    "1-bit svf": svf_one_bit,
    "mc-sf": mc_sf,
    "mc-sf, skipping": lambda instance: mc_sf(instance, skips=True),
    "fcfs": fcfs_peak,
    "a-max": a_max,
    "a-min": AMin,
}


@pytest.mark.parametrize("name", POLICIES)
@given(instance=instances())
def test_every_policy_serves_all_within_memory_and_above_the_bound(name: str, instance: Instance) -> None:
    told = replay(instance, serve(instance, POLICIES[name](instance)))
    assert told.peak_memory <= instance.memory
    assert told.total_latency >= lower_bound(instance)
    if name not in ("svf, current capacity", "a-min"):
        assert told.killed == 0, "who knows the future overflows nothing"


@given(instances(arrivals=False))
def test_sorted_f_serves_a_burst(instance: Instance) -> None:
    assert replay(instance, serve(instance, sorted_f(instance))).total_latency >= lower_bound(instance)


def test_volume_and_peak_by_hand() -> None:
    assert DiscreteRequest(100, 50).volume == 6275
    assert peak_of([(10, 5), (4, 8)]) == 24
    assert peak_of([]) == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=6))
def test_the_peak_is_what_stepping_forward_finds(running: list[tuple[int, int]]) -> None:
    steps = range(1, 1 + max((remaining for _, remaining in running), default=0))
    by_steps = (sum(held + step for held, remaining in running if step <= remaining) for step in steps)
    assert peak_of(running) == max(by_steps, default=0)


def test_a_hand_worked_day_of_svf() -> None:
    """Memory 6: A (2, 2) and B (1, 1) start together, C (4, 2) waits for both to end."""
    instance = Instance((DiscreteRequest(4, 2), DiscreteRequest(2, 2), DiscreteRequest(1, 1)), 6)
    attempts = serve(instance, svf(instance))
    assert sorted(attempts) == [Attempt(0, 2, 2), Attempt(1, 0, 2), Attempt(2, 0, 1)]
    told = replay(instance, attempts)
    assert (told.completions, told.total_latency, told.peak_memory) == ((4, 2, 1), 7, 6)


def test_the_peak_sum_is_more_careful_than_the_forward_check() -> None:
    """Two of (1, 3) in memory 6: both at once peak at 8, one step apart at 7; the second waits until step 2 or 3."""
    instance = Instance((DiscreteRequest(1, 3), DiscreteRequest(1, 3)), 6)
    assert replay(instance, serve(instance, svf(instance))).completions == (3, 5)
    assert replay(instance, serve(instance, svf(instance, peak_sum_check))).completions == (3, 6)


def test_current_capacity_kills_when_memory_runs_out() -> None:
    instance = Instance((DiscreteRequest(1, 4), DiscreteRequest(1, 4)), 6)
    told = replay(instance, serve(instance, svf(instance, current_check)))
    assert told.killed > 0


def test_a_min_learns_by_running() -> None:
    """It believes both outputs to be 1 and starts both; memory runs out, the newest gives way and starts over."""
    instance = Instance((DiscreteRequest(1, 4), DiscreteRequest(1, 4)), 6)
    told = replay(instance, serve(instance, AMin(instance)))
    assert told.killed >= 1
    assert min(told.completions) == 4


def test_sorted_f_takes_many_short_ones_before_a_few() -> None:
    """Σo/n²: one of 3 (F = 3), four of 2 together (F = 8/16); memory for the four only."""
    requests = (DiscreteRequest(6, 3), *[DiscreteRequest(1, 2)] * 4)
    attempts = {a.place: a.started for a in serve(Instance(requests, 12), sorted_f(Instance(requests, 12)))}
    assert attempts == {0: 2, 1: 0, 2: 0, 3: 0, 4: 0}


def test_sorted_f_says_what_it_cannot_take() -> None:
    with pytest.raises(ValueError, match="offline"):
        sorted_f(Instance((DiscreteRequest(1, 1, 3),), 4))
    with pytest.raises(ValueError, match="12"):
        sorted_f(Instance((DiscreteRequest(1, 1),) * 13, 4))


def test_one_bit_svf_does_not_see_lengths_within_a_class() -> None:
    """T = 16: outputs of 1 and 4 are both short and go by prompt; 5 is long."""
    instance = Instance((DiscreteRequest(3, 1), DiscreteRequest(2, 4), DiscreteRequest(1, 5)), 16)
    policy = svf_one_bit(instance, total_tokens=16)
    proxies = list(policy._keys)
    assert proxies == [3 * 2 + 3, 2 * 2 + 3, 1 * 8 + 36]


@pytest.mark.parametrize(
    ("attempts", "words"),
    [
        ([Attempt(0, 0, 2)], "too early"),
        ([Attempt(0, 1, 2), Attempt(0, 2, 2)], "too early or once too often"),
        ([Attempt(0, 1, 3)], "runs 3 steps"),
        ([Attempt(0, 1, 1)], "never end"),
        ([], "never end"),
    ],
)
def test_replay_finds_what_is_wrong(attempts: list[Attempt], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replay(Instance((DiscreteRequest(1, 2, 1),), 5), attempts)


def test_replay_finds_an_overflow() -> None:
    instance = Instance((DiscreteRequest(2, 2), DiscreteRequest(2, 2)), 6)
    with pytest.raises(ValueError, match="step 2 holds 8"):
        replay(instance, [Attempt(0, 0, 2), Attempt(1, 0, 2)])


def test_instances_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="needs 7"):
        Instance((DiscreteRequest(3, 4),), 6)
    with pytest.raises(ValueError, match="no output"):
        Instance((DiscreteRequest(3, 0),), 6)
