"""What the tables of docs/results/ewsjf.md share: replicas, traffic, the numbers of a run, and how they are printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.parallel import spread
from headway.bench.experiment.saturation import Saturation, measure_saturation
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import check_context, head
from headway.scheduling.scheduler import Policies
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.replica import Replica, replica
from headway.simulator.trace import Trace

SEEDS = (0, 1, 2)
PAPER_REQUESTS, TRACE_REQUESTS = 3_000, 4_000


class Numbers(NamedTuple):
    """Of one run; seconds and tokens per second."""

    mean: float
    p99: float
    short: float  # mean TTFT of the shorter half, or of the short class
    long: float
    longest_wait: float
    tokens_per_second: float  # output tokens over the makespan
    early_tokens_per_second: float  # of requests completed by the last arrival, over the time until then
    completed: int


def numbers(trace: Trace, outcome: DayOutcome, short_below: float | None = None) -> Numbers:
    started = outcome.first_token_ps != NEVER
    ttft = (outcome.first_token_ps - outcome.arrived_ps) / 1e12
    prompts = trace.prompt_tokens
    short = started & (prompts <= (np.median(prompts) if short_below is None else short_below))
    long = started & (prompts >= np.percentile(prompts[started], 95) if short_below is None else prompts > short_below)
    wait = (outcome.admitted_ps - outcome.arrived_ps)[started] / 1e12
    done = started & (outcome.ended_ps != NEVER)
    last = outcome.arrived_ps.max()
    early = done & (outcome.ended_ps <= last)
    return Numbers(
        ttft[started].mean(), np.percentile(ttft[started], 99), ttft[short].mean(), ttft[long & started].mean(),
        wait.max(), trace.output_tokens[done].sum() / (outcome.makespan_ps / 1e12),
        trace.output_tokens[early].sum() / (last / 1e12), int(done.sum()),
    )  # fmt: skip


def ewsjf(label: str, ordering: str = "ewsjf", **options: Any) -> Bundle:
    return Bundle(label, ordering, options={"ordering": options} if options else {})


def paper_trace(seed: int) -> Trace:
    """80 % short (32–256 tokens), 20 % long (1,024–3,996: the model's context holds 100 outputs more); Poisson."""
    random = np.random.default_rng(seed)
    n = PAPER_REQUESTS
    short = random.random(n) < 0.8
    prompts = np.where(short, random.integers(32, 257, n), random.integers(1_024, 3_997, n))
    gaps = random.exponential(0.1, n)
    return Trace("paper", np.cumsum(gaps), prompts.astype(np.int64), np.full(n, 100, np.int64))


@cache
def paper_server() -> Replica:
    return replica("a100", "llama-2-13b")


@cache
def real(name: str) -> tuple[Replica, Trace, Saturation]:
    """A replica, the first requests of a trace, and the saturation of the replica under FCFS."""
    trace = head(load_trace(name, requests=TRACE_REQUESTS).trace, TRACE_REQUESTS)
    server = replica("h100", "llama-3.1-8b")
    trace, _ = check_context(trace, server.rules.max_model_tokens, "refuse")
    return server, trace, saturation(server, trace)


def saturation(server: Replica, trace: Trace) -> Saturation:
    return measure_saturation(trace, lambda t: simulate_bundle(t, server, Bundle("fcfs"), 0))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def seconds(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def each(cells: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
    return spread(work, cells, jobs=2, on_done=lambda: None)


def lanes_of(policies: Policies) -> Any:
    return policies.ordering._lanes  # type: ignore[union-attr]
