"""The pictures of docs/concepts.md, simulated: latency and its lower bound against load, and KV memory by admission.

python -m benchmarks.concept_pictures docs
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np

from headway.bench.experiment.bundles import Bundle, named_bundles
from headway.bench.experiment.comparison import Comparison, Run
from headway.bench.experiment.simulated_runs import Experiment, compare
from headway.bench.metrics.run_metrics import Slo
from headway.bench.report.charts import Axes, Curve, x_span, y_span
from headway.bench.report.page_picture import HEIGHT, WIDTH, page_picture, panel
from headway.bench.report.scales import Scale, linear, logarithmic, share_label
from headway.bench.workloads import WORKLOADS
from headway.simulator.replica import replica
from headway.simulator.trace import Trace

LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1)
ORDERS = ("fcfs", "highest-response-ratio", "shortest-prompt-first", "random")
BOUND = "lower bound"
ADMISSIONS = ("greedy", "overflow-probability", "reserve-max")


@cache
def load_comparison() -> Comparison:
    """The built-in workload at rising load."""
    trace = WORKLOADS["chat-and-documents"].generate(1_500, 0)
    bundles = named_bundles(ORDERS, Bundle("fcfs"))
    return compare(Experiment(trace, replica(), bundles, LOADS, slo=Slo.parse("ttft=2s,tpot=100ms")))


def admission_runs() -> tuple[Run, ...]:
    """A burst of 200 requests with answers of some 1,000 tokens, on a replica that holds a third of them."""
    dice = np.random.default_rng(0)
    outputs = dice.integers(200, 1_800, 200)
    trace = Trace("burst", np.sort(dice.uniform(0, 5, 200)), np.full(200, 300), outputs,
                  max_output_tokens=np.full(200, 2_000))  # fmt: skip
    bundles = [
        Bundle(name, admission=name, prediction="declared-max" if name == "reserve-max" else "histogram")
        for name in ADMISSIONS
    ]
    return compare(Experiment(trace, replica(kv_tokens=64_000), bundles)).runs


def load_picture() -> str:
    """Mean and p99 TTFT against load."""
    runs = load_comparison().runs
    panels = []
    for part in ("mean", "p99"):
        lines = []
        for number, order in enumerate(ORDERS):
            values = [float(getattr(run.metrics.ttft_seconds, part)) for run in runs if run.policy == order]
            lines.append(Curve(order, number, LOADS, values, marks=True))
        seconds = logarithmic([value for line in lines for value in line.ys], *y_span(HEIGHT))
        axes = Axes(linear(LOADS, *x_span(WIDTH)), seconds, _number, _number, "load", "seconds")
        panels.append(panel(f"TTFT, {part}", f"{part} TTFT in seconds against load", axes, lines))
    return page_picture(panels, ORDERS, letter_width=6.6)


def bound_picture() -> str:
    """Mean end-to-end latency against load, in seconds and as a multiple of the lower bound."""
    floors = [float(load_comparison().bounds[load].e2e_seconds or 0) for load in LOADS]
    seconds = {
        order: [run.metrics.e2e_seconds.mean for run in load_comparison().runs if run.policy == order]
        for order in ORDERS
    } | {BOUND: floors}
    ratios = {name: [value / floor for value, floor in zip(ys, floors, strict=True)] for name, ys in seconds.items()}
    panels = []
    for title, curves in {"Mean end-to-end latency": seconds, "The same as a multiple of the bound": ratios}.items():
        lines = [Curve(name, number, LOADS, ys, marks=True) for number, (name, ys) in enumerate(curves.items())]
        values = logarithmic([value for line in lines for value in line.ys], *y_span(HEIGHT))
        unit = "seconds" if curves is seconds else "times the bound"
        axes = Axes(linear(LOADS, *x_span(WIDTH)), values, _number, _number, "load", unit)
        panels.append(panel(title, f"{title} against load, in {unit}", axes, lines))
    return page_picture(panels, (*ORDERS, BOUND), letter_width=6.6)


def admission_picture() -> str:
    """KV memory in use over time, and how many wait."""
    runs = admission_runs()
    panels = []
    curves = {
        "KV memory in use": [run.curves.kv_share for run in runs],
        "Requests that wait": [run.curves.waiting for run in runs],
    }
    for title, ys in curves.items():
        lines = [Curve(run.policy, n, run.curves.seconds, ys[n]) for n, run in enumerate(runs)]
        top = max(value for line in lines for value in line.ys)
        is_share = top <= 1
        values = Scale(0, 1, *y_span(HEIGHT)) if is_share else linear([0, top], *y_span(HEIGHT))
        seconds = linear([value for line in lines for value in line.xs], *x_span(WIDTH))
        axes = Axes(seconds, values, _number, share_label if is_share else _number, "seconds")
        panels.append(panel(title, f"{title} over the seconds of the burst", axes, lines))
    return page_picture(panels, ADMISSIONS, letter_width=6.6)


def _number(value: float) -> str:
    return f"{value:g}"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "load.svg").write_text(load_picture() + "\n", encoding="utf-8")
    (folder / "lower-bound.svg").write_text(bound_picture() + "\n", encoding="utf-8")
    (folder / "admission.svg").write_text(admission_picture() + "\n", encoding="utf-8")
