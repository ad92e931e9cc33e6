"""Recordings to test with: a simulated engine plays the real one, so that the truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headway.bench.calibration.replay import replay
from headway.bench.experiment.bundles import Bundle
from headway.bench.metrics.recording import Recording
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import LinearStepTime, StepTime
from headway.simulator.trace import Trace

RULES = EngineRules(kv_blocks=4_000, max_model_tokens=8_192, max_num_batched_tokens=512, max_num_seqs=16)
ENGINE = LinearStepTime(
    fixed_ps=6_000_000_000,
    ps_per_token=80_000_000,
    ps_per_context_token=150_000,
    ps_per_request=400_000_000,
    ps_per_pair=20_000,
)


def traffic(requests: int = 120, rate: float = 3.0, seed: int = 0) -> Trace:
    draw = np.random.default_rng(seed)
    output = draw.integers(4, 60, requests)
    return Trace(
        "made",
        np.cumsum(draw.exponential(1 / rate, requests)),
        draw.integers(10, 1_500, requests),
        output,
        max_output_tokens=output,
    )


def recorded(trace: Trace, step_time: StepTime = ENGINE, rules: EngineRules = RULES) -> Recording:
    """What an engine of this step time would have measured under FCFS."""
    nothing = Recording(trace, np.zeros(len(trace)), np.zeros(len(trace)), "made")
    ttft, e2e, _ = replay(nothing, rules, step_time, Bundle("fcfs"))
    return replace(nothing, ttft_seconds=ttft, e2e_seconds=e2e)
