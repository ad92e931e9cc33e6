"""The cells of the regret table: what is measured in each, and the folder that keeps it.

A *setting* is a trace on a replica with ample or squeezed KV memory; a *cell* is a setting at a load; a *row* is one
order's day in a cell. A folder holds one JSON file a setting. What a file holds already is not measured again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.parallel import spread
from headway.bench.experiment.saturation import at_rate, measure_saturation
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.metrics.run_metrics import Slo, summarise
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import head, repeated
from headway.bench.user_mistake import UserMistake
from headway.bounds.lower_bounds import lower_bounds
from headway.policies.catalog import ORDERING
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.replica import Replica, replica
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

TRACES = (  # sorted by name; those at even places (second, fourth, …) are the training half, the others the test half
    "agentic_coding_neon", "agentic_coding_weka", "azure_code_2023", "azure_conv_2023", "lengths_apex_mix",
    "lengths_arxiv_summarization", "lengths_sharegpt_8k", "mooncake_conversation", "mooncake_synthetic",
    "servegen_deepseek_r1", "servegen_m_large", "servegen_m_mid", "servegen_m_small", "servegen_mm_image",
)  # fmt: skip
HALVES: Mapping[str, tuple[str, ...]] = {"train": TRACES[1::2], "test": TRACES[0::2], "all": TRACES}
REPLICAS: Mapping[str, tuple[str, str, int]] = {  # card, model, GPUs
    "8B": ("h100", "llama-3.1-8b", 1),
    "70B": ("h100", "llama-3.1-70b", 4),
    "MoE": ("h100", "qwen3-30b-a3b", 2),
}
MEMORIES = ("ample", "squeezed")
LOADS = (0.5, 0.7, 0.9, 1.1)
REQUESTS = 4_000
FEWER = 1_500  # of those with the longest prompts or answers, whose requests take several times as long to simulate
LONG = (
    "agentic_coding_neon",
    "agentic_coding_weka",
    "mooncake_conversation",
    "mooncake_synthetic",
    "servegen_deepseek_r1",
)
HALF = ("70B", "MoE")  # replicas on which half as many are taken
SLO = Slo(ttft_seconds=2.0, tpot_seconds=0.1)  # what `headway compare` asks for by default
SERVED_SHARE = 0.75  # of the requests that have to fit a replica's context, or the trace is left out there
SQUEEZE = 0.5  # of the KV tokens held on average at saturation
LARGEST_MARGIN = 1.25  # but room for the largest request, and some
SEED = 0

READS_NO_LENGTHS = frozenset({
    "fcfs", "shortest-prompt-first", "shortest-uncached-prefill-first", "highest-response-ratio", "ewsjf",
    "ewsjf-published", "ewsjf-authors", "longest-prefix-match", "random",
})  # fmt: skip
"""Orders whose days do not depend on the predictor; a cheap one will do."""

GATED_REPLICA, GATED_MEMORY, GATED_LOADS = "8B", "squeezed", (0.9, 1.1)
GATED_ORDERS = frozenset({
    "fcfs", "shortest-prompt-first", "highest-response-ratio", "ewsjf", "smallest-volume-first", "priced-work",
})  # fmt: skip
GATE = Bundle("gate", admission="overflow-probability", preemption="smallest-remaining-benefit", prediction="histogram")
"""What some orders are measured with once more, where memory is scarce: an admission policy and a choice of victims."""


def _tenants(trace: Trace) -> bool:
    return trace.tenant is not None and len(np.unique(trace.tenant)) > 1


HAS: Mapping[str, Callable[[Trace], bool]] = {
    "earliest-deadline-first": lambda trace: trace.deadline_seconds is not None,
    "goodput-first": lambda trace: trace.deadline_seconds is not None,
    "priority": lambda trace: trace.priority is not None,
    "priority-aging": lambda trace: trace.priority is not None,
    "fair-share": _tenants,
    "longest-prefix-match": lambda trace: trace.prefix_ids is not None,
}
"""What an order needs from a trace; else it is FCFS by its own definition (goodput-first: shortest job)."""


@dataclass(frozen=True)
class Wanted:
    """What of the table to measure: traces and replicas by name, loads, so many first requests of each trace."""

    traces: Sequence[str] = TRACES
    replicas: Sequence[str] = tuple(REPLICAS)
    loads: Sequence[float] = LOADS
    requests: int | None = None  # None: REQUESTS, of LONG traces FEWER, on HALF the replicas half of that
    orders: Sequence[str] | None = None  # None: every order that has something to read

    def requests_of(self, trace: str, replica: str) -> int:
        if self.requests is not None:
            return self.requests
        return (FEWER if trace in LONG else REQUESTS) // (2 if replica in HALF else 1)

    def pairs(self) -> list[tuple[str, str]]:
        return [(trace, name) for trace in self.traces for name in self.replicas]


def measure(wanted: Wanted, folder: Path, *, again: Sequence[str] = (), jobs: int | None, on_done: Any) -> None:
    """Fill the folder with every row that is wanted and not there; rows of the orders `again` are taken anew.

    Raises:
        UserMistake: the folder was made with other numbers of requests, or a trace cannot be found.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_requests(wanted, folder)
    for trace, name in wanted.pairs():
        for memory in MEMORIES:
            found = read(folder, trace, name, memory)
            if found is not None and again:
                for kind in ("rows", "gated"):
                    found[kind] = [row for row in found[kind] if row["order"] not in again]
                write(folder, found)
    spread(lambda pair: _measure_pair(wanted, folder, *pair), wanted.pairs(), jobs=jobs, on_done=on_done)


