"""Statistics of a trace: rate, burstiness, lengths, tenants, sessions, and what a prefix cache would hit."""

from __future__ import annotations

import heapq
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.simulator.trace import Trace

IDC_BIN_SECONDS = 10
SINGLE_SERVER_LOAD = 0.8

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ValueRange:
    """Mean and quantiles of one quantity."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """How unevenly prefill work is spread over requests, and what that costs a queue that ignores it.

    Attributes:
        top_1_percent: share of all tokens in the 1 % of requests with the most; likewise 5 and 10.
        scv: squared coefficient of variation of the tokens of a request.
        fcfs_over_sjf: mean wait under first-come-first-served ÷ under shortest-job-first in one non-preemptive server
            whose service time is proportional to the tokens, at 80 % load. It ranks traces by head-of-line blocking,
            and predicts nothing about an engine. 1 if no request waits.
    """

    top_1_percent: float
    top_5_percent: float
    top_10_percent: float
    scv: float
    fcfs_over_sjf: float


@dataclass(frozen=True, slots=True)
class TenantShares:
    """How requests and tokens spread over tenants.

    Attributes:
        tenants: how many.
        largest_of_requests: share of the requests of the tenant with the most.
        largest_of_prompt_tokens: share of the prompt tokens of the tenant with the most.
    """

    tenants: int
    largest_of_requests: float
    largest_of_prompt_tokens: float


@dataclass(frozen=True, slots=True)
class Sessions:
    """Closed-loop sessions: how many, how long, and the client's pause before a follow-up."""

    sessions: int
    turns: ValueRange
    pause_seconds: ValueRange | None


@dataclass(frozen=True, slots=True)
class TraceDescription:
    """The statistics of a trace.

    Attributes:
        name: the trace.
        requests: how many.
        span_seconds: first arrival to last.
        requests_per_second: requests ÷ span; 0 where all arrive at once.
        arrival_cv: coefficient of variation of the gaps between arrivals; 1 is Poisson. None below 3 requests.
        arrival_idc: variance ÷ mean of the arrivals in whole bins of 10 s; 1 is Poisson. None below 2 bins.
        prompt_tokens: whole prompts.
        output_tokens: generated tokens.
        prefill: of whole prompts.
        prefix_hit: share of the prompt tokens that an unbounded prefix cache finds; None without prefix ids.
        uncached_prefill: of what that cache leaves to compute.
        tenants: None if the trace names none.
        sessions: None where there are none.
        deadlines: share of the requests with one for the first token.
        later_deadlines: share of the requests with one per output token or for the last token.
        programs: how many, each of several requests perhaps.
    """

    name: str
    requests: int
    span_seconds: float
    requests_per_second: float
    arrival_cv: float | None
    arrival_idc: float | None
    prompt_tokens: ValueRange
    output_tokens: ValueRange
    prefill: PrefillWork
    prefix_hit: float | None
    uncached_prefill: PrefillWork | None
    tenants: TenantShares | None
    sessions: Sessions | None
    deadlines: float
    later_deadlines: float
    programs: int

    def as_json(self) -> dict[str, Any]:
        """The same numbers as plain values, keys as here."""
        return asdict(self)


def describe(trace: Trace) -> TraceDescription:
    """The statistics of a trace; arrivals are taken as recorded, also those of follow-up turns."""
    span = float(trace.arrived_seconds[-1] - trace.arrived_seconds[0])
    hits = None if trace.prefix_ids is None else prefix_hits(trace)
    later = np.zeros(len(trace), np.bool_)
    for column in (trace.tpot_deadline_seconds, trace.end_deadline_seconds):
        if column is not None:
            later |= ~np.isnan(column)
    deadlines, programs = trace.deadline_seconds, trace.program
    return TraceDescription(
        name=trace.name,
        requests=len(trace),
        span_seconds=span,
        requests_per_second=len(trace) / span if span else 0.0,
        arrival_cv=_gap_cv(trace.arrived_seconds),
        arrival_idc=_dispersion(trace.arrived_seconds),
        prompt_tokens=_spread(trace.prompt_tokens),
        output_tokens=_spread(trace.output_tokens),
        prefill=_work(trace.arrived_seconds, trace.prompt_tokens),
        prefix_hit=None if hits is None else float(hits.sum() / trace.prompt_tokens.sum()),
        uncached_prefill=None if hits is None else _work(trace.arrived_seconds, trace.prompt_tokens - hits),
        tenants=_tenants(trace),
        sessions=_sessions(trace),
        deadlines=0.0 if deadlines is None else float(np.mean(~np.isnan(deadlines))),
        later_deadlines=float(later.mean()),
        programs=0 if programs is None else len(np.unique(programs[programs >= 0])),
    )


