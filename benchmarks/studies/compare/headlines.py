"""Published headlines, retold on the simulator: `docs/results/headlines.md`, one command a row.

    HEADWAY_TRACES=FOLDER python -m benchmarks.studies.compare.headlines ROW [--write]

ROW is one of ewsjf, ewsjf-authors, svf, past-future, sarathi, hrrn, or all. Prints the row's table; `--write` puts it
in its place on the page. Deterministic.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.studies.compare import headline_traffic as traffic
from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.metrics.agreement import times_of
from headway.bench.metrics.token_gaps import gap_spread
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import Replica, replica
from headway.simulator.trace import Trace

PAGE = Path(__file__).parents[3] / "docs" / "results" / "headlines.md"
SEED = 0
FCFS = Bundle("fcfs")


@dataclass(frozen=True)
class Day:
    """One simulated day and its per-request times."""

    trace: Trace
    outcome: DayOutcome
    ttft: npt.NDArray[np.float64]
    e2e: npt.NDArray[np.float64]

    @property
    def arrived(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.outcome.arrived_ps * 1e-12)

    @property
    def seconds(self) -> float:
        return self.outcome.makespan_ps * 1e-12

    def output_rate(self) -> float:
        return float(self.trace.output_tokens.sum()) / self.seconds

    def tokens_by(self, moment: float, *, prompts: bool) -> float:
        """Tokens a second of requests that ended by `moment`: what a benchmark of fixed duration counts."""
        done = self.arrived + self.e2e <= moment
        tokens = self.trace.output_tokens + (self.trace.prompt_tokens if prompts else 0)
        return float(tokens[done].sum()) / moment


def day(trace: Trace, server: Replica, bundle: Bundle) -> Day:
    outcome = simulate_bundle(trace, server, bundle, SEED)
    if outcome.refused:
        raise RuntimeError(f"{len(outcome.refused)} requests of {trace.name} do not fit: rebuild the setting")
    return Day(trace, outcome, *times_of(outcome))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1_000 else f"{value:,.0f}"


def ratio(value: float, base: float) -> str:
    return f"{number(value)} ({value / base:.2f}×)"


def older_vllm(server: Replica) -> Replica:
    """vLLM 0.11: no gate on the whole prompt, one batch in flight."""
    return replace(server, rules=replace(server.rules, reserve_full_prompt=False, async_scheduling=False))


def ewsjf() -> list[str]:
    """EWSJF, the paper's table: FCFS and EWSJF at four rates."""
    server = older_vllm(replica("a100", "llama-2-13b", tp=4))
    lanes = ("fcfs", "shortest-prompt-first", "ewsjf", "ewsjf-published", "ewsjf-authors")
    rows = []
    for rate in (10, 20, 30, 40):
        trace = traffic.ewsjf_mix(3_000, rate)
        window = float(trace.arrived_seconds[-1])
        base: Day | None = None
        for name in lanes:
            told = day(trace, server, Bundle(name, name))
            base = base or told
            short = trace.prompt_tokens <= traffic.EWSJF_SHORT[1]
            rows.append(
                [
                    f"{name} at {rate}/s",
                    ratio(told.output_rate(), base.output_rate()),
                    ratio(told.tokens_by(window, prompts=False), base.tokens_by(window, prompts=False)),
                    ratio(told.tokens_by(window, prompts=True), base.tokens_by(window, prompts=True)),
                    ratio(float(told.ttft[short].mean()), float(base.ttft[short].mean())),
                    ratio(float(told.ttft[~short].mean()), float(base.ttft[~short].mean())),
                ]
            )
    head = ["policy", "output tokens/s, whole day", "… ended by the last arrival", "… with prompts", "TTFT short, s"]
    return table([*head, "TTFT long, s"], rows)


