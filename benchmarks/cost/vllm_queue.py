"""What our queue costs inside vLLM's real scheduler, beside stock FCFS and priority, in one run.

    PYTHONPATH=src PYTHON_WITH_VLLM -m benchmarks.cost.vllm_queue [--waiting 100 1000 10000 100000] [--running 256]

Virtual time: no worker. For each number of waiting requests all schedulers are built at once and measured in turn, step
by step, so that a disturbance of the machine hits all of them. Steps and adding are timed in CPU seconds of the thread,
pop and abort on the wall. Medians; `add` is a mean over all.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import vllm
from vllm.sampling_params import SamplingParams
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from benchmarks.page_tables import show
from headway.vllm_plugin import Scheduler
from tests.support import virtual_engine as engine

PARAMS = SamplingParams(max_tokens=4096, temperature=0.0)
PARAMS.update_from_generation_config({}, engine.STOP)
STOCK = "stock fcfs"
STEPS, ADMITTING, POPS, ABORTS = 60, 30, 50, 50


def kinds(orderings: list[str]) -> dict[str, dict[str, Any]]:
    ours = {f"ours: {name}": {"kind": Scheduler, "additional": config(name)} for name in orderings}
    return {STOCK: {}, "stock priority": {"policy": "priority"}, **ours}


def config(ordering: str) -> dict[str, Any]:
    return {"headway": {"ordering": ordering, "metrics_dir": ""}}


class Bench:
    """One scheduler with its running batch full and so many waiting."""

    def __init__(self, options: dict[str, Any], waiting: int, running: int) -> None:
        self.scheduler = engine.build(
            **{"kind": None, **options}, blocks=400_000, seats=running, budget=8192, max_tokens=8192
        )
        chance = random.Random(0)
        requests = [
            Request(
                request_id=f"w{index}",
                prompt_token_ids=[3] * chance.randint(16, 64),
                sampling_params=PARAMS,
                pooling_params=None,
                arrival_time=float(index),
                priority=chance.randint(0, 9),
            )
            for index in range(waiting + running)
        ]
        began = time.thread_time()
        for request in requests:
            self.scheduler.add_request(request)
        self.add_us = 1e6 * (time.thread_time() - began) / len(requests)
        self.full: list[float] = []
        self.whole: list[float] = []
        self.admitting: list[float] = []
        self.aborts: list[float] = []
        self.pops: list[float] = []
        for _ in range(6):
            self.step()

    def step(self, finish: str | None = None) -> tuple[float, float]:
        """Seconds of schedule(), and of the step with update_from_output()."""
        began = time.thread_time()
        out = self.scheduler.schedule()
        scheduled = time.thread_time()
        ids, known = list(out.num_scheduled_tokens), self.scheduler.requests
        sampled = [
            [engine.STOP if id_ == finish else 7] if known[id_].num_computed_tokens >= known[id_].num_tokens else []
            for id_ in ids
        ]
        output = ModelRunnerOutput(
            req_ids=ids, req_id_to_index={id_: i for i, id_ in enumerate(ids)}, sampled_token_ids=sampled
        )
        updating = time.thread_time()
        self.scheduler.update_from_output(out, output)
        ended = time.thread_time()
        return scheduled - began, (scheduled - began) + (ended - updating)

    def measure_step(self) -> None:
        full, whole = self.step()
        self.full.append(full)
        self.whole.append(whole)

    def measure_admission(self) -> None:
        running = self.scheduler.running
        self.step(finish=running[len(running) // 2].request_id)
        self.admitting.append(self.step()[0])

    def measure_abort(self, request_id: str) -> None:
        began = time.perf_counter()
        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        self.aborts.append(time.perf_counter() - began)

    def measure_pop(self) -> None:
        """What a scan does for one admission: is there somebody, who, take it. It ends up running, as in vLLM."""
        queue = self.scheduler.waiting
        began = time.perf_counter()
        assert queue
        queue.peek_request()
        request = queue.pop_request()
        self.pops.append(time.perf_counter() - began)
        request.status = RequestStatus.RUNNING

    def row(self, name: str, waiting: int) -> dict[str, Any]:
        return {
            "waiting": waiting,
            "scheduler": name,
            "add_us": round(self.add_us, 2),
            "schedule_ms": round(1e3 * statistics.median(self.full), 3),
            "whole_step_ms": round(1e3 * statistics.median(self.whole), 3),
            "admitting_ms": round(1e3 * statistics.median(self.admitting), 3),
            "pop_us": round(1e6 * statistics.median(self.pops), 2),
            "abort_us": round(1e6 * statistics.median(self.aborts), 2),
        }


def measure(waiting: int, running: int, orderings: list[str]) -> list[dict[str, Any]]:
    benches = {name: Bench(options, waiting, running) for name, options in kinds(orderings).items()}
    gc.collect()
    gc.freeze()  # as vLLM's engine does
    chance = random.Random(1)
    for what, times in (("measure_step", STEPS), ("measure_admission", ADMITTING)):
        for _ in range(times):
            for bench in benches.values():
                getattr(bench, what)()
    leaving = {
        name: chance.sample([request.request_id for request in bench.scheduler.waiting], min(ABORTS, waiting // 4))
        for name, bench in benches.items()
    }
    for turn in range(min(ABORTS, waiting // 4)):
        for name, bench in benches.items():
            bench.measure_abort(leaving[name][turn])
    for _ in range(min(POPS, waiting // 4)):
        for bench in benches.values():
            bench.measure_pop()
    gc.unfreeze()
    return [bench.row(name, waiting) for name, bench in benches.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, nargs="*", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument(
        "--ordering", nargs="*", default=["highest-response-ratio", "shortest-prompt-first", "priced-work"]
    )
    parser.add_argument("--write", type=Path, help="the page with a place for the table `cost`; else it is printed")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for waiting in arguments.waiting:
        found = measure(waiting, arguments.running, arguments.ordering)
        rows += found
        for row in found:
            print(*(f"{key}={value}" for key, value in row.items()), file=sys.stderr, flush=True)
        gc.collect()
    show({"cost": f"vLLM {vllm.__version__}, {arguments.running} running.\n\n{table(rows)}"}, arguments.write)


def table(rows: list[dict[str, Any]]) -> str:
    """A row a scheduler and number of waiting; whole steps as ratios to stock FCFS too."""
    heads = ("waiting", "scheduler", "schedule(), ms", "whole step, ms", "to stock fcfs", "admitting one, ms")
    lines = ["| " + " | ".join((*heads, "add, µs", "pop, µs", "abort, µs")) + " |", "|---:|---|" + "---:|" * 7]
    stock = {row["waiting"]: row["whole_step_ms"] for row in rows if row["scheduler"] == STOCK}
    for row in rows:
        ratio = row["whole_step_ms"] / stock[row["waiting"]]
        times = f"{row['schedule_ms']:.2f} | {row['whole_step_ms']:.2f} | {ratio:.3f} | {row['admitting_ms']:.2f}"
        calls = f"{row['add_us']:.1f} | {row['pop_us']:.1f} | {row['abort_us']:,.1f}"
        lines.append(f"| {row['waiting']:,} | {row['scheduler']} | {times} | {calls} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
