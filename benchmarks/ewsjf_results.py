"""The tables of docs/results/ewsjf.md, from the simulator and the traces in HEADWAY_TRACES.

Usage: python benchmarks/ewsjf_results.py [--only a,b,c,d,e] [--write docs/results/ewsjf.md]

Without --write the tables are printed. With it, what stands between <!-- table X --> and <!-- end --> is replaced.
About six minutes on two cores.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headway.bench.bundles import Bundle
from headway.bench.compare import simulate_bundle
from headway.bench.parallel import spread
from headway.bench.saturation import at_rate, measure_saturation
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import check_context, head
from headway.policies.lanes.partition import refine_and_prune
from headway.policies.lanes.routing import Lane
from headway.scheduling.scheduler import Policies
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.replica import Replica, replica
from headway.simulator.skipping import simulate
from headway.simulator.trace import Trace
from headway.tuning.drift import DriftTest
from headway.tuning.offline import Problem, tune
from headway.tuning.search import SearchBox

SEEDS = (0, 1, 2)
PAPER_REQUESTS, TRACE_REQUESTS = 3_000, 4_000
TRACES = (
    "mooncake_conversation", "azure_code_2023", "azure_conv_2023", "servegen_deepseek_r1", "agentic_coding_weka"
)  # fmt: skip


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


ORDERS = [
    ewsjf("fcfs", "fcfs"), ewsjf("shortest-prompt-first", "shortest-prompt-first"),
    ewsjf("highest-response-ratio", "highest-response-ratio"), ewsjf("ewsjf"),
    ewsjf("ewsjf, kv-volume", feature="kv-volume"), ewsjf("ewsjf, prompt-tokens", feature="prompt-tokens"),
    ewsjf("ewsjf-published", "ewsjf-published"), ewsjf("ewsjf-authors", "ewsjf-authors"),
    ewsjf("ewsjf-authors, 30 lanes, step 1500", "ewsjf-authors", lanes=30, lane_tokens=137, step=1_500),
]  # fmt: skip


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
def real(name: str) -> tuple[Replica, Trace, float]:
    """A replica, the first requests of a trace, and how many per second saturate the replica under FCFS."""
    trace = head(load_trace(name, requests=TRACE_REQUESTS).trace, TRACE_REQUESTS)
    server = replica("h100", "llama-3.1-8b", prefix_caching=trace.prefix_ids is not None)
    trace, _ = check_context(trace, server.rules.max_model_tokens, "refuse")
    return server, trace, saturation(server, trace)


def saturation(server: Replica, trace: Trace) -> float:
    return measure_saturation(
        trace, lambda t: simulate_bundle(t, server, Bundle("fcfs"), 0), jobs=1
    ).requests_per_second


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def seconds(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def each(cells: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
    return spread(work, cells, jobs=2, on_done=lambda: None)


# (a) the paper's setting


def paper_table() -> str:
    server = paper_server()
    rates = {seed: saturation(server, paper_trace(seed)) for seed in SEEDS}
    loads = (0.7, 0.9, 1.1, 1.3, 2.0)
    orders = [bundle for bundle in ORDERS if "feature" not in bundle.options.get("ordering", {})]  # all alike here
    cells = [(load, bundle, seed) for load in loads for bundle in orders for seed in SEEDS]

    def work(cell: tuple[float, Bundle, int]) -> Numbers:
        load, bundle, seed = cell
        trace = at_rate(paper_trace(seed), load * rates[seed])
        return numbers(trace, simulate_bundle(trace, server, bundle, seed), short_below=256)

    found = dict(zip([(load, b.label, s) for load, b, s in cells], each(cells, work), strict=True))
    rows = []
    for load in loads:
        base = _mean([found[load, "fcfs", seed] for seed in SEEDS])
        for bundle in orders:
            own = _mean([found[load, bundle.label, seed] for seed in SEEDS])
            assert all(found[load, bundle.label, seed].completed == PAPER_REQUESTS for seed in SEEDS), "unequal work"
            rows.append([
                f"{load:g} · {bundle.label}", f"{own.tokens_per_second:.0f}", f"{own.early_tokens_per_second:.0f}",
                f"{own.early_tokens_per_second / base.early_tokens_per_second:.2f}", seconds(own.short),
                f"{base.short / own.short:.1f}×", seconds(own.long), seconds(own.mean), seconds(own.p99),
                seconds(own.longest_wait),
            ])  # fmt: skip
    rate = np.mean(list(rates.values()))
    return f"Load 1 is {rate:.2f} requests/s.\n\n" + table(
        ["load · order", "tokens/s, whole day", "tokens/s until the last arrival", "÷ fcfs", "TTFT short, s",
         "fcfs ÷ it", "TTFT long, s", "TTFT mean, s", "TTFT p99, s", "longest wait, s"], rows
    )  # fmt: skip


def _mean(runs: Sequence[Numbers]) -> Numbers:
    return Numbers(*(float(np.mean(column)) for column in zip(*runs, strict=True)))  # type: ignore[arg-type]


# (b) five real traces


def real_table() -> str:
    for name in TRACES:
        real(name)
    loads = (0.7, 0.9, 1.1)
    cells = [(name, load, bundle) for name in TRACES for load in loads for bundle in ORDERS[:-1]]

    def work(cell: tuple[str, float, Bundle]) -> Numbers:
        name, load, bundle = cell
        server, trace, rate = real(name)
        trace = at_rate(trace, load * rate)
        return numbers(trace, simulate_bundle(trace, server, bundle, 0))

    found = dict(zip([(n, load, b.label) for n, load, b in cells], each(cells, work), strict=True))
    parts = []
    for name in TRACES:
        rows = []
        for bundle in ORDERS[:-1]:
            own = [found[name, load, bundle.label] for load in loads]
            rows.append([bundle.label, *(seconds(run.mean) for run in own), *(seconds(run.short) for run in own[1:]),
                         *(seconds(run.long) for run in own[1:]), *(seconds(run.p99) for run in own[1:]),
                         seconds(own[2].longest_wait)])  # fmt: skip
        header = ["TTFT in s", "mean at 0.7", "0.9", "1.1", "short half at 0.9", "1.1", "longest 5 % at 0.9", "1.1",
                  "p99 at 0.9", "1.1", "longest wait at 1.1"]  # fmt: skip
        parts.append(f"**{name}**, load 1 is {real(name)[2]:.2f} requests/s\n\n{table(header, rows)}")
    return "\n\n".join(parts)


# (c) ablation


def _unlearned(policies: Policies) -> None:
    lanes_of(policies).costs = None  # the law stays what the hardware profile says per token


def _nearest_lane(policies: Policies) -> None:
    """No tolerances and no bubbles: what fits nowhere goes to the lane of the nearest mean."""
    lanes = lanes_of(policies)
    open_one = lanes.router.route

    def route(size: int) -> Lane:
        learned = [lane for lane in lanes.router.lanes if not lane.bubble]
        return min(learned, key=lambda lane: abs(lane.mean - size)) if learned else open_one(size)

    lanes.router.route = route  # type: ignore[method-assign]


def lanes_of(policies: Policies) -> Any:
    return policies.ordering._lanes  # type: ignore[union-attr]


ABLATIONS: Mapping[str, tuple[Mapping[str, Any], Callable[[Policies], None] | None]] = {
    "all of it": ({}, None),
    "no partition: one lane": ({"lanes_max": 1}, None),
    "no partition: bubbles only": ({"window_requests": 10}, lambda p: setattr(lanes_of(p), "learns_here", False)),
    "learned once, after 250 requests": ({"relearn_requests": 0}, None),
    "gaps only, wide lanes stay": ({"spread_max": 1e9}, None),
    "no bubbles: the nearest lane": ({}, _nearest_lane),
    "no fill: each by score": ({"fill": "score"}, None),
    "no cost fit: the profile's price": ({}, _unlearned),
    "with a fairness term, b_f 0.05": ({"b_f": 0.05}, None),
    "no guard": ({"overdue_seconds": 1e9}, None),
    "the guard strict: overdue first": ({"overdue_share": 1.0}, None),
}


def day(server: Replica, trace: Trace, options: Mapping[str, Any], change: Callable[[Policies], None] | None) -> Any:
    bundle = ewsjf("x", **options)
    policies = bundle.build(costs=server.costs, seed=0, truth=trace.output_tokens.tolist().__getitem__)
    if change is not None:
        change(policies)
    return simulate(trace, server.rules, server.step_time, policies)


def situations() -> dict[str, tuple[Replica, Trace]]:
    server, trace = paper_server(), paper_trace(0)
    found = {"paper's mix at 1.1": (server, at_rate(trace, 1.1 * saturation(server, trace)))}
    for name, load in (("mooncake_conversation", 0.9), ("azure_code_2023", 1.1)):
        server, trace, rate = real(name)
        found[f"{name} at {load:g}"] = (server, at_rate(trace, load * rate))
    return found


def variants_table(
    variants: Mapping[str, tuple[Mapping[str, Any], Callable[[Policies], None] | None]], first: str
) -> str:
    places = situations()
    cells = [(place, label) for place in places for label in variants]

    def work(cell: tuple[str, str]) -> Numbers:
        server, trace = places[cell[0]]
        return numbers(trace, day(server, trace, *variants[cell[1]]))

    found = dict(zip(cells, each(cells, work), strict=True))
    rows = []
    for label in variants:
        own = [found[place, label] for place in places]
        rows.append([label, *(f"{seconds(r.mean)} · {seconds(r.short)} · {seconds(r.long)} · {seconds(r.longest_wait)}"
                              for r in own)])  # fmt: skip
    return "Each cell: TTFT mean · short half · longest 5 % · longest wait, seconds.\n\n" + table(
        [first, *places], rows
    )


def ablation_table() -> str:
    return variants_table({**ABLATIONS, "with tuned weights (20 trials)": (tuned_weights(), None)}, "ewsjf")


@cache
def tuned_weights() -> Mapping[str, float]:
    """Meta-optimisation, offline: 20 trials on the first 70 % of the paper's mix at load 1.1, plain reward."""
    server, trace = situations()["paper's mix at 1.1"]
    from headway.policies.ordering.ewsjf import Ewsjf

    problem = Problem(trace, server.rules, server.step_time, server.costs, "ewsjf", {}, {})
    return tune(problem, SearchBox.of(Ewsjf, "ewsjf"), trials=20).best


