"""Metrics of one run: every number of the table, each with one definition.

Percentiles interpolate linearly between order statistics (numpy's default). An empty class of requests has no mean and
no percentile: None, never 0. A latency covers the requests that reached that point. The others are counted by
`completed`, `refused` and `unfinished`, and are misses in `goodput`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headway.bench.metrics.token_gaps import gap_spread
from headway.bench.metrics.token_goodput import token_goodput
from headway.bench.user_mistake import as_mistakes
from headway.config.slo_text import read_slo
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]

_SLO_FIELDS = {"ttft": "ttft_seconds", "tpot": "tpot_seconds", "e2e": "e2e_seconds"}


@dataclass(frozen=True, slots=True)
class Slo:
    """Service-level objectives of one request, each an upper bound in seconds (met when equal); None where not given.

    Names as in `vllm bench serve --goodput` (ttft, tpot, e2e), but the unit is written out.
    """

    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    e2e_seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Read `ttft=2s,tpot=60ms,e2e=30s`, any of the three in any order.

        Raises:
            UserMistake: unknown or repeated name, no unit, or a value that is not a positive number.
        """
        with as_mistakes():
            return cls.of(read_slo(text))

    @classmethod
    def of(cls, bounds: Mapping[str, float]) -> Slo:
        """Bounds in seconds by the names that `parse` reads."""
        return cls(**{_SLO_FIELDS[name]: seconds for name, seconds in bounds.items()})

    def given(self) -> dict[str, float]:
        """The bounds that are given, in seconds, by the names that `parse` reads."""
        bounds = ((name, getattr(self, field)) for name, field in _SLO_FIELDS.items())
        return {name: bound for name, bound in bounds if bound is not None}

    def to_json(self) -> dict[str, float | None]:
        """Bounds in seconds, None where not given."""
        return {name: getattr(self, name) for name in _SLO_FIELDS.values()}

    def __str__(self) -> str:
        """As `parse` reads it; empty without any bound."""
        return ",".join(f"{name}={_format_bound(bound)}" for name, bound in self.given().items())


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and percentiles of one quantity over one class of requests; all None when the class is empty."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, values: Floats) -> Summary:
        """Summarise finite values in any order."""
        if len(values) == 0:
            return cls()
        p50, p90, p99 = np.percentile(values, [50, 90, 99])
        return cls(float(values.mean()), float(p50), float(p90), float(p99))

    def to_json(self) -> dict[str, float | None]:
        """Keys mean, p50, p90, p99."""
        return {"mean": self.mean, "p50": self.p50, "p90": self.p90, "p99": self.p99}


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """Numbers of one run. Field names are the keys of the JSON; `DEFINITIONS` says what each means.

    `slowdown` is empty, and `jain_index` None (with several tenants), where the times alone were not given;
    `times_lower_bound` is None without a bound. Of live runs, what the engine alone knows is None (preemptions, KV,
    prefix hits). `load_imbalance` is None where there is one replica.
    """

    requests: int
    completed: int
    refused: int
    unfinished: int
    refused_reasons: Mapping[str, int]
    ttft_seconds: Summary
    ttft_short_half_seconds: Summary
    ttft_longest_5pct_seconds: Summary
    tpot_seconds: Summary
    itl_seconds: Summary
    e2e_seconds: Summary
    normalised_latency_seconds_per_token: Summary
    slowdown: Summary
    goodput: float
    throughput_tokens_per_second: float
    preemptions: int | None
    recomputed_tokens: int | None
    kv_peak_share: float | None
    jain_index: float | None
    makespan_seconds: float
    times_lower_bound: float | None
    prefix_hit_share: float | None = None
    load_imbalance: float | None = None
    failed: int = 0
    failed_reasons: Mapping[str, int] = field(default_factory=dict)
    longest_ttft_seconds: float | None = None
    offline_tokens_per_second: float | None = None
    total_tardiness_seconds: float | None = None
    offered_requests_per_second: float | None = None
    completed_requests_per_second: float | None = None
    token_goodput_tokens_per_second: float | None = None
    token_goodput_share: float | None = None

    def to_json(self) -> dict[str, object]:
        """The contract's keys, in the order of the fields."""
        values = {name: getattr(self, name) for name in self.__slots__}
        for name in ("refused_reasons", "failed_reasons"):
            values[name] = dict(sorted(values[name].items()))
        return {name: value.to_json() if isinstance(value, Summary) else value for name, value in values.items()}