def ewsjf_authors() -> list[str]:
    """The authors' benchmark driver."""
    server = older_vllm(replica("a100", "llama-3.1-8b", tp=1, max_num_batched_tokens=7_000))
    options = {"ordering": {"lanes": 30, "lane_tokens": 64, "step": 1_500}}
    bundles = (FCFS, Bundle("shortest-prompt-first", "shortest-prompt-first"))
    bundles += (Bundle("ewsjf-authors", "ewsjf-authors", options=options),)
    rows = []
    for rate in (10, 20):
        trace = traffic.evenly_spaced(2_000, rate)
        base: Day | None = None
        for bundle in bundles:
            told = day(trace, server, bundle)
            base = base or told
            shorter = trace.prompt_tokens <= np.median(trace.prompt_tokens)
            rows.append(
                [
                    f"{bundle.label} at {rate}/s",
                    ratio(told.output_rate(), base.output_rate()),
                    ratio(float(told.e2e.mean()), float(base.e2e.mean())),
                    ratio(float(told.ttft[shorter].mean()), float(base.ttft[shorter].mean())),
                    ratio(float(told.ttft[~shorter].mean()), float(base.ttft[~shorter].mean())),
                ]
            )
    return table(["policy", "output tokens/s", "mean latency, s", "TTFT shorter half, s", "TTFT longer half, s"], rows)


def svf() -> list[str]:
    """SVF and 1-bit SVF: a burst of 2,000 requests, seconds per output token."""
    known, guessed = {"prediction": "oracle"}, {"prediction": "oracle-noisy"}
    rows = []
    for label, trace in (("LMSYS", traffic.lmsys_burst(2_000)), ("long prompts", traffic.long_burst(2_000))):
        short, long = traffic.class_means(trace)
        median = float(np.median(trace.output_tokens))
        bit = {"ordering": {"threshold_tokens": median, "short_tokens": short, "long_tokens": long}}
        bundles = (
            FCFS,
            Bundle("SJF", "shortest-job-first", **guessed),
            Bundle("1-bit SVF", "smallest-volume-first-1bit", options=bit, **guessed),
            Bundle("SVF", "smallest-volume-first", **guessed),
            Bundle("oracle SJF", "shortest-job-first", **known),
            Bundle("oracle 1-bit SVF", "smallest-volume-first-1bit", options=bit, **known),
            Bundle("oracle SVF", "smallest-volume-first", **known),
            Bundle("oracle SVF, peak check", "smallest-volume-first", admission="peak-check", **known),
        )
        server = replica("a100", "llama-3.1-8b", tp=1, max_model_tokens=65_536)
        base: npt.NDArray[np.float64] | None = None
        for bundle in bundles:
            told = day(trace, server, bundle)
            each = told.e2e / trace.output_tokens
            base = each if base is None else base
            rows.append(
                [
                    f"{label}: {bundle.label}",
                    ratio(float(each.mean()), float(base.mean())),
                    ratio(float(np.percentile(each, 95)), float(np.percentile(base, 95))),
                    number(told.output_rate()),
                    number(float(told.outcome.preemptions.sum())),
                ]
            )
    return table(["policy", "s/token mean", "P95", "tokens/s", "preemptions"], rows)


def past_future() -> list[str]:
    """Past-Future admission: goodput of closed loops of clients, long outputs."""
    server = replica("a100", "llama-3.1-8b", tp=1, kv_tokens=120_000, max_num_seqs=1_024)
    gates: dict[str, Bundle] = {
        "conservative (reserve the bound)": Bundle("c", admission="reserve-max"),
        "aggressive (what fits now)": Bundle("a", admission="greedy"),
        "past-future": Bundle("p", admission="past-future", prediction="past-future"),
        "overflow-probability (ours)": Bundle("o", admission="overflow-probability", prediction="histogram"),
        "peak check, true lengths": Bundle("t", admission="peak-check", prediction="oracle"),
    }
    rows = []
    for clients in (30, 40, 50, 60):
        trace = traffic.closed_loop(clients, 10)
        for label, bundle in gates.items():
            told = day(trace, server, bundle)
            stall = traffic.longest_stall_seconds(trace, server, bundle)
            good = (told.ttft <= 10.0) & (stall <= 1.5)
            rows.append(
                [
                    f"{label}, {clients} clients",
                    number(float(good.sum()) / told.seconds),
                    f"{100 * good.mean():.1f} %",
                    number(float(np.percentile(told.ttft, 99))),
                    number(float(np.percentile(stall, 99))),
                    number(float(told.outcome.preemptions.sum())),
                    number(told.output_rate()),
                ]
            )
    head = ["admission", "goodput, requests/s", "meet the SLO", "TTFT p99, s", "longest gap p99, s", "preemptions"]
    return table([*head, "tokens/s"], rows)