# (d) drift

HALF = 2_500


def drift_trace(server: Replica) -> Trace:
    """Chat by day (median 300 tokens), batch by night (20 % of it as by day, the rest around 6,000), each at 1.05."""
    random = np.random.default_rng(5)
    chat = np.exp(random.normal(np.log(300), 0.9, HALF)).clip(8, 4_000)
    batch = np.where(random.random(HALF) < 0.2, np.exp(random.normal(np.log(300), 0.9, HALF)),
                     random.normal(6_000, 2_000, HALF)).clip(8, 16_000)  # fmt: skip
    outputs = random.integers(20, 200, HALF).astype(np.int64)
    halves = []
    for prompts in (chat, batch):
        gaps = np.random.default_rng(6).exponential(1.0, HALF)
        half = Trace("half", np.cumsum(gaps), prompts.astype(np.int64), outputs)
        halves.append(at_rate(half, 1.05 * saturation(server, half)))
    night = halves[1].arrived_seconds + halves[0].arrived_seconds[-1]
    return replace(
        halves[0], name="day and night", arrived_seconds=np.concatenate([halves[0].arrived_seconds, night]),
        prompt_tokens=np.concatenate([half.prompt_tokens for half in halves]),
        output_tokens=np.concatenate([outputs, outputs]),
    )  # fmt: skip


