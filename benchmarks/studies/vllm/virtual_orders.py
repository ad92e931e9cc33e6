"""Orders inside vLLM's real scheduler in virtual time, against the stock scheduler with the same requests.

    PYTHONPATH=src PYTHON_WITH_VLLM -m benchmarks.studies.vllm.virtual_orders [--requests 600] [--loads 0.5 0.8 1.2]

What a shared machine cannot show on the wall clock: the same bytes every time. A step costs what it does on a small CPU
engine: 5.6 ms, 0.076 ms a token and 0.5 ms a request. Load is a share of the rate at which a burst is served.
"""

from __future__ import annotations

import argparse
import random
import statistics
from typing import Any

import vllm

from headway.vllm_plugin import Scheduler
from tests.support import virtual_engine as engine

SHORT_MAX = 128
ENGINE: dict[str, Any] = {"blocks": 64, "block_tokens": 128, "seats": 8, "budget": 256, "max_tokens": 4096}
ORDERS: dict[str, dict[str, Any]] = {
    "fcfs": {"ordering": "fcfs"},
    "shortest-prompt-first": {"ordering": "shortest-prompt-first"},
    "highest-response-ratio (default)": {},
    "the default, self-tuned": {"tuning": "self-tuned"},
    "ewsjf": {"ordering": "ewsjf"},
    "smallest-volume-first, histogram": {"ordering": "smallest-volume-first", "prediction": "histogram"},
    "smallest-volume-first, histogram, peak-check": {
        "ordering": "smallest-volume-first",
        "prediction": "histogram",
        "admission": "peak-check",
    },
}
GUARD = {"budget_ms": 60_000, "harm_ratio": 1e6}  # orders are compared as they are


def cpu_cost(tokens: int, requests: int) -> float:
    return 5.6e-3 + 7.6e-5 * tokens + 5e-4 * requests


def rows_of(count: int, rate: float, seed: int) -> list[dict[str, Any]]:
    chance, at, rows = random.Random(seed), 0.0, []
    for index in range(count):
        at += chance.expovariate(rate)
        long = chance.random() < 0.2
        prompt = chance.randint(1000, 3000) if long else chance.randint(32, SHORT_MAX)
        output = chance.randint(16, 48) if long else chance.randint(8, 24)
        rows.append({"id": f"r{index}", "at": at, "prompt": prompt, "output": output, "max_tokens": 64})
    return rows


def serve(rows: list[dict[str, Any]], config: dict[str, Any] | None) -> dict[str, float]:
    """One day; None is the stock scheduler."""
    headway = {"headway": {"metrics_dir": "", "guard": GUARD, **(config or {})}}
    scheduler = engine.build(None if config is None else Scheduler, additional=headway if config else None, **ENGINE)
    day = engine.Day(scheduler, block_tokens=ENGINE["block_tokens"]).run(rows)
    ttft = {row["id"]: day.first_token[row["id"]] - row["at"] for row in rows}
    short = [ttft[row["id"]] for row in rows if row["prompt"] <= SHORT_MAX]
    long = [ttft[row["id"]] for row in rows if row["prompt"] > SHORT_MAX]
    return {
        "short mean": statistics.mean(short),
        "short p99": p99(short),
        "long mean": statistics.mean(long),
        "long p99": p99(long),
        "throughput": 1 / day.now,
    }


def p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--loads", type=float, nargs="*", default=[0.5, 0.8, 1.2])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    engine.linear_cost = cpu_cost
    burst = [{**row, "at": 0.0} for row in rows_of(arguments.requests, 1.0, 0)]
    capacity = arguments.requests * serve(burst, None)["throughput"]
    print(f"vLLM {vllm.__version__}: a burst is served at {capacity:.2f} requests/s\n")
    metrics = ("short mean", "short p99", "long mean", "long p99", "throughput")
    print("| load | order | " + " | ".join(metrics) + " |\n|" + "---|" * (len(metrics) + 2))
    for load in arguments.loads:
        days = [rows_of(arguments.requests, load * capacity, seed) for seed in range(1, arguments.seeds + 1)]
        stock = [serve(rows, None) for rows in days]
        middle = [statistics.median([one[metric] for one in stock]) for metric in metrics[:-1]]
        print(f"| {load} | stock vLLM, seconds | " + " | ".join(f"{value:.2f}" for value in middle) + " | |")
        for order, config in ORDERS.items():
            mine = [serve(rows, {"prefix_hits": True, **config}) for rows in days]
            cells = []
            for metric in metrics:
                ratios = sorted(ours[metric] / theirs[metric] for ours, theirs in zip(mine, stock, strict=True))
                cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})")
            print(f"| {load} | {order} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
