"""How tight the lower bounds are: docs/results/lower-bounds.md.

    HEADWAY_TRACES=FOLDER python -m benchmarks.studies.bounds.tightness > docs/results/lower-bounds.md

Each traffic at several loads under four orders that know the true output lengths; the best of them beside the bounds.
About two minutes on one core, deterministic. Recorded traces are left out where HEADWAY_TRACES does not name them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.saturation import Saturation, is_closed_loop, measure_saturation
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.metrics.agreement import times_of
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import check_context, head
from headway.bounds.lower_bounds import LowerBounds, lower_bounds
from headway.simulator.replica import Replica, replica
from headway.simulator.trace import Trace

ORDERS = ("fcfs", "shortest-prompt-first", "shortest-job-first", "smallest-volume-first")
WORKLOADS = {"chat-and-documents": 1_500, "chat": 2_000, "reasoning": 800, "bursts": 1_500, "coding-agents": 1_500}
RECORDED = {"azure_conv_2023": 3_000, "servegen_m_mid": 2_000, "mooncake_conversation": 1_500}
LOADS = (0.5, 0.9, 1.2, 2.0, None)
SHOWN = ("alone", "work", "each completion", "steps and work", "crowding")
CARD, MODEL = "h100", "llama-3.1-8b"


@dataclass(frozen=True)
class Best:
    """Of the orders tried: the least mean and whose it is, seconds."""

    e2e: float
    e2e_order: str
    ttft: float
    ttft_order: str


def main() -> None:
    print(HEAD)
    for name, requests in (WORKLOADS | (RECORDED if os.environ.get("HEADWAY_TRACES") else {})).items():
        server, trace = prepared(name, requests)
        saturation = measure_saturation(trace, partial(simulate_bundle, replica=server, bundle=Bundle("fcfs"), seed=0))
        for load in LOADS:
            if load is None and is_closed_loop(trace):
                continue  # sessions at once are a load like any other
            day = at_load(trace, load, saturation)
            bounds = lower_bounds(day, server.rules, server.step_time)
            print(row(f"{name}, {'all at once' if load is None else f'load {load:g}'}", best_of(day, server), bounds))
            print(f"{name} {load}", file=sys.stderr, flush=True)
    print(TAIL, end="")


def prepared(name: str, requests: int) -> tuple[Replica, Trace]:
    """The replica and the first requests that its model takes."""
    trace = head(load_trace(name, requests=requests).trace, requests)
    server = replica(CARD, MODEL, tp=None)
    return server, check_context(trace, server.rules.max_model_tokens, "refuse")[0]


def at_load(trace: Trace, load: float | None, saturation: Saturation) -> Trace:
    if load is None:
        return replace(trace, arrived_seconds=np.zeros(len(trace)))
    return saturation.at_load(trace, load)


def best_of(trace: Trace, server: Replica) -> Best:
    means = {}
    for order in ORDERS:
        outcome = simulate_bundle(trace, server, Bundle(order, order, prediction="oracle"), seed=0)
        ttft, e2e = times_of(outcome)
        means[order] = (float(np.nanmean(e2e)), float(np.nanmean(ttft)))
    ended, begun = (min(means, key=lambda order: means[order][figure]) for figure in (0, 1))
    return Best(means[ended][0], ended, means[begun][1], begun)


def row(name: str, best: Best, bounds: LowerBounds) -> str:
    assert bounds.mean_e2e_seconds is not None, "every traffic here is served"
    assert bounds.mean_ttft_seconds is not None, "the same"
    parts = {part.name: part.mean_e2e_seconds for part in bounds.parts}
    cells = (
        name,
        f"{best.e2e:.3g} ({best.e2e_order})",
        *(f"{parts[one]:.3g}" for one in SHOWN),
        f"{best.e2e / parts['each completion']:.2f}",
        f"**{best.e2e / bounds.mean_e2e_seconds:.2f}**",
        f"{best.ttft:.3g} ({best.ttft_order})",
        f"{best.ttft / bounds.mean_ttft_seconds:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


HEAD = f"""\
# How tight the lower bounds are

The bounds of [bounds.md](../bounds.md) beside the best of four orders that know the true output lengths
({", ".join(ORDERS)}), {MODEL} on one {CARD}. Seconds of mean end-to-end
latency, and of mean TTFT. Regenerate with

```
HEADWAY_TRACES=FOLDER python -m benchmarks.studies.bounds.tightness > docs/results/lower-bounds.md
```

**A floor, not a target.** At load 0.5 the best order is at 1.2 to 3.1 times the bound (bursts: 4.7). Where orders
matter, at loads 0.9 to 2, it is at 1.5 to 17 times the bound, 4.2 times in the median. How much of that a better order
could gain, and how much is slack of the bound, is not known.

The replica has vLLM's prefix cache, and [load 1](../decisions/what-load-means.md) is measured while it is full.

*× each* is the best order over the bound on each completion (`alone`, `prefill compute`, `kv volume` and `work`
together). *× best* is the same over the largest of all bounds: `headway compare` shows it for that order as "× lower
bound". The truth lies between 1 and that number, for the best order tried need not be the best possible.

| traffic | best order, s | {" | ".join(SHOWN)} | × each | × best | best TTFT, s | × TTFT bound |
|---|---:|{"---:|" * len(SHOWN)}---:|---:|---:|---:|"""

TAIL = """
## How to read it

- **`crowding` helps where decodes read much context** and the replica has little time to spare: reasoning (2.31 →
  1.74 at load 0.9), recorded and generated conversations (5.27 → 4.08, 4.55 → 3.95). To serve that much in that time
  requests must run side by side, and then each sits through what all of them read. `steps and work` adds up to 6 %.
- **All at once**, one machine that does the least work first is the strongest bound. The best order is within 1.3–2.1
  of it.
- **Still loose from load 0.9 to 2 where prompts are most of the work** (documents, servegen_m_mid: 5–9). The proofs
  let a policy compute prompts beside decodes, whose steps read all weights anyhow, or when they hold up no other
  request. Charging each prompt to all requests that run beside it, by an argument on pairs, was worth 0–5 % where it
  could be proven (docs/dead-ends.md).
- **Loosest where prefixes are shared** (mooncake_conversation: 6–17; coding-agents at load 2: 9). A shared prefix
  counts as computed from the arrival of the first request that has it, and is kept for good. Conversations go on for
  the whole trace, and a full replica loses their blocks in between.
- **TTFT** is bounded by prompts only. Above saturation no order comes near, since there requests wait for memory.
  A decoding request could be preempted to make room, so no bound on TTFT can count memory. Load 1.2 of the
  conversations, where prompts alone would keep up, shows it (31–153).
"""


if __name__ == "__main__":
    main()
