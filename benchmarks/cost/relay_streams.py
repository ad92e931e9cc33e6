"""Thousands of streams at once through one gateway, which is one thread: errors, lag, CPU and memory.

    python -m benchmarks.cost.relay_streams [--streams 5000] [--chunks 30] [--gap 2] [--json FILE]

The source and the load of benchmarks/cost/relay.py. A stream has to outlast the opening of all, so that all are open at
once; `most_sockets` tells, since each needs two descriptors in the gateway, one here and one in the source. `late` are
those that had not ended after twice their time. Linux only. Nothing leaves 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import uvloop

from benchmarks.cost import relay

SPARE_DESCRIPTORS = 100


class Sampling(threading.Thread):
    """Looks at the gateway four times a second: the most memory and the most sockets it had."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.rss_mib = 0.0
        self.sockets = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.25):
            self.rss_mib = max(self.rss_mib, relay.rss_mib(self.pid))
            self.sockets = max(self.sockets, sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir()))

    def stop(self) -> None:
        self._over.set()
        self.join()


def run(streams: int, chunks: int, gap: float) -> dict[str, float]:
    upstream, port = relay.free_port(), relay.free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        relay.running([sys.executable, "-m", "benchmarks.cost.relay", "--source", str(upstream)], upstream),
        relay.running(relay.headway(port, upstream, Path(folder)), port) as pid,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        idle_mib = relay.rss_mib(pid)
        sampling = Sampling(pid)
        sampling.start()
        before, began = relay.cpu_seconds(pid), time.monotonic()
        found = runner.run(relay.load(port, streams, chunks, 0.0, gap=gap))
        seconds, spent = time.monotonic() - began, relay.cpu_seconds(pid) - before
        sampling.stop()
    return {
        "streams": streams,
        "errors": found.errors - found.open,
        "late": found.open,
        "requests": found.requests,
        "most_sockets": sampling.sockets,
        "seconds": seconds,
        "chunks_per_second": found.chunks / seconds,
        "chunk_ms_p50": relay.quantile(found.lag, 0.5),
        "chunk_ms_p99": relay.quantile(found.lag, 0.99),
        "cpu_share": spent / seconds,
        "cpu_us_per_chunk": 1e6 * spent / max(1, found.chunks),
        "idle_mib": idle_mib,
        "most_mib": sampling.rss_mib,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=5_000)
    parser.add_argument("--chunks", type=int, default=30)
    parser.add_argument("--gap", type=float, default=2.0, help="seconds between the chunks of a stream")
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and 2 * asked.streams + SPARE_DESCRIPTORS > hard:
        raise SystemExit(f"--streams {asked.streams}: the gateway needs two descriptors a stream, the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # inherited by the source and the gateway
    found = run(asked.streams, asked.chunks, asked.gap)
    for name, value in found.items():
        print(f"{name:18} {value:,.2f}".removesuffix(".00"))
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
