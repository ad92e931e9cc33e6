"""Nested wait: its sums by brute force, its rate by hand, and that held steps change nothing while the batch stays."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.event import Completed
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.admission.nested_wait import NestedWait, segment_of, token_steps
from headway.testing.examples import examples
from headway.testing.scripted import ScriptedBatch


def request(id: int, prompt: int, produced: int = 0) -> Request:
    return Request(id, 0.0, prompt, produced_tokens=produced)


def taught(policy: NestedWait, *lengths: tuple[int, int], times: int = 20) -> NestedWait:
    for number in range(times):
        for prompt, output in lengths:
            policy.observe(Completed(request(number, prompt), 0.0, output))
    return policy


@given(st.integers(1, 500), st.integers(0, 700))
@settings(max_examples=examples(60))
def test_sums_over_steps_are_those_of_a_walk(prompt: int, output: int) -> None:
    tokens, squares = [0] * 9, [0] * 9
    for produced in range(output):
        tokens[segment_of(produced)] += prompt + produced
        squares[segment_of(produced)] += (prompt + produced) ** 2
    assert token_steps(prompt, output) == (tokens, squares)


def test_the_rate_fills_memory_with_its_buffer() -> None:
    """r·m + √(2·ln(1/chance)·r·v) = memory."""
    policy = taught(NestedWait(overflow_chance=0.01), (1_000, 100), (200, 900))
    mean = (sum(1_000 + t for t in range(100)) + sum(200 + t for t in range(900))) / 2
    square = (sum((1_000 + t) ** 2 for t in range(100)) + sum((200 + t) ** 2 for t in range(900))) / 2
    rate = policy.rate(50_000)
    assert rate * mean + math.sqrt(2 * math.log(100) * rate * square) == pytest.approx(50_000)


@given(st.integers(1_000, 10**7), st.floats(0.001, 0.4))
@settings(max_examples=examples(60))
def test_more_memory_and_more_daring_sustain_more(memory: int, chance: float) -> None:
    lengths = [(300, 50), (900, 700)]
    careful, daring = taught(NestedWait(overflow_chance=chance), *lengths), NestedWait(overflow_chance=2 * chance)
    taught(daring, *lengths)
    assert careful.rate(memory) < careful.rate(memory + 1_000)
    assert careful.rate(memory) < daring.rate(memory)
    assert all(a < b for a, b in zip(careful.thresholds(memory), careful.thresholds(2 * memory), strict=True) if a)


def test_the_head_waits_while_its_segment_is_full_and_until_one_can_leave_it() -> None:
    policy, memory = taught(NestedWait(), (100, 200)), MemoryView(0, 1_000, 16)
    batch = ScriptedBatch([request(0, 100)])
    threshold = policy.thresholds(16_000)[0]
    room = int((threshold - 100) // 100)
    for number in range(room):
        assert policy.hold_steps(request(99, 100), batch, memory, 0.0) == 0
        batch.join(request(1 + number, 100))
    assert policy.hold_steps(request(99, 100), batch, memory, 0.0) == 64
    batch.decode(63)
    assert policy.hold_steps(request(99, 100), batch, memory, 0.0) == 1
    batch.decode(1)
    assert policy.hold_steps(request(99, 100), batch, memory, 0.0) == 0 or room * 164 > policy.thresholds(16_000)[1]


def test_a_full_later_segment_holds_the_head_too() -> None:
    policy, memory = taught(NestedWait(), (100, 200), (100, 10)), MemoryView(0, 1_000, 16)
    late = [request(number, 100, produced=130) for number in range(60)]
    assert sum(r.prompt_tokens + r.produced_tokens for r in late) > policy.thresholds(16_000)[2]
    assert policy.hold_steps(request(99, 100), ScriptedBatch(late), memory, 0.0) == 256 - 130


def test_an_empty_batch_and_an_empty_segment_take_anyone() -> None:
    policy, memory = taught(NestedWait(), (10, 100)), MemoryView(0, 100, 16)
    huge = request(9, 1_000_000)
    assert policy.hold_steps(huge, ScriptedBatch(), memory, 0.0) == 0
    assert policy.hold_steps(huge, ScriptedBatch([request(0, 10, produced=70)]), memory, 0.0) == 0
    assert policy.hold_steps(huge, ScriptedBatch([request(0, 10)]), memory, 0.0) > 0


def test_until_requests_have_ended_others_stand_in_for_them() -> None:
    assert NestedWait().thresholds(9_999) == taught(NestedWait(), (256, 256)).thresholds(9_999)
    assert NestedWait().thresholds(9_999) != taught(NestedWait(), (10, 100), times=1).thresholds(9_999)


def test_old_requests_are_forgotten() -> None:
    policy = taught(NestedWait(window_requests=20), (5_000, 900))
    taught(policy, (10, 100))
    assert policy.thresholds(9_999) == taught(NestedWait(window_requests=20), (10, 100)).thresholds(9_999)


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(0, 300)), min_size=1, max_size=20), st.integers(10, 2_000))
@settings(max_examples=examples(100))
def test_while_the_same_batch_runs_the_answer_stays_no_for_so_many_steps(
    some: list[tuple[int, int]], blocks: int
) -> None:
    policy, memory = taught(NestedWait(), (300, 90), (20, 400)), MemoryView(0, blocks, 16)
    batch = ScriptedBatch([request(number, *sizes) for number, sizes in enumerate(some)])
    head, steps = request(99, 200), 0
    for _ in range(400):
        if steps:
            steps -= 1
            assert policy.hold_steps(head, batch, memory, 0.0) > 0
        else:
            steps = max(0, policy.hold_steps(head, batch, memory, 0.0) - 1)
        taught(policy, (50, 50), times=1)  # elsewhere a request ends
        batch.decode()


@pytest.mark.parametrize(("option", "value"), [("overflow_chance", 1.0), ("window_requests", 19)])
def test_options_out_of_bounds_are_told(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} must be"):
        NestedWait(**{option: value})  # type: ignore[arg-type]
