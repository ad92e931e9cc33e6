"""Unloaded latency: how long each request takes alone on the replica. Slowdown and fairness are relative to it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND, StepTime
from headway.simulator.trace import Trace


def unloaded_seconds(trace: Trace, rules: EngineRules, step_time: StepTime) -> npt.NDArray[np.float64]:
    """Per request, arrival to last token on an idle replica with a cold prefix cache, in seconds.

    The prompt in chunks of the token budget, then one decode step for each further token; a request that does not fit
    the replica at all is timed as if it did. Without chunked prefill the prompt is one step.
    """
    chunk = rules.max_num_batched_tokens if rules.chunked_prefill else max(1, int(trace.prompt_tokens.max(initial=1)))
    fixed, slope = step_time.decode_step(1)
    prompts, place = np.unique(trace.prompt_tokens, return_inverse=True)
    prefill = _prefill_ps([int(tokens) for tokens in prompts], chunk, step_time)
    further = trace.output_tokens - 1
    context = further * trace.prompt_tokens + further * (further - 1) // 2  # Σ of p, p + 1, … over the decode steps
    # In float: ps · tokens² of a million tokens would overflow 64 bits, and no exact comparison needs them.
    decode = further.astype(np.float64) * fixed + context.astype(np.float64) * slope
    return (prefill[place] + decode) / PS_PER_SECOND


def _prefill_ps(prompts: list[int], chunk: int, step_time: StepTime) -> npt.NDArray[np.float64]:
    """Picoseconds to compute each of the rising, distinct `prompts`; full chunks are common to all."""
    full = [0]
    times = []
    for tokens in prompts:
        before = (tokens - 1) // chunk  # full chunks that are not the last one
        while len(full) <= before:
            full.append(full[-1] + step_time.mixed_step(0, 0, [(chunk, (len(full) - 1) * chunk)], 0))
        last = step_time.mixed_step(0, 0, [(tokens - before * chunk, before * chunk)], 1)
        times.append(float(full[before] + last))
    return np.array(times, np.float64)
