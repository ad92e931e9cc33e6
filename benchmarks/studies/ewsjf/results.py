"""The tables of docs/results/ewsjf.md, from the simulator and the traces in HEADWAY_TRACES.

Usage: python -m benchmarks.studies.ewsjf.results [--only a,b,c,d,e] [--write docs/results/ewsjf.md]

Without --write the tables are printed. With it, what stands between <!-- table X --> and <!-- end --> is replaced.
About six minutes on two cores.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.ewsjf.drift import drift_table
from benchmarks.studies.ewsjf.situations import (
    PAPER_REQUESTS,
    SEEDS,
    Numbers,
    each,
    ewsjf,
    lanes_of,
    numbers,
    paper_server,
    paper_trace,
    real,
    saturation,
    seconds,
    table,
)  # fmt: skip
from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.policies.lanes.lane_assignment import Lane
from headway.scheduling.scheduler import Policies
from headway.simulator.replica import Replica
from headway.simulator.skipping import simulate
from headway.simulator.trace import Trace
from headway.tuning.offline import Problem, tune
from headway.tuning.search import SearchBox

TRACES = (
    "mooncake_conversation", "azure_code_2023", "azure_conv_2023", "servegen_deepseek_r1", "agentic_coding_weka"
)  # fmt: skip
ORDERS = [
    ewsjf("fcfs", "fcfs"), ewsjf("shortest-prompt-first", "shortest-prompt-first"),
    ewsjf("highest-response-ratio", "highest-response-ratio"), ewsjf("ewsjf"),
    ewsjf("ewsjf, kv-volume", feature="kv-volume"), ewsjf("ewsjf, prompt-tokens", feature="prompt-tokens"),
    ewsjf("ewsjf-published", "ewsjf-published"), ewsjf("ewsjf-authors", "ewsjf-authors"),
    ewsjf("ewsjf-authors, 30 lanes, step 1500", "ewsjf-authors", lanes=30, lane_tokens=137, step=1_500),
]  # fmt: skip


# (a) the paper's setting


def paper_table() -> str:
    server = paper_server()
    rates = {seed: saturation(server, paper_trace(seed)) for seed in SEEDS}
    loads = (0.7, 0.9, 1.1, 1.3, 2.0)
    orders = [bundle for bundle in ORDERS if "feature" not in bundle.options.get("ordering", {})]  # all alike here
    cells = [(load, bundle, seed) for load in loads for bundle in orders for seed in SEEDS]

    def work(cell: tuple[float, Bundle, int]) -> Numbers:
        load, bundle, seed = cell
        trace = rates[seed].at_load(paper_trace(seed), load)
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
    rate = np.mean([found.requests_per_second for found in rates.values()])
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
        server, trace, saturated = real(name)
        trace = saturated.at_load(trace, load)
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
        parts.append(
            f"**{name}**, load 1 is {real(name)[2].requests_per_second:.2f} requests/s\n\n{table(header, rows)}"
        )
    return "\n\n".join(parts)


# (c) ablation


def _unlearned(policies: Policies) -> None:
    lanes_of(policies).costs = None  # the law stays what the hardware profile says per token


def _nearest_lane(policies: Policies) -> None:
    """No tolerances and no bubbles: what fits nowhere goes to the lane of the nearest mean."""
    lanes = lanes_of(policies)
    open_one: Callable[[int], Lane] = lanes.router.route

    def route(size: int) -> Lane:
        learned = [lane for lane in lanes.router.lanes if not lane.bubble]
        return min(learned, key=lambda lane: abs(lane.mean - size)) if learned else open_one(size)

    lanes.router.route = route


ABLATIONS: Mapping[str, tuple[Mapping[str, Any], Callable[[Policies], None] | None]] = {
    "all of it": ({}, None),
    "no partition: one lane": ({"lanes_max": 1}, None),
    "no partition: bubbles only": ({"window_requests": 10}, lambda p: setattr(lanes_of(p), "learner", None)),
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
    found = {"paper's mix at 1.1": (server, saturation(server, trace).at_load(trace, 1.1))}
    for name, load in (("mooncake_conversation", 0.9), ("azure_code_2023", 1.1)):
        server, trace, saturated = real(name)
        found[f"{name} at {load:g}"] = (server, saturated.at_load(trace, load))
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
    return variants_table(variants, "with")


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
