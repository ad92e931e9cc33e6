"""Hand-made days with known answers, and a small queue to make comparisons that look like real ones."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence

import numpy as np

from headway.bench.experiment.comparison import Comparison, Json, Run, replica_facts, trace_facts
from headway.bench.metrics.curves import curves
from headway.bench.metrics.run_metrics import Slo, summarise
from headway.simulator.outcome import NEVER, DayOutcome, TokenGaps
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

KV_BLOCKS = 1000


def ps(seconds: Sequence[float | None]) -> np.ndarray:
    return np.array([NEVER if s is None else round(s * PS_PER_SECOND) for s in seconds], np.int64)


def make_trace(prompts: Sequence[int], outputs: Sequence[int], **columns: object) -> Trace:
    n = len(prompts)
    arrived = columns.pop("arrived", np.zeros(n))
    return Trace("by hand", np.asarray(arrived, float), np.array(prompts), np.array(outputs), **columns)  # type: ignore[arg-type]


def make_day(
    first: Sequence[float | None],
    ended: Sequence[float | None],
    *,
    arrived: Sequence[float | None] | None = None,
    refused: dict[int, str] | None = None,
    makespan: float = 100.0,
    gaps: Sequence[TokenGaps] = (),
    preemptions: int = 0,
    blocks_peak: int = 0,
) -> DayOutcome:
    n = len(first)
    zeros = np.zeros(n, np.int64)
    spread_preemptions = zeros.copy()
    if n:
        spread_preemptions[0] = preemptions
    return DayOutcome(
        arrived_ps=ps([0.0] * n if arrived is None else arrived),
        admitted_ps=ps(first),
        first_token_ps=ps(first),
        ended_ps=ps(ended),
        cached_tokens=zeros,
        preemptions=spread_preemptions,
        recomputed_tokens=spread_preemptions * 16,
        refused=refused or {},
        makespan_ps=round(makespan * PS_PER_SECOND),
        steps=0,
        kv_blocks_peak=blocks_peak,
        gaps=np.array(gaps, np.int64).reshape(-1, 4),
    )


def queue_day(trace: Trace, order: str, seats: int = 12) -> DayOutcome:
    """A many-seat queue without memory limits: enough truth for tables and pictures, no engine needed."""
    service = trace.prompt_tokens * 1e-4 + trace.output_tokens * 0.01
    keys = {
        "fcfs": trace.arrived_seconds,
        "shortest-prompt-first": trace.prompt_tokens.astype(float),
        "smallest-volume-first": service,
        "random": np.random.default_rng(7).random(len(trace)),
    }[order]
    n = len(trace)
    first, ended = np.zeros(n), np.zeros(n)
    waiting: list[tuple[float, int]] = []
    running: list[tuple[float, int]] = []
    samples: list[tuple[float, int, int, int]] = []
    arrivals = list(trace.arrived_seconds)
    row, now = 0, 0.0
    while row < n or waiting or running:
        while row < n and arrivals[row] <= now:
            heapq.heappush(waiting, (keys[row], row))
            row += 1
        while waiting and len(running) < seats:
            _, r = heapq.heappop(waiting)
            first[r] = now + trace.prompt_tokens[r] * 1e-4 + 0.01
            ended[r] = now + service[r] + 0.01
            heapq.heappush(running, (ended[r], r))
        held = sum(int(trace.prompt_tokens[r]) // 64 + 1 for _, r in running)
        samples.append((now, len(waiting), len(running), min(held, KV_BLOCKS)))
        nexts = ([running[0][0]] if running else []) + ([arrivals[row]] if row < n else [])
        if not nexts:
            break
        now = min(nexts)
        while running and running[0][0] <= now:
            heapq.heappop(running)
    day = make_day(list(first), list(ended), arrived=list(trace.arrived_seconds), makespan=float(ended.max()))
    day.curve_ps = [round(s[0] * PS_PER_SECOND) for s in samples]
    day.curve_waiting = [s[1] for s in samples]
    day.curve_running = [s[2] for s in samples]
    day.curve_blocks = [s[3] for s in samples]
    day.kv_blocks_peak = max(day.curve_blocks)
    gaps = [TokenGaps(9_000_000_000 + int(o), 1000, int(o) - 1, 1) for o in trace.output_tokens if o > 1]
    day.gaps = np.array(gaps, np.int64).reshape(-1, 4)
    return day


def demo_trace(n: int = 400, load: float = 1.0) -> Trace:
    rng = np.random.default_rng(1)
    prompts = np.maximum(rng.lognormal(6.5, 1.3, n).astype(np.int64), 1)
    outputs = np.maximum(rng.lognormal(4.8, 0.9, n).astype(np.int64), 1)
    mean_service = float((prompts * 1e-4 + outputs * 0.01).mean())
    arrived = np.cumsum(rng.exponential(mean_service / 12 / load, n))
    tenants = ("heavy", "light")
    return Trace(
        "demo <chat & documents>",
        arrived,
        prompts,
        outputs,
        tenant=(rng.random(n) < 0.2).astype(np.int64),
        tenants=tenants,
    )


POLICIES = ("fcfs", "shortest-prompt-first", "smallest-volume-first", "random")


@functools.cache
def demo_run(policy: str, load: float | None, label: str | None = None, n: int = 400, slo: Slo | None = None) -> Run:
    trace = demo_trace(n, load or 0.9)
    day = queue_day(trace, policy)
    alone = trace.prompt_tokens * 1e-4 + trace.output_tokens * 0.01 + 0.01
    bundle: dict[str, Json] = {
        "ordering": {"name": policy, "options": {}},
        "admission": {"name": "greedy", "options": {}},
    }
    return Run(
        policy=label or policy,
        bundle=bundle,
        load=load,
        seed=0,
        metrics=summarise(trace, day, slo or Slo(2.0, 0.06), alone, kv_blocks=KV_BLOCKS),
        curves=curves(trace, day, kv_blocks=KV_BLOCKS),
        wall_seconds=0.25,
    )


def demo_comparison(
    policies: Sequence[str] = POLICIES,
    loads: Sequence[float | None] = (1.1,),
    labels: dict[str, str] | None = None,
    n: int = 400,
) -> Comparison:
    return Comparison(
        trace=trace_facts(demo_trace(n)),
        replica=replica_facts(
            hardware="H100-80GB",
            model="Llama-3.1-8B",
            tensor_parallel=1,
            kv_blocks=KV_BLOCKS,
            block_tokens=64,
            rules={"max_num_seqs": 12, "chunked_prefill": True},
            profile={"source": "made up for a test", "error": "not compared with anything"},
        ),
        slo=Slo(2.0, 0.06),
        saturation=None if loads == (None,) else {"requests_per_second": 7.25, "definition": "a backlog of the trace"},
        runs=tuple(demo_run(p, load, (labels or {}).get(p), n) for load in loads for p in policies),
        command="headway compare demo.jsonl --policy fcfs",
        version="0.1.0",
    )
