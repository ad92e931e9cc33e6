"""The tables of docs/results/vllm.md, from runs on a real engine: ratios to stock vLLM's FCFS of the same repeat."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

Run = dict[str, Any]
RATIOS = {
    "short_ttft_mean": "short TTFT mean",
    "short_ttft_p99": "short TTFT p99",
    "long_ttft_mean": "long TTFT mean",
    "long_ttft_p99": "long TTFT p99",
    "itl_p99": "ITL p99",
    "tokens_per_second": "tokens/s",
}
COUNTS = {"preemptions": "preemptions", "preempted_tokens": "tokens of the preempted"}


def table(runs: list[Run], orders: list[str], stock: str, named: Callable[[str], str]) -> str:
    """One traffic: per load and order the median ratio (least–most) over the repeats; counts are medians.

    Args:
        runs: of one traffic; each with `load`, `repeat`, `order` and the metrics above.
        orders: rows of a load, in this order; those without runs are left out.
        stock: the order that the others are divided by, shown in seconds and tokens a second.
        named: what to call an order.
    """
    heads = [*RATIOS.values(), *COUNTS.values()]
    lines = ["| load | order | " + " | ".join(heads) + " |", "|---:|---|" + "---:|" * len(heads)]
    for load in sorted({run["load"] for run in runs}):
        at_load = [run for run in runs if run["load"] == load]
        beside = {run["repeat"]: run for run in at_load if run["order"] == stock}
        for order in orders:
            mine = [run for run in at_load if run["order"] == order]
            if not mine:
                continue
            cells = [_cell(mine, beside, metric, order == stock) for metric in RATIOS]
            counts = [f"{statistics.median([run[metric] for run in mine]):,.0f}" for metric in COUNTS]
            lines.append(f"| {load} | {named(order)} | " + " | ".join([*cells, *counts]) + " |")
    return "\n".join(lines)


TARGETS = (("short_ttft_mean", "≤", 0.12), ("long_ttft_p99", "≤", 1.5), ("tokens_per_second", "≥", 0.98))
TARGET_LOAD = 1.2


def targets(runs_of: dict[str, list[Run]], orders: list[str], stock: str, named: Callable[[str], str]) -> str:
    """What was wanted of an order in overload, in the median over the repeats, beside what came.

    Args:
        runs_of: traffic → its runs.
        orders: those that are judged.
        stock, named: as in `table`.
    """
    heads = " | ".join(f"{RATIOS[metric]} {sign} {wanted}" for metric, sign, wanted in TARGETS)
    lines = [f"| traffic, load {TARGET_LOAD} | order | {heads} |", "|---|---|" + "---:|" * len(TARGETS)]
    for traffic, runs in runs_of.items():
        at_load = [run for run in runs if run["load"] == TARGET_LOAD]
        beside = {run["repeat"]: run for run in at_load if run["order"] == stock}
        for order in orders:
            mine = [run for run in at_load if run["order"] == order]
            cells = []
            for metric, sign, wanted in TARGETS:
                got = statistics.median([run[metric] / beside[run["repeat"]][metric] for run in mine])
                met = round(got, 2) <= wanted if sign == "≤" else round(got, 2) >= wanted
                cells.append(f"{got:.2f} {'met' if met else '**missed**'}")
            lines.append(f"| {traffic} | {named(order)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(mine: list[Run], beside: dict[int, Run], metric: str, absolute: bool) -> str:
    if absolute:
        middle = statistics.median([run[metric] for run in mine])
        return f"{middle:,.0f}" if metric == "tokens_per_second" else f"{middle:.3g} s"
    ratios = sorted(run[metric] / beside[run["repeat"]][metric] for run in mine)
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
