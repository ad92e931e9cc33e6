"""How fast the simulator is, beside its peers in the same run: requests per second on one core, start-up apart.

    python -m benchmarks.cost.simulator [--repeats 5] [--million]

Traffic: prompt and output lengths of the Azure 2023 conversation trace (HEADWAY_TRACES) cut to 4,096 tokens a request,
or, without it, of the built-in `chat` workload; Poisson arrivals; one replica, 512 tokens a step, at most 128 requests,
26,000 blocks of 16, otherwise vLLM's defaults. Every case is a process of its own and the cases take turns. What is not
there is named and left out:

    HEADWAY_COMPILED        folder of a Headway whose engine is compiled (a wheel, unpacked; see docs/results/speed.md)
    HEADWAY_DYNAMO_PYTHON   interpreter with ai-dynamo 1.4.2 (its replay is in Rust)
    HEADWAY_VIDUR           checkout of Vidur 7d47513 whose predictor is trained; HEADWAY_VIDUR_PYTHON its interpreter

Their step times differ from ours, so only the wall time a request costs is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

RATES = (3.0, 6.45)
REQUESTS = 10_000


def traffic(requests: int, rate: float):
    from headway.bench.traces.loading import load_trace
    from headway.bench.workloads import WORKLOADS
    from headway.simulator.trace import Trace

    if os.environ.get("HEADWAY_TRACES"):
        source = load_trace("azure_conv_2023").trace
    else:
        source = WORKLOADS["chat"].generate(10_000, 0)
    rows = np.arange(requests) % len(source)
    outputs = np.minimum(source.output_tokens[rows], 4_000)
    prompts = np.minimum(source.prompt_tokens[rows], 4_096 - outputs)
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / rate, requests))
    return Trace("conv", arrivals - arrivals[0], prompts, outputs)


def ours(engine: str, ordering: str, requests: int, rate: float, *, caching: bool = True) -> dict[str, float]:
    from headway.bench.metrics.run_metrics import Slo, summarise
    from headway.scheduling.bundle import bundle
    from headway.simulator.reference import simulate_reference
    from headway.simulator.replica import replica
    from headway.simulator.skipping import simulate

    trace = traffic(requests, rate)
    machine = replica("a100", "llama-3.1-8b")
    rules = replace(
        machine.rules, kv_blocks=26_000, max_num_batched_tokens=512, max_num_seqs=128, prefix_caching=caching
    )
    if ordering == "shared-prefixes-tenants":
        trace = replace(
            trace,
            prefix_ids=[[row % 50, *range(1_000 + 8 * row, 1_008 + 8 * row)] for row in range(requests)],
            tenant=np.arange(requests) % 20,
            tenants=tuple(f"tenant {i}" for i in range(20)),
        )
        ordering = "fair-share"
    policies = bundle(ordering=ordering, costs=machine.costs, seed=0)
    run: Callable = simulate if engine == "skipping" else simulate_reference
    began = time.perf_counter()
    day = run(trace, rules, machine.step_time, policies)
    simulated = time.perf_counter()
    metrics = summarise(trace, day, Slo(), None, kv_blocks=rules.kv_blocks)
    done = time.perf_counter()
    assert metrics.completed == requests
    return {
        "requests_per_second": requests / (done - began),
        "without_metrics": requests / (simulated - began),
        "steps_per_request": day.steps / requests,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def dynamo(requests: int, rate: float) -> dict[str, float]:
    trace = traffic(requests, rate)
    rules = '{"block_size":16,"num_gpu_blocks":26000,"max_num_seqs":128,"max_num_batched_tokens":512,'
    rules += '"enable_chunked_prefill":true,"enable_prefix_caching":false}'
    with tempfile.TemporaryDirectory() as folder:
        path, serial = Path(folder) / "conv.jsonl", 0
        with path.open("w") as file:
            for at, prompt, output in zip(trace.arrived_seconds, trace.prompt_tokens, trace.output_tokens, strict=True):
                blocks = -(-int(prompt) // 512)
                ids = list(range(serial, serial + blocks))
                serial += blocks
                line = {"timestamp": round(at * 1e3), "input_length": int(prompt), "output_length": int(output)}
                file.write(json.dumps(line | {"hash_ids": ids}) + "\n")
        command = [os.environ["HEADWAY_DYNAMO_PYTHON"], "-m", "dynamo.replay", str(path), "--replay-mode", "offline"]
        command += ["--report-json", str(Path(folder) / "report.json"), "--extra-engine-args", rules]
        said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
    milliseconds = float(re.search(r"Wall Time \(ms\): ([\d,.]+)", said)[1].replace(",", ""))
    return {"requests_per_second": requests / milliseconds * 1e3}


def vidur(requests: int, rate: float, metrics: bool) -> dict[str, float]:
    trace = traffic(requests, rate)
    forest = "--random_forrest_execution_time_predictor_config_"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conv.csv"
        rows = zip(trace.arrived_seconds, trace.prompt_tokens, trace.output_tokens, strict=True)
        lines = [f"{at:.6f},{prompt},{output}" for at, prompt, output in rows]
        path.write_text("\n".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *lines]) + "\n")
        command = [os.environ["HEADWAY_VIDUR_PYTHON"], "-m", "vidur.main"]
        command += ["--replica_config_device", "a100", "--replica_config_network_device", "a100_dgx"]
        command += ["--replica_config_model_name", "meta-llama/Meta-Llama-3-8B"]
        command += ["--request_generator_config_type", "trace_replay"]
        command += ["--trace_request_generator_config_trace_file", str(path)]
        command += ["--replica_scheduler_config_type", "sarathi", "--sarathi_scheduler_config_batch_size_cap", "128"]
        command += ["--sarathi_scheduler_config_chunk_size", "512", "--no-metrics_config_enable_chrome_trace"]
        # A small grid of forests trains in seconds; what they predict becomes a table before the simulation starts.
        command += [f"{forest}num_estimators", "20", f"{forest}max_depth", "8", f"{forest}min_samples_split", "2"]
        command += [f"{forest}k_fold_cv_splits", "2", f"{forest}prediction_max_tokens_per_request", "8192"]
        command += [f"{forest}prediction_max_prefill_chunk_size", "512", f"{forest}skip_cpu_overhead_modeling"]
        command += ["--no-metrics_config_store_plots", "--metrics_config_output_dir", folder]
        command += [] if metrics else ["--no-metrics_config_write_metrics"]
        said = subprocess.run(
            ["/usr/bin/env", "WANDB_MODE=disabled", *command],
            check=True,
            capture_output=True,
            text=True,
            cwd=os.environ["HEADWAY_VIDUR"],
        )
    times = [
        datetime.strptime(re.search(r"(\d\d:\d\d:\d\d)", line)[1], "%H:%M:%S")
        for line in (said.stderr + said.stdout).splitlines()
        if "Starting simulation" in line or "Simulation ended" in line
    ]
    return {"requests_per_second": requests / max(1.0, (times[1] - times[0]).total_seconds())}


CASES: dict[str, Callable[[float], dict[str, float]]] = {
    "fcfs": lambda rate: ours("skipping", "fcfs", REQUESTS, rate),
    "highest-response-ratio": lambda rate: ours("skipping", "highest-response-ratio", REQUESTS, rate),
    "smallest-volume-first": lambda rate: ours("skipping", "smallest-volume-first", REQUESTS, rate),
    "fcfs, no prefix cache": lambda rate: ours("skipping", "fcfs", REQUESTS, rate, caching=False),
    "fair-share, 20 tenants, shared prefixes": lambda rate: ours("skipping", "shared-prefixes-tenants", REQUESTS, rate),
    "compiled fcfs": lambda rate: ours("skipping", "fcfs", REQUESTS, rate),
    "compiled highest-response-ratio": lambda rate: ours("skipping", "highest-response-ratio", REQUESTS, rate),
    "compiled fair-share, 20 tenants, shared prefixes": lambda rate: ours(
        "skipping", "shared-prefixes-tenants", REQUESTS, rate
    ),
    "fcfs, 3 x the rate": lambda rate: ours("skipping", "fcfs", REQUESTS, 3 * rate),
    "fcfs, 100,000 requests": lambda rate: ours("skipping", "fcfs", 100_000, rate),
    "reference engine, 1,000 requests": lambda rate: ours("reference", "fcfs", 1_000, rate),
    "Dynamo replay 1.4.2 (Rust)": lambda rate: dynamo(REQUESTS, rate),
    "Vidur 7d47513, no metrics": lambda rate: vidur(REQUESTS, rate, metrics=False),
    "Vidur 7d47513": lambda rate: vidur(REQUESTS, rate, metrics=True),
    "million": lambda rate: ours("skipping", "fcfs", 1_000_000, rate),
}
NEEDS = {"compiled": "HEADWAY_COMPILED", "Dynamo": "HEADWAY_DYNAMO_PYTHON", "Vidur": "HEADWAY_VIDUR_PYTHON"}


def measured(case: str, rate: float) -> dict[str, float]:
    """One case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cost.simulator", "--case", case, "--rate", str(rate)]
    package = {"PYTHONPATH": os.environ["HEADWAY_COMPILED"]} if case.startswith("compiled") else {}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **package})
    return dict(json.loads(done.stdout))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--million", action="store_true", help="also a million requests")
    options.add_argument("--case", help=argparse.SUPPRESS)
    options.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.case:
        print(json.dumps(CASES[chosen.case](chosen.rate)))
        return
    missing = [peer for peer, variable in NEEDS.items() if not os.environ.get(variable)]
    for peer in missing:
        print(f"{peer}: not measured, {NEEDS[peer]} is not set")
    cases = [case for case in CASES if case != "million" and case.split()[0] not in missing]
    for rate in RATES:
        found: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
        for _ in range(chosen.repeats):
            for case in cases:
                found[case].append(measured(case, rate))
        base = statistics.median(run["requests_per_second"] for run in found["fcfs"])
        print(f"\n{rate} requests/s\n\n| case | requests/s, median | min | max | fcfs ÷ this | peak MB |")
        print("|---|---|---|---|---|---|")
        for case, runs in found.items():
            speeds = [run["requests_per_second"] for run in runs]
            middle = statistics.median(speeds)
            memory = f"{max(run['memory_mb'] for run in runs):.0f}" if "memory_mb" in runs[0] else "–"
            print(
                f"| {case} | {middle:,.0f} | {min(speeds):,.0f} | {max(speeds):,.0f} | {base / middle:.2f} | {memory} |"
            )
    if chosen.million:
        run = measured("million", RATES[-1])
        print(f"\n1,000,000 requests: {run['requests_per_second']:,.0f} requests/s, {run['memory_mb']:.0f} MB")


if __name__ == "__main__":
    main()
