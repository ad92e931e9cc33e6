"""The workload `bursts`: bursts and silences, as in a code-completion service."""

from __future__ import annotations

import numpy as np

from headway.bench.workloads.workload import (
    Curve,
    Workload,
    draw_arrivals,
    draw_from_quantiles,
    from_zero,
    stream,
    whole_tokens,
)
from headway.simulator.trace import Seconds, Trace

# Percent -> tokens, measured on AzureLLMInferenceTrace_code (2023; first 60 % of the hour).
PROMPTS: Curve = {
    0: 3, 1: 17, 5: 75, 10: 146, 25: 578, 50: 1_460, 75: 2_715, 90: 5_047, 95: 7_382, 99: 7_436, 100: 7_437
}  # fmt: skip
OUTPUTS: Curve = {0: 6, 10: 7, 25: 9, 50: 13, 75: 23, 90: 55, 95: 87, 99: 248, 99.9: 831, 100: 1_899}
# The same trace, parted at every gap over 5 s: 41 bursts of 159 requests on average (10/50/90 %: 39, 124, 327), gaps
# inside of 107 ms with a coefficient of variation of 2.25, and silences with these quantiles in seconds.
BURST_REQUESTS = 159.0
GAP_SECONDS, GAP_CV = 0.1075, 2.25
SILENCE_SECONDS: Curve = {0: 5.0, 10: 7.0, 50: 20.0, 90: 83.0, 100: 174.0}


def bursts(requests: int, seed: int) -> Trace:
    """Bursts of some 160 short completions with silences of up to three minutes between them.

    Burst sizes are geometric, gaps inside Gamma, silences as measured: 3.2 requests a second on average, at 9 a second
    while a burst lasts, with an index of dispersion of about 50 over 10 s (measured: 70; Poisson: 1).
    Source: Patel et al., Splitwise, ISCA 2024; Azure/AzurePublicDataset, CC BY 4.0.
    """
    prompts = draw_from_quantiles(stream(seed, "bursts", "prompts"), PROMPTS, requests)
    outputs = draw_from_quantiles(stream(seed, "bursts", "outputs"), OUTPUTS, requests)
    return Trace(
        name="bursts",
        arrived_seconds=from_zero(_arrivals(requests, seed)),
        prompt_tokens=whole_tokens(prompts),
        output_tokens=whole_tokens(outputs),
    )


def _arrivals(requests: int, seed: int) -> Seconds:
    inside = draw_arrivals(stream(seed, "bursts", "gaps"), 1 / GAP_SECONDS, GAP_CV, requests)
    starts_burst = stream(seed, "bursts", "sizes").random(requests) < 1 / BURST_REQUESTS
    silences = draw_from_quantiles(stream(seed, "bursts", "silences"), SILENCE_SECONDS, requests)
    arrived: Seconds = inside + np.cumsum(np.where(starts_burst, silences, 0.0))
    return arrived


BURSTS = Workload(
    "bursts",
    "bursts of short completions with silences of up to three minutes",
    "Azure's code trace of 2023 (Splitwise, ISCA 2024)",
    bursts,
)
