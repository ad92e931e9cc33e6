"""The learned step time finds a linear step time, follows one that changes, and is hurt by no odd measurement."""

from __future__ import annotations

import random

import pytest

from headway.scheduling.learned_step_time import LearnedStepTime, StepWork


def drawn(dice: random.Random) -> StepWork:
    decodes, prompts = dice.randint(0, 60), dice.choice([0, 0, dice.randint(16, 2_000)])
    return StepWork(decodes, decodes * dice.randint(10, 3_000), prompts, dice.randint(0, 9_000) if prompts else 0)


def truth(facts: StepWork, slower: float = 1.0) -> float:
    decodes, context, tokens, before = facts
    return slower * (0.006 + 5e-5 * decodes + 4e-8 * context + 3e-5 * tokens + 3e-7 * before)


def test_it_finds_a_linear_step_time() -> None:
    dice, model = random.Random(1), LearnedStepTime()
    assert not model.is_known
    for _ in range(2_000):
        facts = drawn(dice)
        model.measured(facts, truth(facts) * dice.uniform(0.95, 1.05))
    assert model.is_known
    for _ in range(100):
        facts = drawn(dice)
        assert model.seconds(facts) == pytest.approx(truth(facts), rel=0.05)


def test_it_follows_an_engine_that_gets_slower() -> None:
    dice, model = random.Random(2), LearnedStepTime()
    for slower in (1.0, 2.0):
        for _ in range(3_000):
            facts = drawn(dice)
            model.measured(facts, truth(facts, slower))
    assert model.seconds(StepWork(20, 20_000, 0, 0)) == pytest.approx(truth(StepWork(20, 20_000, 0, 0), 2.0), rel=0.05)


def test_odd_measurements_count_for_nothing() -> None:
    model = LearnedStepTime()
    for seconds in (0.0, -1.0, float("nan"), float("inf"), 60.0):
        model.measured(StepWork(1, 1, 0, 0), seconds)
    assert model.seconds(StepWork(1, 1, 0, 0)) == 0.0
    assert not model.is_known


def test_a_long_monotone_day_stays_finite_and_grows_with_work() -> None:
    model = LearnedStepTime()
    for _ in range(50_000):
        model.measured(StepWork(8, 8_000, 0, 0), 0.01)  # nothing is learned of the other quantities
    assert model.seconds(StepWork(8, 8_000, 0, 0)) == pytest.approx(0.01, rel=0.01)
    assert model.seconds(StepWork(8, 8_000, 500, 0)) >= model.seconds(StepWork(8, 8_000, 0, 0))
