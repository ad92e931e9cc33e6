"""Orders on a real vLLM on the CPU: the same requests under each, in one engine, interleaved, against FCFS.

    VLLM_ENABLE_V1_MULTIPROCESSING=0 OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind PYTHONPATH=src \\
        PYTHON_WITH_VLLM benchmarks/vllm_real_engine.py [--requests 100] [--loads 0.5 0.8 1.2] [--repeats 3]

A tiny model with random weights, 8 running, 256 tokens a step, prefix cache off. 80 % of the prompts have 32-128 tokens
and 8-24 out, 20 % 1,000-3,000 and 16-48 out; Poisson arrivals at a share of the capacity that a burst shows. The engine
lives in this process, so the policies of its scheduler are changed between two runs; `fcfs` takes stock vLLM's
own decisions (tests/engines, fcfs_is_stock). Within a repeat all orders get the same requests.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "engines"))

import real_model
from vllm import LLM, SamplingParams
from vllm import __version__ as vllm_version

from headway.vllm_plugin.conductor import Conductor
from headway.vllm_plugin.config import read_config
from headway.vllm_plugin.engine_seam import EngineSeam
from headway.vllm_plugin.publishing import Publisher

SHORT_MAX = 128
ORDERS: dict[str, dict[str, Any]] = {
    "fcfs": {"ordering": "fcfs"},
    "shortest-prompt-first": {"ordering": "shortest-prompt-first"},
    "highest-response-ratio": {"ordering": "highest-response-ratio"},
    "highest-response-ratio, self-tuned": {"ordering": "highest-response-ratio", "tuning": "self-tuned"},
    "ewsjf": {"ordering": "ewsjf"},
    "smallest-volume-first, histogram": {"ordering": "smallest-volume-first", "prediction": "histogram"},
}
GUARD = {"harm_ratio": 1e6}  # orders are compared as they are


def requests(count: int, rate: float, seed: int) -> list[tuple[float, list[int], int]]:
    """(arrival in seconds, prompt tokens, output tokens)."""
    chance, at, rows = random.Random(seed), 0.0, []
    for _ in range(count):
        at += chance.expovariate(rate)
        long = chance.random() < 0.2
        prompt = chance.randint(1000, 3000) if long else chance.randint(32, SHORT_MAX)
        output = chance.randint(16, 48) if long else chance.randint(8, 24)
        rows.append((at, [chance.randrange(3, 1000) for _ in range(prompt)], output))
    return rows


class Engine:
    def __init__(self, model: str) -> None:
        self.llm = LLM(
            model,
            dtype="float32",
            enforce_eager=True,
            max_model_len=4096,
            max_num_seqs=8,
            max_num_batched_tokens=256,
            num_gpu_blocks_override=64,
            enable_prefix_caching=False,
            scheduler_cls="headway.vllm_plugin.Scheduler",
            additional_config={"headway": {"metrics_dir": ""}},
            disable_log_stats=True,
        )
        self.engine = self.llm.llm_engine
        self.scheduler: Any = self.engine.engine_core.engine_core.scheduler
        self.served = 0

    def run(self, order: str, rows: list[tuple[float, list[int], int]]) -> dict[str, float]:
        """One run in real time; seconds."""
        read = read_config({"headway": {"metrics_dir": "", "guard": GUARD, **ORDERS[order]}}, {})
        scheduler = self.scheduler
        conductor = Conductor(read, EngineSeam(scheduler), Publisher(None, None), "0", type(scheduler.waiting))
        scheduler.headway, scheduler.waiting = conductor, conductor.queue
        scheduler.scheduler_config.long_prefill_token_threshold = 0
        gc.collect()
        self.served += 1
        first: dict[int, float] = {}
        last: dict[int, float] = {}
        counts: dict[int, int] = {}
        gaps: list[float] = []
        began, coming = time.perf_counter(), 0
        while coming < len(rows) or self.engine.has_unfinished_requests():
            now = time.perf_counter() - began
            while coming < len(rows) and rows[coming][0] <= now:
                params = SamplingParams(max_tokens=rows[coming][2], ignore_eos=True, temperature=0.0, detokenize=False)
                self.engine.add_request(f"{self.served}-{coming}", {"prompt_token_ids": rows[coming][1]}, params)
                coming += 1
            if not self.engine.has_unfinished_requests():
                time.sleep(min(0.002, max(0.0, rows[coming][0] - now)))
                continue
            outputs = self.engine.step()
            now = time.perf_counter() - began
            for output in outputs:
                index, tokens = int(output.request_id.split("-")[1]), len(output.outputs[0].token_ids)
                if tokens > counts.get(index, 0):
                    if index in last:
                        gaps.append(now - last[index])
                    first.setdefault(index, now)
                    last[index], counts[index] = now, tokens
        makespan = time.perf_counter() - began
        short = [first[i] - row[0] for i, row in enumerate(rows) if len(row[1]) <= SHORT_MAX]
        long = [first[i] - row[0] for i, row in enumerate(rows) if len(row[1]) > SHORT_MAX]
        counters = conductor.metrics.counters
        return {
            "short_ttft_mean": statistics.mean(short),
            "short_ttft_p99": p99(short),
            "long_ttft_mean": statistics.mean(long),
            "long_ttft_p99": p99(long),
            "itl_p99": p99(gaps),
            "makespan": makespan,
            "tokens_per_second": sum(len(row[1]) + row[2] for row in rows) / makespan,
            "preemptions": counters["preemptions", ""],
            "recomputed_tokens": counters["recomputed_tokens", ""],
            "decision_us_per_step": 1e6 * conductor.metrics.decisions.sum / max(1, counters["steps", ""]),
        }


def p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--loads", type=float, nargs="*", default=[0.5, 0.8, 1.2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--order", nargs="*", default=list(ORDERS), choices=list(ORDERS))
    parser.add_argument("--json", type=Path, help="a file for all runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        real_model.write_model(Path(folder))
        engine = Engine(folder)
        burst = [(0.0, tokens, output) for _, tokens, output in requests(arguments.requests, 1.0, 0)]
        engine.run("fcfs", burst[: len(burst) // 2])
        capacity = arguments.requests / engine.run("fcfs", burst)["makespan"]
        print(f"vLLM {vllm_version}: a burst is served at {capacity:.2f} requests/s", flush=True)
        runs: list[dict[str, Any]] = []
        for load in arguments.loads:
            for repeat in range(arguments.repeats):
                rows = requests(arguments.requests, load * capacity, repeat + 1)
                for order in arguments.order:
                    found = engine.run(order, rows)
                    runs.append({"load": load, "repeat": repeat, "order": order, **found})
                    print(load, repeat, order, json.dumps({k: round(v, 3) for k, v in found.items()}), flush=True)
                    if arguments.json:
                        arguments.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
        table(runs, arguments.loads, arguments.order)
    sys.stdout.flush()
    os._exit(0)  # vLLM's destructors complain about a process that ends


def table(runs: list[dict[str, Any]], loads: list[float], orders: list[str]) -> None:
    """Ratios to FCFS with the same requests: median (least to most) over the repeats."""
    metrics = ("short_ttft_mean", "short_ttft_p99", "long_ttft_mean", "long_ttft_p99", "itl_p99", "tokens_per_second")
    print("\n| load | order | " + " | ".join(metrics) + " |\n|" + "---|" * (len(metrics) + 2))
    for load in loads:
        stock = {run["repeat"]: run for run in runs if run["load"] == load and run["order"] == "fcfs"}
        for order in orders:
            if order == "fcfs":
                middle = [statistics.median([one[metric] for one in stock.values()]) for metric in metrics]
                print(f"| {load} | fcfs (s; tokens/s) | " + " | ".join(f"{value:.3g}" for value in middle) + " |")
                continue
            mine = [run for run in runs if run["load"] == load and run["order"] == order]
            cells = []
            for metric in metrics:
                ratios = sorted(run[metric] / stock[run["repeat"]][metric] for run in mine)
                cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})")
            print(f"| {load} | {order} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
