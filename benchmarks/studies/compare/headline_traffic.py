"""The traffic of `benchmarks/studies/compare/headlines.py`: each published setting as closely as its text allows.

Traces are found in the folder HEADWAY_TRACES; what is drawn is drawn from one seed.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headway.bench.experiment.bundles import Bundle
from headway.bench.traces.loading import load_trace
from headway.simulator.outcome import StepRecord
from headway.simulator.replica import Replica
from headway.simulator.skipping import simulate
from headway.simulator.trace import Trace

SEED = 20_260_601
EWSJF_SHORT, EWSJF_LONG = (32, 512), (1_024, 3_996)  # the text: 32 to 4,096, 80/20; the parts' bounds are ours
EWSJF_OUTPUT = 100  # undisclosed; the authors' driver has 100

Tokens = npt.NDArray[np.int64]


def ewsjf_mix(requests: int, rate: float) -> Trace:
    """Poisson; 80 % short prompts and 20 % long ones, uniform."""
    draw = np.random.default_rng(SEED)
    short = draw.random(requests) < 0.8
    prompt = np.where(short, draw.integers(*EWSJF_SHORT, requests), draw.integers(*EWSJF_LONG, requests))
    return _open(f"ewsjf-{rate:g}", np.cumsum(draw.exponential(1 / rate, requests)), prompt)


def evenly_spaced(requests: int, rate: float) -> Trace:
    """The authors' driver: fixed gaps, prompts of 100 to 2,000 tokens."""
    draw = np.random.default_rng(SEED)
    return _open(f"even-{rate:g}", np.arange(requests) / rate, draw.integers(100, 2_001, requests))


def _open(name: str, arrived: npt.NDArray[np.float64], prompt: Tokens) -> Trace:
    output = np.full(len(prompt), EWSJF_OUTPUT, np.int64)
    return Trace(name, arrived - arrived[0], prompt.astype(np.int64), output, max_output_tokens=output)


def lmsys_burst(requests: int) -> Trace:
    """Lengths of LMSYS-Chat-1M turns, drawn with replacement from those at hand, all at 0."""
    path = Path(os.environ["HEADWAY_TRACES"]) / "lengths_apex_mix.jsonl.gz"
    with gzip.open(path, "rt") as file:
        rows = [row for row in map(json.loads, file) if row["category"] == "lmsys"]
    pairs = np.array([(row["input_length"], row["output_length"]) for row in rows], np.int64)
    return _burst("lmsys", pairs[np.random.default_rng(SEED).integers(0, len(pairs), requests)])


def long_burst(requests: int) -> Trace:
    """Long prompts: those of Mooncake's conversations that fit a context of 65,536, in place of LongBench's."""
    trace = load_trace("mooncake_conversation").trace
    pairs = np.stack([trace.prompt_tokens, trace.output_tokens], axis=1)
    fitting = pairs[pairs.sum(axis=1) <= 65_536]
    return _burst("long prompts", fitting[np.random.default_rng(SEED).permutation(len(fitting))[:requests]])


def _burst(name: str, pairs: Tokens) -> Trace:
    output = np.minimum(pairs[:, 1], 4_096)
    return Trace(name, np.zeros(len(pairs)), pairs[:, 0], output)


def class_means(trace: Trace) -> tuple[float, float]:
    """Mean output up to the median, and above it."""
    output = trace.output_tokens
    long = output > np.median(output)
    return float(output[~long].mean()), float(output[long].mean())


def closed_loop(clients: int, turns: int) -> Trace:
    """Clients that send one request after another: prompts and long outputs of a reasoning service."""
    source = load_trace("servegen_deepseek_r1").trace
    fitting = np.flatnonzero((source.prompt_tokens <= 4_096) & (source.output_tokens <= 12_000))
    rows = np.random.default_rng(SEED).choice(fitting, clients * turns, replace=False)
    session, turn = np.tile(np.arange(clients), turns), np.repeat(np.arange(turns), clients)
    return Trace(
        f"{clients} clients",
        np.repeat(np.arange(turns), clients) * 1e-3,
        source.prompt_tokens[rows],
        source.output_tokens[rows],
        max_output_tokens=np.full(len(rows), 12_000, np.int64),
        session=session,
        turn=turn,
        think_seconds=np.zeros(len(rows)),
    )


class _Stalls:
    """Notes how long each request that lost its memory stayed without a token: from there to the end of its return."""

    def __init__(self, trace: Trace) -> None:
        self.longest = np.zeros(len(trace))
        self._since: dict[int, int] = {}
        self._returned: dict[int, int] = {}

    def on_step(self, step: StepRecord) -> None:
        end = step.started_ps + step.duration_ps
        for row in step.preempted:
            self._since.setdefault(row, step.started_ps)
        here = {chunk[0] for chunk in step.chunks}
        for row in [row for row in self._returned if row not in here]:
            self.longest[row] = max(self.longest[row], (self._returned.pop(row) - self._since.pop(row)) * 1e-12)
        for row in here & self._since.keys():
            self._returned[row] = end


def longest_stall_seconds(trace: Trace, server: Replica, bundle: Bundle) -> npt.NDArray[np.float64]:
    """Each request's longest gap between tokens that a preemption made; gaps of ordinary steps are far below 1.5 s."""
    stalls = _Stalls(trace)
    truth = trace.output_tokens.tolist()
    policies = bundle.build(costs=server.costs, seed=0, truth=truth.__getitem__)
    simulate(trace, server.rules, server.step_time, policies, observer=stalls)
    return stalls.longest


def first(name: str, requests: int, context_tokens: int) -> Trace:
    """The first requests of a trace that fit a context."""
    trace = load_trace(name).trace
    rows = np.flatnonzero(trace.prompt_tokens + trace.output_tokens <= context_tokens)[:requests]
    return Trace(name, trace.arrived_seconds[rows], trace.prompt_tokens[rows], trace.output_tokens[rows])


def rate_of(trace: Trace) -> float:
    return (len(trace) - 1) / float(trace.arrived_seconds[-1] - trace.arrived_seconds[0])


def agents(sessions: int, requests: int, context_tokens: int) -> Trace:
    """Sessions of coding agents, all at once, each call as soon as the one before it is answered."""
    trace = load_trace("agentic_coding_weka").trace
    assert trace.session is not None
    assert trace.prefix_ids is not None
    over = trace.prompt_tokens + trace.output_tokens > context_tokens
    barred = np.unique(trace.session[over])
    allowed = [one for one in dict.fromkeys(trace.session.tolist()) if one not in barred][:sessions]
    rows = np.flatnonzero(np.isin(trace.session, allowed))
    return _at_once(trace, rows, requests)


def _at_once(trace: Trace, rows: Tokens, requests: int) -> Trace:
    assert trace.session is not None
    assert trace.turn is not None
    assert trace.prefix_ids is not None
    order = rows[np.lexsort((trace.session[rows], trace.turn[rows]))][:requests]
    turn = trace.turn[order]
    return Trace(
        "agents",
        turn * 1e-3,
        trace.prompt_tokens[order],
        trace.output_tokens[order],
        session=np.unique(trace.session[order], return_inverse=True)[1].astype(np.int64),
        turn=turn,
        think_seconds=np.zeros(len(order)),
        prefix_ids=[trace.prefix_ids[row] for row in order],
        prefix_block_tokens=trace.prefix_block_tokens,
    )