def check_requests(wanted: Wanted, folder: Path) -> None:
    """Raise UserMistake where the folder holds days of other numbers of requests."""
    for trace, name in wanted.pairs():
        asked = wanted.requests_of(trace, name)
        for memory in MEMORIES:
            found = read(folder, trace, name, memory)
            if found is not None and found["asked_requests"] != asked:
                raise UserMistake(
                    f"--out {folder}: it holds days of {found['asked_requests']:,} requests of {trace} and {asked:,} "
                    "are asked for; name another folder"
                )


def read(folder: Path, trace: str, name: str, memory: str) -> dict[str, Any] | None:
    """A setting as it was written; None before."""
    path = _path(folder, trace, name, memory)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_all(wanted: Wanted, folder: Path) -> list[dict[str, Any]]:
    """The settings that are there, in the order of the table."""
    found = (read(folder, trace, name, memory) for trace, name in wanted.pairs() for memory in MEMORIES)
    return [one for one in found if one is not None]


def write(folder: Path, setting: Mapping[str, Any]) -> None:
    """All of it or nothing: a command that is stopped leaves no half file."""
    path = _path(folder, setting["trace"], setting["replica"], setting["memory"])
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(setting, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def orders_for(trace: Trace, names: Sequence[str] | None = None) -> list[Bundle]:
    """The orders that find in this trace what they read; greedy admission, lengths learned, never the truth."""
    chosen = ORDERING if names is None else names
    told = [name for name in chosen if name not in HAS or HAS[name](trace)]
    return [Bundle(name, name, prediction="running-mean" if name in READS_NO_LENGTHS else "histogram") for name in told]


def gated_for(setting: Mapping[str, Any], load: float, names: Sequence[str] | None = None) -> list[Bundle]:
    """The orders that get an admission policy too, in the settings where that is measured."""
    if (setting["replica"], setting["memory"]) != (GATED_REPLICA, GATED_MEMORY) or load not in GATED_LOADS:
        return []
    chosen = ORDERING if names is None else names
    return [replace(GATE, label=name, ordering=name) for name in chosen if name in GATED_ORDERS]


def _path(folder: Path, trace: str, name: str, memory: str) -> Path:
    return folder / f"{trace}-{name}-{memory}.json"


def _measure_pair(wanted: Wanted, folder: Path, trace_name: str, replica_name: str) -> None:
    trace, settings = settings_of(wanted, folder, trace_name, replica_name)
    for setting, server in settings:
        _fill(wanted, folder, setting, trace, server)


def settings_of(
    wanted: Wanted, folder: Path, trace_name: str, replica_name: str
) -> tuple[Trace, list[tuple[dict[str, Any], Replica]]]:
    """The trace, and its settings that are not left out, each with its replica; written as far as they are new."""
    trace = head(load_trace(trace_name).trace, wanted.requests_of(trace_name, replica_name))
    card, model, gpus = REPLICAS[replica_name]
    ample = replica(card, model, tp=gpus)
    fits = trace.prompt_tokens + trace.output_tokens <= ample.rules.context_tokens
    if fits.mean() < SERVED_SHARE:
        why = f"only {100 * fits.mean():.0f} % of its requests fit a context of {ample.rules.context_tokens:,} tokens"
        for memory in MEMORIES:
            _keep(folder, _setting(wanted, trace_name, replica_name, memory) | {"left_out": why})
        return trace, []
    first = _settled(wanted, folder, trace_name, replica_name, "ample", trace, ample)
    largest = int((trace.prompt_tokens + trace.output_tokens)[fits].max())
    kv_tokens = max(int(SQUEEZE * first["held_tokens"]), int(LARGEST_MARGIN * largest))
    squeezed = replica(card, model, tp=gpus, kv_tokens=kv_tokens)
    if squeezed.rules.kv_blocks >= ample.rules.kv_blocks:
        why = f"its largest request needs {largest:,} of {ample.rules.kv_blocks * 16:,} KV tokens, so none can be taken"
        _keep(folder, _setting(wanted, trace_name, replica_name, "squeezed") | {"left_out": why})
        return trace, []
    second = _settled(wanted, folder, trace_name, replica_name, "squeezed", trace, squeezed)
    return trace, [(first, ample), (second, squeezed)]


def _setting(wanted: Wanted, trace: str, name: str, memory: str) -> dict[str, Any]:
    told = {"trace": trace, "replica": name, "memory": memory, "asked_requests": wanted.requests_of(trace, name)}
    return told | {"left_out": None, "bounds": {}, "rows": [], "gated": []}


def _keep(folder: Path, setting: dict[str, Any]) -> dict[str, Any]:
    write(folder, setting)
    return setting


def _settled(
    wanted: Wanted, folder: Path, trace_name: str, replica_name: str, memory: str, trace: Trace, server: Replica
) -> dict[str, Any]:
    """The setting as it is known, its saturation measured once."""
    known = read(folder, trace_name, replica_name, memory)
    if known is not None:
        return known
    held: list[float] = []

    def fcfs(one: Trace) -> DayOutcome:
        outcome = simulate_bundle(one, server, Bundle("fcfs"), SEED)
        held.append(held_blocks(outcome) * server.rules.block_tokens)
        return outcome

    saturation = measure_saturation(trace, fcfs)
    facts = {
        "requests": len(trace),
        "kv_tokens": server.rules.kv_blocks * server.rules.block_tokens,
        "held_tokens": max(held),
        "saturation": saturation.requests_per_second,
        "closed_loop": saturation.closed_loop,
        "copies": saturation.copies,
    }
    return _keep(folder, _setting(wanted, trace_name, replica_name, memory) | facts)


def held_blocks(outcome: DayOutcome) -> float:
    """KV blocks held on average until the last request is admitted."""
    last = float(outcome.admitted_ps.max())  # in floats, for block-picoseconds of a long day overflow 64 bits
    moments, blocks = np.array(outcome.curve_ps, float), np.array(outcome.curve_blocks, float)
    inside = moments < last
    spans = np.diff(np.append(moments[inside], last))
    return float((blocks[inside] * spans).sum() / spans.sum()) if spans.sum() > 0 else float(blocks.max())


def _fill(wanted: Wanted, folder: Path, setting: dict[str, Any], trace: Trace, server: Replica) -> None:
    """Every row that is wanted of this setting and missing, written after each load."""
    for load in wanted.loads:
        there = {kind: {row["order"] for row in setting[kind] if row["load"] == load} for kind in ("rows", "gated")}
        asked = {"rows": orders_for(trace, wanted.orders), "gated": gated_for(setting, load, wanted.orders)}
        missing = [(kind, one) for kind in asked for one in asked[kind] if one.label not in there[kind]]
        if not missing and str(load) in setting["bounds"]:
            continue
        day = at_rate(repeated(trace, setting["copies"]), load * setting["saturation"])
        if str(load) not in setting["bounds"]:
            bounds = lower_bounds(day, server.rules, server.step_time)
            told = {"e2e_mean": bounds.mean_e2e_seconds, "ttft_mean": bounds.mean_ttft_seconds}
            setting["bounds"][str(load)] = told
        for kind, one in missing:
            setting[kind].append({"load": load, "order": one.label} | numbers(day, server, one))
            setting[kind].sort(key=lambda row: (row["load"], row["order"]))
        write(folder, setting)


def numbers(day: Trace, server: Replica, order: Bundle) -> dict[str, float | int | None]:
    outcome = simulate_bundle(day, server, order, SEED)
    told = summarise(day, outcome, SLO, None, kv_blocks=server.rules.kv_blocks)
    waits = (outcome.first_token_ps - outcome.arrived_ps)[outcome.first_token_ps != NEVER]
    return {
        "ttft_mean": told.ttft_seconds.mean,
        "ttft_p99": told.ttft_seconds.p99,
        "ttft_longest": float(waits.max()) / PS_PER_SECOND,
        "ttft_large_prompts": told.ttft_longest_5pct_seconds.mean,
        "normalised_mean": told.normalised_latency_seconds_per_token.mean,
        "goodput": told.goodput,
        "e2e_mean": told.e2e_seconds.mean,
        "completed": told.completed,
        "refused": told.refused,
        "preemptions": told.preemptions,
    }


def cells_of(
    settings: Sequence[Mapping[str, Any]], kind: str = "rows"
) -> Iterator[tuple[Mapping[str, Any], float, dict[str, Any]]]:
    """(setting, load, rows by order) of everything that was measured; `kind` "gated" with an admission policy."""
    for setting in settings:
        for load in dict.fromkeys(row["load"] for row in setting[kind]):
            yield setting, load, {row["order"]: row for row in setting[kind] if row["load"] == load}
