"""Ten minutes at twice the capacity: is the gateway's memory flat, and is every request accounted for?

    python -m benchmarks.studies.serve.soak [--seconds 600] [--load 2.0] [--seats 128] [--json FILE]

Two simulated replicas in a process of their own, `headway serve` in front of them with a bounded queue, and clients
that do not wait for each other. One in twelve leaves at a random moment. Prints Markdown for docs/results/serve.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.studies.serve.processes import Gate, gateway, simulated
from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.saturation import measure_saturation
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.load_test.prompts import Prompts
from headway.bench.traces.loading import load_trace
from headway.simulator.replica import replica
from headway.simulator.trace import Trace

REPLICAS = 2
ROWS = 4_000  # of the workload; sent again and again
SAMPLE_SECONDS = 10.0
LEAVES = 1 / 12
LEAVES_WITHIN_SECONDS = 20.0
SETTLED_SECONDS = 240.0  # queue, caches and what the allocator keeps have their size by then
CONFIG = '[queue]\nmax_requests = 500\ntimeout_seconds = 30\n[policies]\nordering = "highest-response-ratio"\n'


def capacity(trace: Trace, seats: int) -> float:
    """Requests a second that the replicas together can serve, by simulation."""
    one = replica(max_num_seqs=seats)
    found = measure_saturation(trace, lambda day: simulate_bundle(day, one, Bundle("fcfs"), 0))
    return REPLICAS * found.requests_per_second


class Soak:
    """The clients of one run, and what became of each."""

    def __init__(self, gate: Gate, trace: Trace, rate: float, seconds: float) -> None:
        self.gate, self.rate, self.seconds = gate, rate, seconds
        self.port = int(gate.url.rpartition(":")[2])
        self.prompts = Prompts(trace, "llama-3.1-8b", 0, simulated=True)
        self.outcomes: Counter[str] = Counter()
        self.samples: list[dict[str, float]] = []
        self.draw = np.random.default_rng(7)

    async def run(self) -> None:
        """Send for `seconds`, then wait for the last answer."""
        inside: set[asyncio.Task[None]] = set()
        sampling = asyncio.create_task(self._sample())
        began, due, row = time.monotonic(), 0.0, 0
        while due < self.seconds:
            await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            leaves = float(self.draw.uniform(0, LEAVES_WITHIN_SECONDS)) if self.draw.random() < LEAVES else None
            task = asyncio.create_task(self._client(row % ROWS, leaves))
            inside.add(task)
            task.add_done_callback(inside.discard)
            row += 1
            due += float(self.draw.exponential(1 / self.rate))
        if inside:
            await asyncio.wait(inside)
        sampling.cancel()
        self.outcomes["sent"] = row

    async def _client(self, row: int, leaves: float | None) -> None:
        body = self.prompts.body(row)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        try:
            writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            async with asyncio.timeout(leaves):
                self.outcomes[await self._read(reader)] += 1
        except TimeoutError:
            self.outcomes["left"] += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            self.outcomes[f"broken: {type(error).__name__}"] += 1
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> str:
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            reason = next(line[18:] for line in head.split(b"\r\n") if line.startswith(b"x-headway-reason: "))
            return f"refused: {reason.decode()}"
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            piece = await reader.read(1 << 16)
            if not piece:
                return "broken: it ended early"
            tail = (tail + piece)[-64:]
        return "completed" if b"data: [DONE]" in tail else "broken: no [DONE]"

    async def _sample(self) -> None:
        began, gate = time.monotonic(), self.gate
        while True:
            state = await asyncio.to_thread(gate.state)
            waiting = sum(line["waiting"] for line in state["lines"])
            sample = {"seconds": time.monotonic() - began, "mib": gate.resident_mib(), "cpu": gate.cpu_seconds()}
            self.samples.append(sample | {"waiting": waiting, "inside": state["counts"]["inside"]})
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(SAMPLE_SECONDS - (time.monotonic() - began) % SAMPLE_SECONDS)
                continue
            return


def report(soak: Soak) -> bool:
    """Print it; whether the books agree."""
    print("| minute | resident, MiB | waiting | inside | CPU of the gateway, % |\n|---|---|---|---|---|")
    samples = soak.samples
    for minute in range(int(samples[-1]["seconds"] // 60) + 1):
        own = [one for one in samples if minute * 60 <= one["seconds"] < minute * 60 + 60]
        if len(own) < 2:
            continue
        mib = [one["mib"] for one in own]
        share = (own[-1]["cpu"] - own[0]["cpu"]) / (own[-1]["seconds"] - own[0]["seconds"])
        means = [round(sum(one[key] for one in own) / len(own)) for key in ("waiting", "inside")]
        print(f"| {minute + 1} | {min(mib):.1f} – {max(mib):.1f} | {means[0]} | {means[1]} | {100 * share:.0f} |")
    late = [one for one in samples if one["seconds"] >= SETTLED_SECONDS and one["seconds"] < soak.seconds]
    if len(late) > 2:
        slope = 60 * np.polyfit([one["seconds"] for one in late], [one["mib"] for one in late], 1)[0]
        print(f"\nAfter minute four memory moves by {slope:+.3f} MiB a minute (least squares).")
    told = soak.gate.state()
    counts, reasons = Counter(told["counts"]), told["reasons"]
    print("\nAs the clients counted:", dict(sorted(soak.outcomes.items())))
    print("As the gateway counted:", dict(counts), reasons)
    mine = soak.outcomes
    refused = sum(number for name, number in mine.items() if name.startswith("refused"))
    broken = sum(number for name, number in mine.items() if name.startswith("broken"))
    # A client that left may have been refused or served a moment before, unread.
    return (
        broken == 0
        and counts["inside"] == 0
        and counts["arrived"] == mine["sent"] == mine["completed"] + refused + mine["left"]
        and counts["completed"] + counts["cancelled"] + counts["refused"] == mine["sent"]
        and mine["completed"] <= counts["completed"] <= mine["completed"] + mine["left"]
        and refused <= counts["refused"] <= refused + mine["left"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--load", type=float, default=2.0)
    parser.add_argument("--seats", type=int, default=128)
    parser.add_argument("--json", type=Path)
    typed = parser.parse_args()
    trace = load_trace("chat-and-documents", requests=ROWS, seed=0).trace
    rate = typed.load * capacity(trace, typed.seats)
    with simulated(REPLICAS, typed.seats) as urls, gateway(urls, CONFIG) as gate:
        soak = Soak(gate, trace, rate, typed.seconds)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(soak.run())
        agrees = report(soak)
    print(f"\n{rate:.1f} requests a second; the books {'agree' if agrees else 'DO NOT agree'}.")
    if typed.json is not None:
        typed.json.write_text(json.dumps({"samples": soak.samples, "outcomes": soak.outcomes}))
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
