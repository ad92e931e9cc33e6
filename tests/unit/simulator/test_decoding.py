"""The set of decoding requests, and the length of runs, against counting request by request and step by step."""

from __future__ import annotations

import random
from itertools import count

import pytest

from headway.simulator.decoding import DecodeSet, computed_before, least_steps, run_duration
from headway.simulator.tracked import TrackedRequest


def request(row: int, target_tokens: int) -> TrackedRequest:
    made = TrackedRequest(row, 0.0, target_tokens, "", None, None, None, 0, False)
    made.target_tokens = target_tokens
    return made


def needs_block(one: TrackedRequest, step: int, block_tokens: int) -> bool:
    """Whether the token of this step is the first of a block."""
    return computed_before(one, step) % block_tokens == 0


@pytest.mark.parametrize("block_tokens", [1, 2, 5, 16])
def test_it_counts_as_one_would_by_hand(block_tokens: int) -> None:
    dice = random.Random(block_tokens)
    decoding = DecodeSet(block_tokens)
    inside: list[TrackedRequest] = []
    ended: list[int] = []
    rows = count()
    for step in range(1, 120):
        for _ in range(dice.choice([0, 0, 1, 2])):
            one = request(next(rows), dice.randint(1, 40))
            decoding.join(one, step, dice.randint(1, 30))
            inside.append(one)
        if inside and dice.random() < 0.1:
            lost = inside.pop(dice.randrange(len(inside)))
            decoding.leave(lost)
            if dice.random() < 0.5:  # it comes back at once, with more to compute
                lost.target_tokens += 3
                decoding.join(lost, step, dice.randint(1, 30))
                inside.append(lost)
        assert decoding.size == len(inside)
        assert decoding.next_end() == min((one.finish_step for one in inside), default=None)
        after = step + 1
        assert decoding.context_tokens(after) == sum(computed_before(one, after) for one in inside)
        due = [sum(needs_block(one, later, block_tokens) for one in inside) for later in range(after, after + 60)]
        assert [decoding.blocks_due(later) for later in range(after, after + 60)] == due
        for steps in (0, 1, block_tokens - 1, block_tokens, 2 * block_tokens + 1, 60):
            assert decoding.blocks_of_run(after, steps) == sum(due[:steps])
        if inside:
            for free in (0, 1, len(inside), dice.randint(0, 60)):
                fit = next((steps for steps in range(61) if sum(due[: steps + 1]) > free or steps == 60), 60)
                for most in (0, 1, 7, 60):
                    assert decoding.steps_that_fit(after, free, most) == min(most, fit)
        ending = decoding.pop_ends(step)
        assert [one.row for one in ending] == sorted(one.row for one in inside if one.finish_step == step)
        for one in ending:
            decoding.leave(one)
            inside.remove(one)
            ended.append(one.row)
    assert len(ended) > 50


def test_a_request_joins_with_the_token_of_its_step() -> None:
    decoding, one = DecodeSet(4), request(0, 10)
    decoding.join(one, 7, 3)  # the tokens of steps 7, 8 and 9
    assert (one.joined_step, one.finish_step) == (7, 9)
    assert [computed_before(one, step) for step in (8, 9, 10)] == [10, 11, 12]
    assert [decoding.context_tokens(step) for step in (8, 9, 10)] == [10, 11, 12]
    assert [decoding.blocks_due(step) for step in (8, 9, 10, 11)] == [0, 0, 1, 0]  # token 13 opens the fourth block
    assert decoding.pop_ends(8) == []
    assert decoding.pop_ends(9) == [one]
    assert decoding.next_end() is None


def test_a_run_lasts_as_long_as_its_steps() -> None:
    assert run_duration(100, 7, 4) == 100 + 107 + 114 + 121
    assert run_duration(100, 0, 3) == 300
    assert run_duration(100, 7, 1) == 100


@pytest.mark.parametrize("first_ps", [1, 2, 10, 333_333_333_333])
@pytest.mark.parametrize("growth_ps", [0, 1, 3, 1_000, 10**7])
def test_the_least_number_of_steps_is_the_least(first_ps: int, growth_ps: int) -> None:
    dice = random.Random(first_ps + growth_ps)
    spans = {1, first_ps, first_ps + 1, 2 * first_ps, 2 * first_ps + growth_ps, 3 * (first_ps + growth_ps) + 1}
    exact = [run_duration(first_ps, growth_ps, dice.randint(1, 10**6)) for _ in range(30)]
    for span_ps in [*spans, *exact, *(span + 1 for span in exact), *(max(1, span - 1) for span in exact)]:
        steps = least_steps(first_ps, growth_ps, span_ps)
        assert steps >= 1
        assert run_duration(first_ps, growth_ps, steps) >= span_ps
        assert steps == 1 or run_duration(first_ps, growth_ps, steps - 1) < span_ps


def test_a_span_that_is_over_takes_one_step() -> None:
    assert least_steps(10, 3, -5) == 1
    assert least_steps(10, 0, 0) == 1
