"""The latency of a request alone on the replica equals walking every step."""

from __future__ import annotations

import numpy as np
import pytest

from headway.bench.experiment.unloaded import unloaded_seconds
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND, LinearStepTime
from headway.simulator.trace import Trace

STEP_TIME = LinearStepTime(fixed_ps=1_000_000_007, ps_per_token=30_011, ps_per_context_token=17, ps_per_request=101)
RULES = EngineRules(kv_blocks=10_000, max_num_batched_tokens=100, max_num_seqs=10)


def trace(*lengths: tuple[int, int]) -> Trace:
    prompts, outputs = zip(*lengths, strict=True)
    return Trace("t", np.zeros(len(lengths)), np.array(prompts), np.array(outputs))


def walked(prompt: int, output: int, budget: int) -> float:
    """Step by step, as one would by hand."""
    picoseconds, computed = 0, 0
    while computed < prompt:
        new = min(budget, prompt - computed)
        picoseconds += STEP_TIME.mixed_step(0, 0, [(new, computed)], 1 if computed + new == prompt else 0)
        computed += new
    for context in range(prompt, prompt + output - 1):
        picoseconds += STEP_TIME.mixed_step(1, context, [], 1)
    return picoseconds / PS_PER_SECOND


def test_equals_walking_every_step() -> None:
    lengths = [(1, 1), (99, 3), (100, 1), (101, 2), (200, 50), (731, 1), (731, 9), (1, 400)]
    got = unloaded_seconds(trace(*lengths), RULES, STEP_TIME)
    assert got == pytest.approx([walked(prompt, output, 100) for prompt, output in lengths], rel=1e-12)


def test_a_very_long_request_does_not_overflow() -> None:
    got = unloaded_seconds(trace((2_000_000, 3_000_000)), RULES, STEP_TIME)
    fixed, slope = STEP_TIME.decode_step(1)
    further = 2_999_999
    decode = further * fixed + slope * (further * 2_000_000 + further * (further - 1) // 2)
    assert got[0] > decode / PS_PER_SECOND > 0
