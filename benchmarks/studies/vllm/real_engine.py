"""Orders on a real vLLM on the CPU: the same requests under each, in one engine, interleaved, against stock FCFS.

    VLLM_ENABLE_V1_MULTIPROCESSING=0 OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind PYTHONPATH=src \\
        PYTHON_WITH_VLLM -m benchmarks.studies.vllm.real_engine --traffic mixed --json RUNS.json

A tiny model with random weights, 8 running, 256 tokens a step. Capacity is the rate at which all requests of a repeat
are served when they come at once, under FCFS; loads are shares of it. Time is the engine process's processor time
(see real_orders.py); best with a core of its own. RUNS.json keeps all that was measured: a command
that was stopped goes on at the first (repeat, load) that is missing. The two slices need HEADWAY_TRACES.

    python -m benchmarks.studies.vllm.real_engine --tables --json RUNS.json [--write docs/results/vllm.md]

prints the tables, or puts them into the page between `<!-- table TRAFFIC -->` and `<!-- end -->`; that needs no vLLM.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.page_tables import show
from benchmarks.studies.vllm.real_tables import table, targets
from benchmarks.studies.vllm.real_traffic import TRAFFIC, Row

LOADS = (0.5, 0.8, 1.2)


class Results:
    """What was measured so far, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: dict[str, Any] = {"vllm": "", "orders": [], "default": "", "capacity": {}, "runs": []}
        if path.exists():
            self.kept = json.loads(path.read_text(encoding="utf-8"))

    def save(self) -> None:
        self.path.write_text(json.dumps(self.kept, indent=1) + "\n", encoding="utf-8")

    def of(self, traffic: str) -> list[dict[str, Any]]:
        return [run for run in self.kept["runs"] if run["traffic"] == traffic]

    def has(self, traffic: str, repeat: int, load: float) -> bool:
        return any(run["repeat"] == repeat and run["load"] == load for run in self.of(traffic))


def at_rate(rows: list[Row], rate: float) -> list[Row]:
    """The same requests at so many a second."""
    return [dataclasses.replace(row, at_seconds=row.at_seconds / rate) for row in rows]


def measure(arguments: argparse.Namespace, results: Results) -> None:
    """All (repeat, load) that are missing."""
    import vllm

    from benchmarks.studies.vllm import real_orders as orders
    from tests.support import real_model

    traffic = TRAFFIC[arguments.traffic]
    results.kept |= {"vllm": vllm.__version__, "orders": orders.ORDERS, "default": orders.DEFAULT}
    with tempfile.TemporaryDirectory() as folder:
        real_model.write_model(Path(folder))
        engine = orders.Engine(folder, **traffic.engine)
        engine.run(orders.STOCK, at_rate(traffic.rows(0)[:40], 1e6))  # the first steps of an engine are slow
        for repeat in range(arguments.repeats):
            rows = traffic.rows(repeat)
            for load in arguments.loads:
                if results.has(arguments.traffic, repeat, load):
                    continue
                capacities = results.kept["capacity"]
                key = f"{arguments.traffic}, repeat {repeat}"
                if key not in capacities:
                    burst = engine.run(orders.STOCK, [dataclasses.replace(row, at_seconds=0.0) for row in rows])
                    capacities[key] = len(rows) / burst["makespan"]
                    print(f"{key}: all at once are served at {capacities[key]:.2f} requests/s", flush=True)
                results.kept["runs"] += cell(engine, rows, load * capacities[key], arguments, repeat, load)
                results.save()
    os._exit(0)  # vLLM's destructors complain about a process that ends


def cell(
    engine: Any, rows: list[Row], rate: float, arguments: argparse.Namespace, repeat: int, load: float
) -> list[dict[str, Any]]:
    """Every order once with the same requests; who begins changes from cell to cell."""
    from benchmarks.studies.vllm import real_orders as orders

    enough = orders.ORDERS if load > 0.5 else orders.IDLE
    names = [name for name in enough if not arguments.order or name in (orders.STOCK, *arguments.order)]
    turn = (repeat + round(10 * load)) % len(names)
    runs = []
    for order in names[turn:] + names[:turn]:
        found = engine.run(order, at_rate(rows, rate))
        runs.append({"traffic": arguments.traffic, "load": load, "repeat": repeat, "order": order, **found})
        print(load, repeat, order, json.dumps({k: round(v, 3) for k, v in found.items()}), flush=True)
    return runs


def tables(results: Results) -> dict[str, str]:
    """Traffic → its text on the page."""
    kept, texts = results.kept, {}

    def named(order: str) -> str:
        return f"{order} (default)" if order == kept["default"] else order

    for name, traffic in TRAFFIC.items():
        runs = results.of(name)
        if not runs:
            continue
        capacity = statistics.median(v for key, v in kept["capacity"].items() if key.startswith(f"{name},"))
        texts[name] = f"{traffic.told} Load 1 is {capacity:.1f} requests/s.\n\n" + table(
            runs, kept["orders"], kept["orders"][0], named
        )
    judged = [order for order in kept["orders"] if order == kept["default"] or order.startswith("priced-work")]
    measured = {name: results.of(name) for name in texts}
    return {"targets": targets(measured, judged, kept["orders"][0], named), **texts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traffic", choices=list(TRAFFIC), default="mixed")
    parser.add_argument("--loads", type=float, nargs="*", default=LOADS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--order", nargs="*", help="only these, beside stock FCFS")
    parser.add_argument("--json", type=Path, required=True, help="the file of all runs")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    parser.add_argument("--write", type=Path, help="with --tables: the page")
    arguments = parser.parse_args()
    results = Results(arguments.json)
    if arguments.tables:
        show(tables(results), arguments.write)
    else:
        measure(arguments, results)


if __name__ == "__main__":
    main()