def prefix_hits(trace: Trace) -> npt.NDArray[np.int64]:
    """Per request the prompt tokens in its leading blocks that some earlier request had too (an unbounded cache)."""
    assert trace.prefix_ids is not None
    seen: set[int] = set()
    hits = np.zeros(len(trace), dtype=np.int64)
    size = trace.prefix_block_tokens
    for row, prompt in enumerate(trace.prompt_tokens.tolist()):
        ids = trace.prefix_ids[row]
        cached = next((place for place, block in enumerate(ids) if block not in seen), len(ids))
        hits[row] = min(cached * size, prompt)
        seen.update(ids[cached:])
    return hits


def _spread(values: npt.NDArray[Any]) -> ValueRange:
    p50, p90, p99 = np.percentile(values, [50, 90, 99]).tolist()
    return ValueRange(float(values.mean()), p50, p90, p99, float(values.max()))


def _gap_cv(arrived: Numbers) -> float | None:
    gaps = np.diff(arrived)
    return float(gaps.std() / gaps.mean()) if len(gaps) > 1 and gaps.mean() > 0 else None


def _dispersion(arrived: Numbers) -> float | None:
    places = ((arrived - arrived[0]) // IDC_BIN_SECONDS).astype(np.int64)
    bins = int(places[-1])  # without the last one, which is cut short by the trace's end
    if bins < 2:
        return None
    # Only bins with arrivals are stored: one wrong timestamp may put years between two requests.
    counts = np.unique(places[places < bins], return_counts=True)[1].astype(np.float64)
    mean = float(counts.sum()) / bins
    return (float((counts**2).sum()) / bins - mean**2) / mean


def _work(arrived: Numbers, tokens: npt.NDArray[np.int64]) -> PrefillWork:
    falling = np.sort(tokens)[::-1]
    total = max(int(falling.sum()), 1)

    def top(share: float) -> float:
        return float(falling[: math.ceil(len(falling) * share)].sum() / total)

    mean = float(tokens.mean())
    scv = float(tokens.var() / mean**2) if mean else 0.0
    return PrefillWork(top(0.01), top(0.05), top(0.1), scv, _blocking(arrived, tokens))


def _blocking(arrived: Numbers, tokens: npt.NDArray[np.int64]) -> float:
    """Mean wait under FCFS ÷ under SJF in one server at 80 % load."""
    span = float(arrived[-1] - arrived[0])
    if not span or not tokens.sum():
        return 1.0
    service = tokens * (SINGLE_SERVER_LOAD * span / tokens.sum())
    # Lindley: what lies before request i is the running maximum of (arrival j − work before j) for j ≤ i
    before = np.cumsum(service) - service
    first_come = float(np.mean(before + np.maximum.accumulate(arrived - before) - arrived))
    shortest = _shortest_first_wait((arrived - arrived[0]).tolist(), service.tolist())
    return first_come / shortest if shortest > 0 else 1.0


def _shortest_first_wait(arrived: list[float], service: list[float]) -> float:
    waiting: list[tuple[float, int]] = []
    now = waited = 0.0
    at, count = 0, len(arrived)
    while at < count or waiting:
        if not waiting:
            now = max(now, arrived[at])
        while at < count and arrived[at] <= now:
            heapq.heappush(waiting, (service[at], at))
            at += 1
        took, row = heapq.heappop(waiting)
        waited += now - arrived[row]
        now += took
    return waited / count


def _tenants(trace: Trace) -> TenantShares | None:
    if trace.tenant is None:
        return None
    requests = np.bincount(trace.tenant)
    tokens = np.bincount(trace.tenant, weights=trace.prompt_tokens)
    return TenantShares(
        int((requests > 0).sum()), float(requests.max() / requests.sum()), float(tokens.max() / tokens.sum())
    )


def _sessions(trace: Trace) -> Sessions | None:
    if trace.session is None or trace.turn is None or trace.think_seconds is None:
        return None
    inside = trace.session >= 0
    turns = np.bincount(trace.session[inside])
    turns = turns[turns > 0]
    pauses = trace.think_seconds[inside & (trace.turn > 0)]
    return Sessions(len(turns), _spread(turns), _spread(pauses) if len(pauses) else None) if len(turns) else None
