"""Thousands of streams open behind Envoy and the endpoint picker, and a steady rate of short answers.

    python -m benchmarks.cost.epp_streams [--streams 5000] [--chunks 30] [--gap 2] [--rate 1000] [--json FILE]

First requests of one chunk, begun at the rate for `--seconds`, whether or not those before have ended; their CPU is
less that at rest. Then all streams at once (0: none), a chunk every `--gap` seconds each. CPU and memory of the
decision process and of Envoy, which has one worker. The source and the load of benchmarks/cost/relay.py. Linux only.
Nothing leaves 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import uvloop

from benchmarks.cost import relay
from benchmarks.cost.epp import REST_SECONDS, cpu_seconds, way
from benchmarks.cost.relay_streams import Sampling

WAYS = ("serve", "epp")
SPARE_DESCRIPTORS = 200


async def paced(port: int, rate: float, seconds: float) -> tuple[relay.Found, float]:
    """Begin requests at a rate, each on a connection of its own; what came of them, and the rate that was begun."""
    found, loop = relay.Found(), asyncio.get_running_loop()
    began, opening = time.monotonic(), set[asyncio.Task[object]]()
    begun = 0
    while (passed := time.monotonic() - began) < seconds:
        while begun < passed * rate:
            begun += 1
            found.open += 1
            protocol = relay.Load(1, 0.0, 1, found, 0.0)
            task: asyncio.Task[object] = loop.create_task(
                loop.create_connection(lambda protocol=protocol: protocol, "127.0.0.1", port)  # type: ignore[misc]
            )
            opening.add(task)
            task.add_done_callback(opening.discard)
        await asyncio.sleep(0.002)
    lasted = time.monotonic() - began
    until = time.monotonic() + 30
    while found.open and time.monotonic() < until:
        await asyncio.sleep(0.01)
    return found, begun / lasted


def spent(pids: Mapping[str, int]) -> dict[str, float]:
    return {name: cpu_seconds(pid) for name, pid in pids.items()}


def open_streams(port: int, pids: Mapping[str, int], asked: argparse.Namespace) -> dict[str, float]:
    idle = {name: relay.rss_mib(pid) for name, pid in pids.items()}
    sampling = {name: Sampling(pid) for name, pid in pids.items()}
    for one in sampling.values():
        one.start()
    before, began = spent(pids), time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(relay.load(port, asked.streams, asked.chunks, 0.0, gap=asked.gap))
    seconds, after = time.monotonic() - began, spent(pids)
    for one in sampling.values():
        one.stop()
    figures = {"requests": found.requests, "errors": found.errors - found.open, "late": found.open, "seconds": seconds}
    figures |= {"chunks_per_second": found.chunks / seconds, "chunk_ms_p50": relay.quantile(found.lag, 0.5)}
    figures |= {"chunk_ms_p99": relay.quantile(found.lag, 0.99)}
    for name in pids:
        cpu = after[name] - before[name]
        figures |= {f"{name}_cpu_share": cpu / seconds, f"{name}_us_per_request": 1e6 * cpu / max(1, found.requests)}
        figures |= {f"{name}_idle_mib": idle[name], f"{name}_most_mib": sampling[name].rss_mib}
        figures |= {f"{name}_most_sockets": sampling[name].sockets}
    return figures


def steady_rate(port: int, pids: Mapping[str, int], asked: argparse.Namespace) -> dict[str, float]:
    before, began = spent(pids), time.monotonic()
    time.sleep(REST_SECONDS)
    lasted, after = time.monotonic() - began, spent(pids)
    rest = {name: (after[name] - before[name]) / lasted for name in pids}
    before, began = spent(pids), time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found, begun = runner.run(paced(port, asked.rate, asked.seconds))
    seconds, after = time.monotonic() - began, spent(pids)
    figures = {"begun_per_second": begun, "ended_per_second": found.requests / seconds, "errors": found.errors}
    figures |= {"ttft_ms_p50": relay.quantile(found.ttft, 0.5), "ttft_ms_p99": relay.quantile(found.ttft, 0.99)}
    for name in pids:
        busy = after[name] - before[name] - seconds * rest[name]
        figures[f"{name}_us_per_request"] = 1e6 * busy / max(1, found.requests)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=5_000)
    parser.add_argument("--chunks", type=int, default=30)
    parser.add_argument("--gap", type=float, default=2.0, help="seconds between the chunks of a stream")
    parser.add_argument("--rate", type=float, default=1_000.0, help="requests begun in a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and 2 * asked.streams + SPARE_DESCRIPTORS > hard:
        raise SystemExit(f"--streams {asked.streams}: Envoy needs two descriptors a stream, the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # inherited by all of them
    upstream = relay.free_port()
    source = [sys.executable, "-m", "benchmarks.cost.relay", "--source", str(upstream)]
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, relay.running(source, upstream):
        for name in asked.ways:
            with way(name, upstream, Path(folder)) as (port, pids):
                print(f"{name}: {asked.rate:g} requests a second", file=sys.stderr)
                found[f"{name}, rate"] = steady_rate(port, pids, asked)
                if asked.streams:
                    print(f"{name}: {asked.streams} streams", file=sys.stderr)
                    found[f"{name}, open streams"] = open_streams(port, pids, asked)
    for name, figures in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    print(f"load average {os.getloadavg()[0]:.1f}")
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