class Spread:
    """A listener that looks at the lanes every 50 arrivals: how widely do night's sizes spread inside them?"""

    def __init__(self, policies: Policies, night: np.ndarray[Any, Any]) -> None:
        self.seen: list[tuple[int, float, int]] = []
        self._policies, self._night, self._arrived = policies, np.log(night + 1.0), 0

    def observe(self, event: object) -> None:
        if type(event).__name__ != "Arrived":
            return
        self._arrived += 1
        if self._arrived % 50 == 0:
            lanes = lanes_of(self._policies).router.lanes
            edges = np.log(np.array([lane.low for lane in lanes]) + 1.0)
            self.seen.append((self._arrived, within(edges, self._night), len(lanes)))


def within(edges: np.ndarray[Any, Any], logs: np.ndarray[Any, Any]) -> float:
    """Standard deviation of log sizes inside the lanes that begin at these edges."""
    place = np.searchsorted(edges, logs, side="right")
    spreads = [logs[place == p].var() * (place == p).sum() for p in np.unique(place)]
    return float(np.sqrt(sum(spreads) / len(logs)))


def drift_table() -> str:
    server = replica("h100", "llama-3.1-8b")
    trace = drift_trace(server)
    night = trace.prompt_tokens[HALF:]
    oracle = refine_and_prune(night.tolist(), spread_max=1.5, merge="ward-log")
    target = within(np.log(np.array([lane.low for lane in oracle]) + 1.0), np.log(night + 1.0))
    truth = trace.output_tokens.tolist().__getitem__
    rows = []
    variants: list[tuple[str, Bundle]] = [
        ("fcfs", ewsjf("fcfs", "fcfs")),
        ("highest-response-ratio (nothing to learn)", ewsjf("h", "highest-response-ratio")),
        ("ewsjf, learned once, frozen", ewsjf("f", relearn_requests=0)),
        ("ewsjf, every 2,000 of 10,000 (default)", ewsjf("d")),
        ("ewsjf, every 500 of 2,000", ewsjf("q", relearn_requests=500, window_requests=2_000)),
        ("ewsjf, every 250 of 1,000", ewsjf("r", relearn_requests=250, window_requests=1_000)),
        ("published, learned once, frozen", ewsjf("pf", "ewsjf-published", relearn_requests=0)),
        ("published, every 500 of 2,000", ewsjf("pq", "ewsjf-published", relearn_requests=500, window_requests=2_000)),
    ]
    for label, bundle in variants:
        policies = bundle.build(costs=server.costs, seed=0, truth=truth)
        watch = Spread(policies, night)
        listeners = [watch] if bundle.ordering.startswith("ewsjf") else []
        outcome = simulate(trace, server.rules, server.step_time, policies, listeners=listeners)
        ttft = (outcome.first_token_ps - outcome.arrived_ps) / 1e12
        late = slice(HALF + 1_000, None)
        after = [(n - HALF, spread) for n, spread, _ in watch.seen if n > HALF]
        learned = next((n for n, s in after if s <= 1.5 * target), None) if after else None
        at_switch = next((spread for n, spread, _ in watch.seen if n >= HALF), None)
        rows.append([label, seconds(ttft[:HALF].mean()), seconds(ttft[HALF : HALF + 1_000].mean()),
                     seconds(ttft[late].mean()), seconds(ttft[late][night[1_000:] <= 1_000].mean()),
                     "" if at_switch is None else f"{at_switch:.2f}", f"{after[-1][1]:.2f}" if after else "",
                     f"{learned:,}" if learned else "never" if after else ""])  # fmt: skip
    drift, told = DriftTest(), []
    for number, (at, size) in enumerate(zip(trace.arrived_seconds.tolist(), trace.prompt_tokens.tolist(), strict=True)):
        if drift.arrived(at, size) is not None:
            told.append(number)
    header = ["order", "TTFT by day, s", "first 1,000 of the night", "rest of the night", "of it, short prompts",
              "spread in lanes at dusk", "at dawn", "requests until re-learned"]  # fmt: skip
    spread_said = (
        "Re-learned: the spread of log sizes within lanes is at most 1.5 times that of lanes made from the night"
    )
    alarm = (
        f"The drift test of the tuner raises its alarm {told[0] - HALF:,} requests after dusk, and "
        f"{sum(n < HALF for n in told)} times before."
        if told
        else "The drift test raises no alarm."
    )
    return f"{table(header, rows)}\n\n{spread_said} itself, {target:.2f}. {alarm}"