def sarathi() -> list[str]:
    """Chunked prefill against none: the highest rate within a bound on P99 time between tokens."""
    settings: dict[str, Replica] = {}
    for seats in (32, 64, 128):
        whole = replica("a100", "llama-3.1-8b", tp=1, max_model_tokens=8_192, max_num_seqs=seats)
        rules = replace(whole.rules, chunked_prefill=False, max_num_batched_tokens=8_192, async_scheduling=False)
        settings[f"no chunks, {seats} seats"] = replace(whole, rules=rules)
    for budget in (512, 2_048):
        chunks = replica("a100", "llama-3.1-8b", tp=1, max_model_tokens=8_192, max_num_seqs=128)
        rules = replace(chunks.rules, max_num_batched_tokens=budget, async_scheduling=False)
        settings[f"chunks, budget {budget}"] = replace(chunks, rules=rules)
    rows = []
    for name in ("lengths_sharegpt_8k", "lengths_arxiv_summarization"):
        trace = traffic.first(name, 1_500, 8_192)
        found = {
            (bound, label): capacity(trace, server, bound) for bound in (0.1, 0.5) for label, server in settings.items()
        }
        for label in settings:
            cells = []
            for bound in (0.1, 0.5):
                best = max(value for (b, one), value in found.items() if b == bound and one.startswith("no"))
                cells.append(f"{found[bound, label]:.2f}" + (f" ({found[bound, label] / best:.2f}×)" if best else ""))
            rows.append([f"{name.removeprefix('lengths_')}: {label}", *cells])
    return table(["engine", "requests/s at P99 TBT ≤ 100 ms", "≤ 500 ms"], rows)


def capacity(trace: Trace, server: Replica, bound_seconds: float) -> float:
    """Highest rate, to 2 %, with P99 of all token gaps within the bound and a median wait of at most 2 s."""

    def holds(rate: float) -> bool:
        arrived = trace.arrived_seconds * (traffic.rate_of(trace) / rate)
        told = day(replace(trace, arrived_seconds=arrived), server, FCFS)
        waits = (told.outcome.admitted_ps - told.outcome.arrived_ps) * 1e-12
        gap = gap_spread(told.outcome.gaps, shares=(0.99,))[1]
        return gap <= bound_seconds and float(np.median(waits)) <= 2.0

    low, high = 0.02, 40.0
    if not holds(low):
        return 0.0
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def hrrn() -> list[str]:
    """HRRN over uncached tokens: 100 agent sessions at once, prefix caching."""
    rows = []
    names = ("fcfs", "longest-prefix-match", "shortest-uncached-prefill-first", "highest-response-ratio")
    for memory, kv_tokens in (("GPU memory", None), ("room for all", 6_000_000)):
        server = replica("h200", "llama-3.1-70b", tp=8, precision="fp8", prefix_caching=True, kv_tokens=kv_tokens)
        trace = traffic.agents(100, 4_000, server.rules.context_tokens)
        prompts = float(trace.prompt_tokens.sum())
        base: Day | None = None
        for name in names:
            told = day(trace, server, Bundle(name, name))
            base = base or told
            rows.append(
                [
                    f"{name}, {memory}",
                    ratio(float(told.ttft.mean()), float(base.ttft.mean())),
                    ratio(float(np.percentile(told.ttft, 99)), float(np.percentile(base.ttft, 99))),
                    ratio(prompts / told.seconds, prompts / base.seconds),
                    f"{100 * told.outcome.cached_tokens.sum() / prompts:.1f} %",
                ]
            )
    return table(["order", "TTFT mean, s", "TTFT p99, s", "input tokens/s", "prompt tokens from the cache"], rows)


ROWS: dict[str, Callable[[], list[str]]] = {
    "ewsjf": ewsjf,
    "ewsjf-authors": ewsjf_authors,
    "svf": svf,
    "past-future": past_future,
    "sarathi": sarathi,
    "hrrn": hrrn,
}


def main(arguments: Sequence[str]) -> int:
    named = [one for one in arguments if one != "--write"]
    if not named or any(one not in (*ROWS, "all") for one in named):
        print(f"name a row: {', '.join(ROWS)} or all", file=sys.stderr)
        return 2
    for name in ROWS if "all" in named else named:
        lines = "\n".join(ROWS[name]())
        print(f"{name}\n\n{lines}\n", flush=True)
        if "--write" in arguments:
            start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
            before, rest = PAGE.read_text(encoding="utf-8").split(start)
            PAGE.write_text(f"{before}{start}{lines}\n{end}{rest.split(end)[1]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
