"""The forecast against the definition, written out: at every later instant, count every request's blocks."""

from __future__ import annotations

from copy import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.estimate import PointEstimate
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.admission.peak_check import PeakCheck
from headway.policies.prediction.past_future_prediction import EmpiricalLaw, Window
from headway.testing.examples import examples
from headway.testing.scripted import ScriptedBatch
from headway.testing.strategies import requests


def running(id: int, prompt: int, output: int, produced: int = 0, bound: int | None = None) -> Request:
    request = Request(id, 0.0, prompt, produced_tokens=produced, max_output_tokens=bound)
    request.estimate = PointEstimate(output, "test")
    return request


def believed_to_come(request: Request) -> int:
    """The estimate made at entry, doubled until it is past what was produced; at most to the client's bound."""
    assert isinstance(request.estimate, PointEstimate)
    total = request.estimate.output_tokens
    while total <= request.produced_tokens:
        total *= 2
    bound = request.max_output_tokens
    return total - request.produced_tokens if bound is None else max(1, min(total, bound) - request.produced_tokens)


def peak_blocks(everyone: list[Request], block: int) -> int:
    """Brute force: every step until all have ended."""
    lives = [(believed_to_come(r), r.prompt_tokens + r.produced_tokens) for r in everyone]
    return max(
        sum(-(-(held + t) // block) for left, held in lives if left >= t)
        for t in range(1, max(left for left, _ in lives) + 1)
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Request], Request, int, int]:
    one = requests(max_produced_tokens=60, points_only=True)
    batch, candidate = draw(st.lists(one, min_size=1, max_size=7)), draw(one)
    block = draw(st.sampled_from([1, 2, 3, 16]))
    peak = peak_blocks([*batch, candidate], block)
    return batch, candidate, block, max(1, peak + draw(st.integers(-6, 3)))


@pytest.mark.slow
@settings(max_examples=examples(400))
@given(situations())
def test_equals_brute_force_and_so_does_the_hold(situation: tuple[list[Request], Request, int, int]) -> None:
    """The answer is the first later step at which brute force admits, or the first believed end."""
    running_now, candidate, block, total = situation
    batch = ScriptedBatch([copy(r) for r in running_now])
    memory = MemoryView(0, total, block)
    first_end = min(believed_to_come(r) for r in running_now)
    answer = PeakCheck().hold_steps(candidate, batch, memory, 0.0)
    for step in range(first_end):
        fits = peak_blocks([*batch.running(), candidate], block) <= total
        if fits or answer <= step:
            assert fits
            assert answer == step
            return
        batch.decode()
    assert answer == first_end


@pytest.mark.slow
@settings(max_examples=examples(200))
@given(st.lists(situations(), min_size=1, max_size=1), st.lists(st.integers(1, 30), max_size=6))
def test_stays_right_while_the_batch_decodes(
    drawn: list[tuple[list[Request], Request, int, int]], strides: list[int]
) -> None:
    """One policy, asked at odd moments, past estimates too, answers as brute force would."""
    running_now, candidate, block, total = drawn[0]
    batch, policy = ScriptedBatch(running_now), PeakCheck()
    for stride in [0, *strides]:
        batch.decode(stride)
        admitted = policy.hold_steps(candidate, batch, MemoryView(0, total, block), 0.0) == 0
        assert admitted == (peak_blocks([*running_now, candidate], block) <= total)


def test_a_batch_whose_blocks_fit_to_the_last_is_admitted() -> None:
    """Two requests that fill a block each, in two blocks; a token more has no room."""
    batch = ScriptedBatch([running(0, 10, 6)])
    assert PeakCheck().hold_steps(running(1, 10, 6), batch, MemoryView(1, 2, 16), 0.0) == 0
    assert PeakCheck().hold_steps(running(1, 11, 6), batch, MemoryView(1, 2, 16), 0.0) > 0


def test_room_that_somebody_leaves_in_time_is_counted() -> None:
    """The sum of peaks is 12 + 20 tokens, but the first has ended when the second is at its peak."""
    batch = ScriptedBatch([running(0, 10, 2)])
    memory = MemoryView(0, 24, 1)
    assert PeakCheck().hold_steps(running(1, 10, 10), batch, memory, 0.0) == 0
    assert PeakCheck().hold_steps(running(1, 11, 10), batch, memory, 0.0) == 1  # 12 + 13; a step later 12 + 12 fits


def test_the_reserve_holds_memory_back() -> None:
    batch = ScriptedBatch([running(0, 40, 10)])
    for reserve, expected in ((0.0, 0), (0.1, 10)):  # 100 tokens in 100, then in 90
        policy = PeakCheck(reserve=reserve)
        assert policy.hold_steps(running(1, 40, 10), batch, MemoryView(0, 100, 1), 0.0) == expected


def test_the_clients_bound_caps_the_belief() -> None:
    batch = ScriptedBatch([running(0, 40, 1_000, bound=10)])
    assert PeakCheck().hold_steps(running(1, 40, 10), batch, MemoryView(0, 100, 1), 0.0) == 0


def test_batches_of_two_replicas_are_kept_apart() -> None:
    full, empty_enough = ScriptedBatch([running(0, 90, 10)]), ScriptedBatch([running(0, 10, 10)])
    policy = PeakCheck()
    for _ in range(2):
        assert policy.hold_steps(running(1, 40, 10), full, MemoryView(0, 100, 1), 0.0) == 10
        assert policy.hold_steps(running(1, 40, 10), empty_enough, MemoryView(0, 100, 1), 0.0) == 0


def test_an_unestimated_request_is_named() -> None:
    batch = ScriptedBatch([running(0, 10, 10)])
    with pytest.raises(
        ValueError, match=r"request 'x' has no length estimate, which peak-check needs: name a predictor"
    ):
        PeakCheck().hold_steps(Request("x", 0.0, 5), batch, MemoryView(0, 100, 1), 0.0)


@pytest.mark.parametrize("reserve", [-0.1, 1.0, float("nan")])
def test_a_bad_reserve_is_refused(reserve: float) -> None:
    with pytest.raises(ValueError, match="reserve must be at least 0 and below 1, got"):
        PeakCheck(reserve=reserve)


@pytest.mark.parametrize("quantile", [0.0, 1.0, 2.0])
def test_a_bad_quantile_is_refused(quantile: float) -> None:
    with pytest.raises(ValueError, match="quantile must be between 0 and 1, got"):
        PeakCheck(quantile=quantile)


@pytest.mark.parametrize("quantile", [None, 0.9])
def test_who_is_far_beyond_all_that_is_known_is_asked_about_a_few_hundred_times(quantile: float | None) -> None:
    """Past-Future's law says one token more to whoever outlived its window, for ever."""

    class OneMore(EmpiricalLaw):
        asked = 0

        def remaining_mean(self, produced_tokens: int) -> float:
            OneMore.asked += 1
            return super().remaining_mean(produced_tokens)

        def remaining_quantile(self, probability: float, produced_tokens: int) -> int:
            OneMore.asked += 1
            return super().remaining_quantile(probability, produced_tokens)

    endless = Request(0, 0.0, 10, produced_tokens=100_000)
    endless.estimate = OneMore(Window(10, [100] * 10), 100)
    newcomer, batch, memory = running(1, 40, 10), ScriptedBatch([endless]), MemoryView(0, 100_030, 1)
    policy = PeakCheck(quantile=quantile)
    assert policy.hold_steps(newcomer, batch, memory, 0.0) > 0
    assert OneMore.asked < 600
    told = OneMore.asked
    for _ in range(50):
        batch.decode()
        assert policy.hold_steps(newcomer, batch, memory, 0.0) == PeakCheck(quantile=quantile).hold_steps(
            newcomer, batch, memory, 0.0
        )
    assert OneMore.asked < 60 * told


@settings(max_examples=examples(60))
@given(situations())
def test_the_first_answer_is_brute_force(situation: tuple[list[Request], Request, int, int]) -> None:
    running_now, candidate, block, total = situation
    answer = PeakCheck().hold_steps(candidate, ScriptedBatch(running_now), MemoryView(0, total, block), 0.0)
    assert (answer == 0) == (peak_blocks([*running_now, candidate], block) <= total)


def test_a_bound_caps_what_is_still_to_come() -> None:
    """Forty of fifty tokens are out, so ten are to come: 140 with the head's 50 fit in 190, and not in 189."""
    batch = ScriptedBatch([running(0, 90, 1_000, produced=40, bound=50)])
    assert PeakCheck().hold_steps(running(1, 40, 10), batch, MemoryView(0, 190, 1), 0.0) == 0
    assert PeakCheck().hold_steps(running(1, 40, 10), batch, MemoryView(0, 189, 1), 0.0) > 0


def test_blocks_of_several_tokens_are_weighed_at_each_end() -> None:
    """One that runs holds 12 blocks of 4 when it ends in 8 steps; the head 7 then, or 6 if it joins 4 steps later."""
    batch = ScriptedBatch([running(0, 40, 8)])
    for total, answer in ((20, 0), (19, 0), (18, 4)):
        assert PeakCheck().hold_steps(running(1, 20, 40), batch, MemoryView(0, total, 4), 0.0) == answer