DEFINITIONS: Mapping[str, str] = {
    "requests": "requests offered: all of the trace, also those refused or unfinished",
    "completed": "requests that produced their last token",
    "refused": "refused requests, with all later turns of their sessions; refused_reasons counts the reasons",
    "unfinished": "requests neither completed, refused nor failed: 0, unless the run was cut off before its end",
    "refused_reasons": "how many requests were refused for each reason",
    "ttft_seconds": "time to first token: from arrival to the end of the step that yields the first output token",
    "ttft_short_half_seconds": "TTFT of the requests whose whole prompt is at most the trace's median prompt",
    "ttft_longest_5pct_seconds": "TTFT of the requests whose whole prompt is at least the trace's 95th percentile",
    "tpot_seconds": "time per output token of a request: (end - first token) / (output tokens - 1); the first token is "
    "left out, as in vLLM and DistServe, and so are requests of one token",
    "itl_seconds": "inter-token latency: every gap between two tokens of a request, over all tokens",
    "e2e_seconds": "end to end: from arrival to the last token",
    "normalised_latency_seconds_per_token": "end-to-end seconds of a request divided by its output tokens (Orca, vLLM)",
    "slowdown": "end-to-end seconds divided by the seconds that the request takes alone on an idle, cold replica",
    "goodput": "share of the OFFERED requests that complete and meet every SLO; refused and unfinished are misses",
    "throughput_tokens_per_second": "output tokens of completed requests divided by the makespan",
    "preemptions": "times a running request lost its KV blocks and returned to the queue",
    "recomputed_tokens": "KV tokens computed again after preemptions, and after failures of a replica",
    "kv_peak_share": "most KV blocks in use at once, as a share of all",
    "jain_index": "Jain's fairness index (Jain, Chiu, Hawe 1984) over tenants of their mean speed, a request's speed "
    "being (seconds alone on an idle replica) / (end-to-end seconds), 0 when it did not complete; 1 is equal, 1/n "
    "means that one tenant of n gets all",
    "makespan_seconds": "from the trace's start to the last event",
    "times_lower_bound": "mean end-to-end seconds divided by a lower bound on them that holds for every policy on this "
    "trace and replica (docs/bounds.md); no policy is below 1, and the best possible may be well above it",
    "prefix_hit_share": "prompt tokens that the prefix cache held when their request was first admitted, as a share of "
    "all prompt tokens admitted",
    "load_imbalance": "most tokens that one replica computed, of prompts and of outputs, divided by the mean over the "
    "replicas; 1 is even",
    "failed": "requests lost with a replica that failed and not served by another one, with all later turns of their "
    "sessions; failed_reasons counts the reasons",
    "failed_reasons": "how many requests failed for each reason",
    "longest_ttft_seconds": "the longest TTFT of all requests that got a first token",
    "offline_tokens_per_second": "prompt and output tokens of completed offline requests divided by the makespan; None "
    "where all are online. Then latencies and goodput are those of online requests alone, but for itl_seconds, and "
    "times_lower_bound is None",
    "total_tardiness_seconds": "seconds by which first tokens came after their deadline, summed over all requests with "
    "a deadline that got one; None where none has a deadline",
    "offered_requests_per_second": "requests that arrived after the first one, divided by the time from the first to "
    "the last arrival; None where all arrive at one moment",
    "completed_requests_per_second": "completed requests divided by the makespan; None where that is 0",
    "token_goodput_tokens_per_second": "output tokens of the requests that kept every deadline which their client gave "
    "(TTFT, TPOT, end to end; of its program, whose requests then all count or none), divided by the makespan; None "
    "where no client gave one: a bound of the operator alone is none",
    "token_goodput_share": "the same tokens as a share of the output tokens of all requests with such a deadline; "
    "refused and unfinished ones are misses",
}
"""What each number means, in the order of `RunMetrics`."""


