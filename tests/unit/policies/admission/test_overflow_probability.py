"""Overflow probability: its forecast against drawn futures, its sums against a fresh start, its z in practice."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from headway.testing.examples import examples
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


# recomputed from the docstring, in plain loops


INSTANTS = [1, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384]


def age_and_width(produced: int) -> tuple[int, int]:
    """Buckets of 16 tokens; from 128 on four to an octave."""
    width = 16
    while produced >= 8 * width:
        width *= 2
    return produced // width * width, width


def fits_by_hand(running: list[Request], head: Request, memory: MemoryView, z: float, slack_tokens: float) -> bool:
    """Whether the head may come in, with so many tokens more of memory."""
    block, lives = memory.block_tokens, [*running, head]
    cautious = 0
    for request in lives:
        age, width = age_and_width(request.produced_tokens)
        longest = request.estimate.remaining_quantile(0.99, age)  # type: ignore[union-attr]
        if request.max_output_tokens is not None:
            longest = min(longest, max(1, request.max_output_tokens - age))
        cautious += math.ceil((request.prompt_tokens + max(age + longest, age + width)) / block)
    if cautious <= memory.blocks_total:
        return True
    held_blocks = 0
    for request in running:
        age, width = age_and_width(request.produced_tokens)
        held_blocks += math.ceil((request.prompt_tokens + age + width // 2) / block)
    used = memory.blocks_total - memory.blocks_free
    shared = min(max(0, held_blocks - used) * block, sum(request.cached_prompt_tokens for request in running))
    for instant in INSTANTS:
        mean = variance = mean_of_running = 0.0
        for request in lives:
            age, width = age_and_width(request.produced_tokens)
            there = request.estimate.remaining_survival(instant - 1, age)  # type: ignore[union-attr]
            if request.max_output_tokens is not None and instant > max(1, request.max_output_tokens - age):
                there = 0.0
            size = request.prompt_tokens + age + (width - 1) / 2 + (block - 1) / 2 + instant
            mean += there * size
            variance += there * (1 - there) * size * size
            if request is not head:
                mean_of_running = mean
        need = mean + z * math.sqrt(variance)
        credit = shared * min(1.0, mean_of_running / max(1, held_blocks * block))
        if need - credit > memory.blocks_total * block + slack_tokens:
            return False
    return True


lives = st.tuples(
    st.integers(1, 700),  # prompt
    st.sampled_from([0, 0, 5, 127, 128, 255, 300, 1_100]) | st.integers(0, 700),  # produced
    st.integers(0, 3),  # quarters of the prompt that are cached
    st.integers(2, 900),  # expected
    st.none() | st.integers(1_200, 3_000),  # bound
    st.booleans(),  # known for certain
)


def life(number: int, drawn: tuple[int, int, int, int, int | None, bool]) -> Request:
    prompt, produced, quarters, expected, bound, known = drawn
    request = Request(number, 0.0, prompt, produced_tokens=produced, max_output_tokens=bound)
    request.cached_prompt_tokens = quarters * prompt // 4
    request.estimate = (
        PointEstimate(produced + expected, "test") if known else GeometricEstimate(float(expected), None, "test")
    )
    return request


@settings(max_examples=examples(40))
@given(
    st.lists(lives, min_size=2, max_size=7), st.sampled_from([1, 16]), st.sampled_from([-1.0, 0.0, 1.0, 3.0]), st.data()
)
def test_the_least_memory_that_lets_a_head_in(
    drawn: list[tuple[int, int, int, int, int | None, bool]], block: int, z: float, data: st.DataObject
) -> None:
    head, *running = [life(number, one) for number, one in enumerate(drawn)]
    batch = ScriptedBatch(running)
    used = data.draw(st.integers(0, sum(r.prompt_tokens + r.produced_tokens for r in running) // block))

    def memory(total: int) -> MemoryView:
        return MemoryView(max(0, total - used), total, block)

    def admits(total: int) -> bool:
        answer = OverflowProbability(z_start=z).hold_steps(head, batch, memory(total), 0.0)
        assert answer in (0, 1)
        return answer == 0

    refused, admitted = used, 40_000
    if admits(refused):
        return
    while admitted - refused > 1:
        middle = (refused + admitted) // 2
        refused, admitted = (refused, middle) if admits(middle) else (middle, admitted)
    rounding = 0.01 * len(drawn) * (1 + z * z)
    assert fits_by_hand(running, head, memory(admitted), z, rounding)
    assert not fits_by_hand(running, head, memory(refused), z, -rounding)


class Moving:
    """An estimate that follows what is learned: all lengths are `tokens`."""

    made_by, law_moves = "test", True
    tokens = 1_000

    def remaining_mean(self, produced_tokens: int) -> float:
        return float(max(1, self.tokens - produced_tokens))

    def remaining_quantile(self, probability: float, produced_tokens: int) -> int:
        return max(1, self.tokens - produced_tokens)

    def remaining_survival(self, tokens: int, produced_tokens: int) -> float:
        return float(tokens < max(1, self.tokens - produced_tokens))


@pytest.mark.parametrize("who", ["the head", "one that runs"])
def test_what_is_learned_counts_with_the_next_completion(who: str) -> None:
    moving = Moving()
    head, runs = candidate(100, 10.0), Request("runs", 0.0, 100)
    runs.estimate = GeometricEstimate(10.0, None, "test")
    (head if who == "the head" else runs).estimate = moving
    policy, batch, memory = OverflowProbability(), ScriptedBatch([runs]), MemoryView(50, 50, BLOCK)
    assert policy.hold_steps(head, batch, memory, 0.0) == 1
    moving.tokens = 20
    policy.observe(Completed(Request("done", 0.0, 100), 1.0, 20))
    assert policy.hold_steps(head, batch, memory, 1.0) == 0


def test_what_is_kept_of_a_head_is_what_a_fresh_policy_says() -> None:
    """The same head with other blocks, another estimate, more tokens, and after completions."""
    lots = random.Random(9)
    batch = ScriptedBatch(running(12, 150.0, lots))
    head, policy = candidate(), OverflowProbability(learning_rate=0.0)
    for _ in range(200):
        match lots.randrange(5):
            case 0:
                head.produced_tokens = lots.randint(0, 400)
            case 1:
                head.estimate = GeometricEstimate(float(lots.randint(5, 900)), None, "test")
            case 2:
                policy.observe(Completed(Request("done", 0.0, 100), 0.0, 50))
            case 3:
                head = candidate(lots.randint(1, 900))
            case _:
                batch.decode()
        for block in (16, 8):
            total = lots.randint(100, 500) * 16 // block
            memory = MemoryView(total, total, block)
            fresh = OverflowProbability(learning_rate=0.0).hold_steps(head, batch, memory, 0.0)
            assert policy.hold_steps(head, batch, memory, 0.0) == fresh


def test_a_head_is_weighed_at_every_so_many_steps() -> None:
    policy = OverflowProbability(steps_between=4)
    batch = ScriptedBatch(running(10, 100.0, random.Random(1)))
    none = MemoryView(1, 1, BLOCK)
    assert policy.hold_steps(candidate(1, 1.0), ScriptedBatch(), none, 0.0) == 0, "nothing runs"
    head = candidate(10, 20.0)
    ample = next(
        m for m in (MemoryView(t, t, BLOCK) for t in range(100, 999)) if not policy.hold_steps(head, batch, m, 0)
    )
    answers = []
    for _ in range(5):
        answers.append([policy.hold_steps(head, batch, memory, 0.0) for memory in (ample, none)])
        batch.decode_steps += 1
    assert answers == [[0, 4], [3, 3], [2, 2], [1, 1], [0, 4]]
    assert policy.hold_steps(head, batch, MemoryView(9_999, 9_999, BLOCK), 0.0) == 0, "it fits with the longest of all"


def test_z_moves_by_hand() -> None:
    policy = OverflowProbability(overflow_target=0.1, learning_rate=0.5, z_start=0.0)
    assert policy.z == 0.0
    policy.observe(Completed(Request(0, 0.0, 60), 0.0, 40))  # a mean of 100 tokens from now on
    assert policy.z == pytest.approx(-0.05)
    policy.observe(Completed(Request(1, 0.0, 200), 0.0, 100))  # of 200
    assert policy.z == pytest.approx(-0.05 - 0.05 * 300 / 200)
    lost = Request(2, 0.0, 100, produced_tokens=50, cached_prompt_tokens=30)
    policy.observe(Preempted(lost, 0.0))
    assert policy.z == pytest.approx(-0.125 + 0.5 * 120 / 200)
    policy.observe(Preempted(lost, 0.0, for_memory=False))
    assert policy.z == pytest.approx(0.175), "memory was not what was short"
    policy.memory_lost(80)
    assert policy.z == pytest.approx(0.175 + 0.5 * 80 / 200)
    for _ in range(1_000):
        policy.observe(Completed(Request(3, 0.0, 150), 0.0, 50))
    assert policy.z == -4.0
    never = OverflowProbability(z_start=0.0)
    never.observe(Preempted(Request(4, 0.0, 10, cached_prompt_tokens=50), 0.0))
    assert never.z == 0.0
    engine = OverflowProbability(z_start=0.0, learning_rate=0.5)
    engine.memory_lost(0)
    assert engine.z == 0.0
    engine.memory_lost(700)
    assert engine.z == 0.5, "before any has completed it counts as one request"


def test_the_mean_size_goes_back_over_five_hundred_completions() -> None:
    policy = OverflowProbability(overflow_target=0.001, learning_rate=0.1, z_start=0.0)
    for _ in range(600):
        policy.observe(Completed(Request(0, 0.0, 50), 0.0, 50))
    before = policy.z
    policy.observe(Completed(Request(1, 0.0, 500), 0.0, 600))
    mean = 100 + (1_100 - 100) / 500
    assert before - policy.z == pytest.approx(0.1 * 0.001 * 1_100 / mean, rel=1e-6)


def test_a_step_asks_anew_only_for_those_that_enter_another_bucket_of_ages() -> None:
    asked: list[object] = []

    class Counting(GeometricEstimate):
        def remaining_survival(self, tokens: int, produced_tokens: int) -> float:
            asked.append(tokens)
            return super().remaining_survival(tokens, produced_tokens)

    young, old = Request(0, 0.0, 10), Request(1, 0.0, 10, produced_tokens=15)
    for request in (young, old):
        request.estimate = Counting(50.0, None, "test")
    batch, policy, head = ScriptedBatch([young, old]), OverflowProbability(), candidate()
    asked_at = []
    for _ in range(18):
        asked.clear()
        policy.hold_steps(head, batch, MemoryView(1, 1, BLOCK), 0.0)
        asked_at.append(len(asked) // len(INSTANTS))
        batch.decode()
    assert asked_at == [2, 1, *[0] * 14, 1, 1], "both at first; then each as its age enters another sixteen"
