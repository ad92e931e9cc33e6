"""No step is below the floors that its step time states for itself."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headway.simulator.linear_lower_bounds import supporting_lines
from headway.simulator.replica import replica
from headway.simulator.step_time import Chunk, FlooredStepTime, StepFloor
from headway.testing.examples import examples
from headway.testing.strategies import step_times

TOKENS, REQUESTS = 2_048, 256
PROFILES = (
    ("h100", "llama-3.1-8b", 1),
    ("h100", "llama-3.1-70b", 8),
    ("l4", "llama-3.1-8b", 1),
    ("rtx-4090", "llama-3.1-8b", 1),
    ("a100", "qwen3-30b-a3b", 2),
)
CHUNKS = st.lists(st.tuples(st.integers(1, 600), st.integers(0, 100_000) | st.integers(0, 40)), max_size=6)


def worth(floor: StepFloor, decodes: int, context: int, chunks: list[Chunk], sampled: int) -> float:
    return (
        floor.fixed
        + floor.prompt_token * sum(new for new, _ in chunks)
        + floor.decode_token * decodes
        + floor.sample * sampled
        + (floor.sampled_fixed if sampled else 0)
        + floor.context * context
        + floor.chunk_context * sum(before for _, before in chunks)
        + floor.pair * sum(new * (2 * before + new) for new, before in chunks)
    )


def holds(step_time: FlooredStepTime, decodes: int, context: int, chunks: list[Chunk], finals: int) -> None:
    assume(decodes or chunks)
    assume(decodes + sum(new for new, _ in chunks) <= TOKENS)
    sampled = decodes + min(finals, len(chunks))
    took = step_time.mixed_step(decodes, context if decodes else 0, chunks, sampled)
    for floor in step_time.floors(TOKENS, REQUESTS):
        assert worth(floor, decodes, context if decodes else 0, chunks, sampled) <= took * (1 + 1e-12)


@pytest.mark.slow
@settings(max_examples=examples(200))
@given(st.sampled_from(PROFILES), st.integers(0, 250), st.integers(0, 10**6), CHUNKS, st.integers(0, 6))
def test_of_the_roofline(
    profile: tuple[str, str, int], decodes: int, context: int, chunks: list[Chunk], finals: int
) -> None:
    step_time = replica(profile[0], profile[1], tp=profile[2]).step_time
    assert isinstance(step_time, FlooredStepTime)
    holds(step_time, decodes, context, chunks, finals)


@given(step_times(), st.integers(0, 250), st.integers(0, 10**6), CHUNKS, st.integers(0, 6))
def test_of_the_linear_model(
    step_time: FlooredStepTime, decodes: int, context: int, chunks: list[Chunk], finals: int
) -> None:
    holds(step_time, decodes, context, chunks, finals)


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=60))
def test_supporting_lines_stay_below_and_touch(values: list[int]) -> None:
    for at, slope in supporting_lines(values):
        assert at >= 0
        assert slope >= 0
        gaps = [value - (at + slope * n) for n, value in enumerate(values, 1)]
        assert min(gaps) >= -1e-9 * max(values, default=0)
        assert min(gaps) <= 1e-9 * max(values) + 1e-9