def summarise(
    trace: Trace,
    outcome: DayOutcome,
    slo: Slo,
    unloaded_seconds: Floats | None,
    *,
    kv_blocks: int,
    lower_bound_seconds: float | None = None,
    load_imbalance: float | None = None,
) -> RunMetrics:
    """Numbers of one simulated day.

    Args:
        trace: what was offered, n requests.
        outcome: the result of each request, row by row.
        slo: bounds for goodput; without any, goodput is the share completed.
        unloaded_seconds: per row, end-to-end seconds of the request alone on an idle replica, > 0; None if unknown.
        kv_blocks: usable KV blocks of the replica; of a fleet, of the one that `kv_blocks_peak` is told of.
        lower_bound_seconds: a bound that no policy's mean end-to-end seconds are below, over the completed requests;
            None if unknown.
        load_imbalance: of a fleet, see `DEFINITIONS`.

    Raises:
        ValueError: the columns do not fit together.
    """
    _check_rows(trace, outcome, unloaded_seconds)
    completed = completed_rows(outcome)
    ttft, e2e = seconds_per_row(outcome, outcome.first_token_ps), seconds_per_row(outcome, outcome.ended_ps)
    tpot = tpot_per_row(trace, outcome)
    seconds = outcome.makespan_ps / PS_PER_SECOND
    speed = None if unloaded_seconds is None else _speed(unloaded_seconds, e2e, completed)
    shorter, longest = length_classes(trace)
    started = outcome.first_token_ps != NEVER
    output, all_completed = int(trace.output_tokens[completed].sum()), completed
    kept = token_goodput(trace, outcome, ttft, tpot, e2e)
    online, offline_tokens = np.ones(len(trace), bool), None
    if trace.offline is not None and trace.offline.any():
        online, lower_bound_seconds = ~trace.offline, None
        tokens = int((trace.prompt_tokens + trace.output_tokens)[completed & trace.offline].sum())
        offline_tokens = tokens / seconds if seconds > 0 else 0.0
        started, completed = started & online, completed & online
    return RunMetrics(
        requests=len(trace),
        completed=int(all_completed.sum()),
        refused=len(outcome.refused),
        unfinished=len(trace) - int(all_completed.sum()) - len(outcome.refused) - len(outcome.failed),
        refused_reasons=dict(sorted(Counter(outcome.refused.values()).items())),
        ttft_seconds=Summary.of(ttft[started]),
        ttft_short_half_seconds=Summary.of(ttft[started & shorter]),
        ttft_longest_5pct_seconds=Summary.of(ttft[started & longest]),
        tpot_seconds=Summary.of(tpot[completed & (trace.output_tokens > 1)]),
        itl_seconds=Summary(*gap_spread(outcome.gaps)),
        e2e_seconds=Summary.of(e2e[completed]),
        normalised_latency_seconds_per_token=Summary.of(e2e[completed] / trace.output_tokens[completed]),
        slowdown=Summary() if unloaded_seconds is None else Summary.of((e2e / unloaded_seconds)[completed]),
        goodput=_share((completed & meets(slo, ttft, tpot, e2e))[online]),
        throughput_tokens_per_second=output / seconds if seconds > 0 else 0.0,
        preemptions=int(outcome.preemptions.sum()),
        recomputed_tokens=int(outcome.recomputed_tokens.sum()),
        kv_peak_share=outcome.kv_blocks_peak / kv_blocks,
        jain_index=_jain_over_tenants(trace, speed),
        makespan_seconds=seconds,
        times_lower_bound=(
            float(e2e[completed].mean()) / lower_bound_seconds if lower_bound_seconds and completed.any() else None
        ),
        prefix_hit_share=_hit_share(trace, outcome),
        load_imbalance=load_imbalance,
        failed=len(outcome.failed),
        failed_reasons=dict(sorted(Counter(outcome.failed.values()).items())),
        longest_ttft_seconds=float(ttft[started].max()) if started.any() else None,
        offline_tokens_per_second=offline_tokens,
        total_tardiness_seconds=_total_tardiness(trace, ttft, started),
        offered_requests_per_second=_arrival_rate(outcome),
        completed_requests_per_second=int(all_completed.sum()) / seconds if seconds > 0 else None,
        token_goodput_tokens_per_second=None if kept is None else kept.tokens / seconds if seconds > 0 else 0.0,
        token_goodput_share=None if kept is None else kept.share,
    )


def completed_rows(outcome: DayOutcome) -> Mask:
    """Which rows produced their last token."""
    completed: Mask = (outcome.first_token_ps != NEVER) & (outcome.ended_ps != NEVER)
    completed[list(outcome.refused)] = False
    return completed


def length_classes(trace: Trace) -> tuple[Mask, Mask]:
    """(shorter half, longest 5 %) of the requests by whole prompt, cached or not.

    At most the median, and at least the 95th percentile, of the trace's prompts. With ties both classes may be larger
    than their names say, and overlap when most prompts are equal.
    """
    if len(trace) == 0:
        return np.zeros(0, bool), np.zeros(0, bool)
    median, p95 = np.percentile(trace.prompt_tokens, [50, 95])
    return trace.prompt_tokens <= median, trace.prompt_tokens >= p95