# (e) sensitivity


def sensitivity_table() -> str:
    variants: dict[str, tuple[Mapping[str, Any], None]] = {"defaults (30 lanes)": ({}, None)}
    for name, values in {
        "lanes_max": (3, 10, 20, 40, 50), "spread_max": (1.2, 2.0, 4.0), "significance": (2.0, 10.0),
        "w_base": (0.0, 10.0), "a_u": (-0.0002, 0.0002, 0.002), "b_u": (0.1, 5.0), "a_f": (-0.001, 0.001),
        "b_f": (0.01, 0.1, 0.5, 2.0), "overdue_seconds": (10.0, 300.0), "overdue_share": (0.1, 0.5),
    }.items():  # fmt: skip
        for value in values:
            variants[f"{name} {value:g}"] = ({name: value}, None)
    return variants_table(variants, "with")  # type: ignore[arg-type]


TABLES: Mapping[str, Callable[[], str]] = {
    "a": paper_table,
    "b": real_table,
    "c": ablation_table,
    "d": drift_table,
    "e": sensitivity_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="a,b,c,d,e")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    for name in arguments.only.split(","):
        text = TABLES[name]()
        if arguments.write is None:
            print(f"## {name}\n\n{text}\n")
            continue
        page = arguments.write.read_text(encoding="utf-8")
        pattern = rf"(<!-- table {name} -->\n).*?(<!-- end -->)"
        page, count = re.subn(pattern, lambda m, t=text: f"{m[1]}{t}\n{m[2]}", page, flags=re.DOTALL)  # type: ignore[misc]
        assert count == 1, f"{arguments.write} has {count} places for table {name}"
        arguments.write.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