def meets(slo: Slo, ttft: Floats, tpot: Floats, e2e: Floats) -> Mask:
    """Which requests meet every bound, seconds per row; a TPOT of NaN (a single token) cannot miss its bound."""
    met: Mask = np.ones(len(ttft), bool)
    for bound, values in ((slo.ttft_seconds, ttft), (slo.e2e_seconds, e2e)):
        if bound is not None:
            met = np.logical_and(met, values <= bound)
    if slo.tpot_seconds is not None:
        met = np.logical_and(met, (tpot <= slo.tpot_seconds) | np.isnan(tpot))
    return met


def jain(shares: Floats) -> float | None:
    """Jain's fairness index (Σx)² / (n·Σx²), in [1/n, 1]; None if every share is 0.

    Source: R. Jain, D. Chiu, W. Hawe, A Quantitative Measure of Fairness and Discrimination for Resource Allocation
    in Shared Computer Systems, DEC-TR-301, 1984.
    """
    squares = float((shares**2).sum())
    return float(shares.sum()) ** 2 / (len(shares) * squares) if squares > 0 else None


def _total_tardiness(trace: Trace, ttft: Floats, started: Mask) -> float | None:
    """Σ max(0, first token − deadline) over the rows that got a first token, seconds; None without deadlines."""
    if trace.deadline_seconds is None or np.isnan(trace.deadline_seconds).all():
        return None
    late = (ttft - trace.deadline_seconds)[started]
    return float(late[late > 0].sum())


def _arrival_rate(outcome: DayOutcome) -> float | None:
    """Arrivals per second, those that came to pass; None without a span."""
    arrived = outcome.arrived_ps[outcome.arrived_ps != NEVER]
    span = int(arrived.max() - arrived.min()) if len(arrived) else 0
    return (len(arrived) - 1) * PS_PER_SECOND / span if span else None


def _check_rows(trace: Trace, outcome: DayOutcome, unloaded_seconds: Floats | None) -> None:
    if len(outcome.ended_ps) != len(trace):
        raise ValueError(f"the outcome has {len(outcome.ended_ps)} rows, the trace {len(trace)}")
    if unloaded_seconds is not None and len(unloaded_seconds) != len(trace):
        raise ValueError(f"unloaded_seconds has {len(unloaded_seconds)} rows, the trace {len(trace)}")


def seconds_per_row(outcome: DayOutcome, until_ps: npt.NDArray[np.int64]) -> Floats:
    """Seconds from arrival, NaN where it did not happen."""
    return np.where(until_ps == NEVER, np.nan, (until_ps - outcome.arrived_ps) / PS_PER_SECOND)


def tpot_per_row(trace: Trace, outcome: DayOutcome) -> Floats:
    """Seconds per token after the first, NaN where there is no second."""
    gaps = trace.output_tokens - 1
    decode_seconds = (outcome.ended_ps - outcome.first_token_ps) / PS_PER_SECOND
    defined = (gaps > 0) & (outcome.ended_ps != NEVER) & (outcome.first_token_ps != NEVER)
    return np.where(defined, decode_seconds / np.maximum(gaps, 1), np.nan)


def _speed(unloaded_seconds: Floats, e2e: Floats, completed: Mask) -> Floats:
    return np.where(completed, unloaded_seconds / np.where(completed, e2e, 1.0), 0.0)


def _jain_over_tenants(trace: Trace, speed: Floats | None) -> float | None:
    """Over the tenants that offered anything; 1 when that is one tenant."""
    present = np.unique(trace.tenant) if trace.tenant is not None else np.zeros(1, np.int64)
    if len(present) <= 1:
        return 1.0
    if speed is None or trace.tenant is None:
        return None
    return jain(np.array([speed[trace.tenant == tenant].mean() for tenant in present]))


def _hit_share(trace: Trace, outcome: DayOutcome) -> float | None:
    """None if nothing was admitted."""
    tokens = int(trace.prompt_tokens[outcome.admitted_ps != NEVER].sum())
    return int(outcome.cached_tokens.sum()) / tokens if tokens else None


def _share(mask: Mask) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def _format_bound(seconds: float) -> str:
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"
