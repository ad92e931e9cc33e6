"""Cost of a request's way to its replica in Ray Serve: through our queue, and by Ray's own power of two choices.

    PYTHONPATH=src PYTHON_WITH_RAY benchmarks/cost/ray_router.py --requests 2000 --rounds 5

Two applications are served side by side, alike but for their router, with replicas that answer at once. They are asked
in turn, round by round: by a handle, one call at a time and many at once, and over HTTP. The processor time is that of
all processes of Ray, of the sender, and of the queue's actor by itself, less what the idle cluster uses.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import httpx
import ray
from ray import serve

from headway.bench.report.markup import Markup, tag
from headway.ray.deployment_options import queued

_TICKS = os.sysconf("SC_CLK_TCK")
_BODY = {"model": "m", "prompt": "word " * 60, "max_tokens": 100}
_AT_ONCE = 32
_IDLE_SECONDS = 3.0
_LEFT, _BAR, _ROW = 90, 480, 22
_NAMES = {"ray": "Ray", "headway": "our queue"}
_STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 17px; font-weight: 600 } .quiet { fill: #59636e; font-size: 12px }
.ray { fill: #9aa4af } .headway { fill: #6ea0ff } .queue { fill: #2458b8 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .quiet { fill: #9198a1 } .ray { fill: #6e7781 } }
"""


@serve.deployment(ray_actor_options={"num_cpus": 0}, num_replicas=2, max_ongoing_requests=100)
class AtOnce:
    """Answers at once."""

    async def __call__(self, request: Any) -> str:
        return "done"


class Cost(NamedTuple):
    """Of one request: latency at the median, and processor time, all in milliseconds."""

    latency_ms: float
    cpu_ms: float
    queue_cpu_ms: float
    per_second: float


def processor_seconds() -> tuple[float, float]:
    """Of this process and all of Ray, and of the queue's actor alone."""
    total = queue = 0.0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if not (command.startswith("ray::") or "site-packages/ray/" in command or entry.name == str(os.getpid())):
            continue
        seconds = (int(fields[11]) + int(fields[12])) / _TICKS
        total += seconds
        if "QueueActor" in command:
            queue += seconds
    return total, queue


async def measured(call: Callable[[], Awaitable[object]], requests: int, at_once: int, idle: float) -> Cost:
    """Send so many; `idle` is the share of a core that the cluster uses by itself."""
    latencies: list[float] = []
    left = iter(range(requests))

    async def send() -> None:
        for _ in left:
            began = time.perf_counter()
            await call()
            latencies.append(time.perf_counter() - began)

    before, queue_before = processor_seconds()
    began = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(at_once)))
    seconds = time.perf_counter() - began
    after, queue_after = processor_seconds()
    return Cost(
        statistics.median(latencies) * 1e3,
        (after - before - idle * seconds) / requests * 1e3,
        (queue_after - queue_before) / requests * 1e3,
        requests / seconds,
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def rounds(handles: dict[str, Any], port: int, requests: int, number: int) -> dict[str, dict[str, list[Cost]]]:
    idle_before = processor_seconds()[0]
    await asyncio.sleep(_IDLE_SECONDS)
    idle = (processor_seconds()[0] - idle_before) / _IDLE_SECONDS
    found: dict[str, dict[str, list[Cost]]] = {}
    async with httpx.AsyncClient(timeout=60) as client:
        ways: dict[str, tuple[Callable[[str], Awaitable[object]], int, int]] = {
            "handle, one at a time": (lambda name: handles[name].remote(_BODY), 1, requests // 4),
            f"handle, {_AT_ONCE} at once": (lambda name: handles[name].remote(_BODY), _AT_ONCE, requests),
            "HTTP, one at a time": (
                lambda name: client.post(f"http://127.0.0.1:{port}/{name}", json=_BODY),
                1,
                requests // 4,
            ),
            f"HTTP, {_AT_ONCE} at once": (
                lambda name: client.post(f"http://127.0.0.1:{port}/{name}", json=_BODY),
                _AT_ONCE,
                requests,
            ),
        }
        for turn in range(number + 1):  # the first warms up
            for way, (call, at_once, many) in ways.items():
                for name in list(handles) if turn % 2 else list(reversed(handles)):
                    print(f"round {turn} of {number}: {way}, {name}", file=sys.stderr)
                    cost = await measured(lambda call=call, name=name: call(name), many if turn else 50, at_once, idle)
                    if turn:
                        found.setdefault(way, {}).setdefault(name, []).append(cost)
    return found


def medians(by_router: dict[str, list[Cost]]) -> dict[str, Cost]:
    return {name: Cost(*map(statistics.median, zip(*costs, strict=True))) for name, costs in by_router.items()}


def picture(found: dict[str, dict[str, list[Cost]]]) -> str:
    """An SVG document of the processor time of a request, with the actor's part; it follows light and dark colours."""
    rows: list[Markup] = []
    most = max(cost.cpu_ms for by_router in found.values() for cost in medians(by_router).values())
    top = 70
    for way, by_router in found.items():
        rows.append(tag("text", way, x="0", y=str(top)))
        for name, cost in medians(by_router).items():
            top += _ROW
            width, of_queue = cost.cpu_ms / most * _BAR, cost.queue_cpu_ms / most * _BAR if name == "headway" else 0.0
            rows += [
                tag("text", _NAMES[name], x=str(_LEFT - 8), y=str(top + 12), text_anchor="end", class_="quiet"),
                tag("rect", x=str(_LEFT), y=str(top), width=f"{width:.1f}", height="15", class_=name),
                tag(
                    "rect",
                    x=f"{_LEFT + width - of_queue:.1f}",
                    y=str(top),
                    width=f"{of_queue:.1f}",
                    height="15",
                    class_="queue",
                ),
                tag("text", f"{cost.cpu_ms:.1f} ms", x=f"{_LEFT + width + 6:.1f}", y=str(top + 12), class_="quiet"),
            ]
        top += 2 * _ROW
    heads = [
        tag("text", "Processor time of a request in Ray Serve", x="0", y="18", class_="title"),
        tag("text", "of sender, Ray and queue together; dark: the queue's actor", x="0", y="38", class_="quiet"),
    ]
    box = f"0 0 {_LEFT + _BAR + 70} {top}"
    return str(tag("svg", tag("style", Markup(_STYLE)), *heads, *rows, xmlns="http://www.w3.org/2000/svg", viewBox=box))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=2_000, help="requests of a round; a quarter one at a time")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--svg", type=Path, help="a file for a picture")
    options.add_argument("--json", type=Path, help="a file for all figures")
    chosen = options.parse_args()
    port = free_port()
    logging.getLogger("ray").setLevel(logging.WARNING)
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    try:
        quiet = {"logging_config": {"enable_access_log": False}}
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        handles = {
            "ray": serve.run(AtOnce.options(**quiet).bind(), name="ray", route_prefix="/ray"),
            "headway": serve.run(AtOnce.options(**quiet, **queued()).bind(), name="headway", route_prefix="/headway"),
        }
        found = asyncio.run(rounds(handles, port, chosen.requests, chosen.rounds))
    finally:
        serve.shutdown()
        ray.shutdown()
    print("| way | router | latency, ms | CPU a request, ms | of it the queue's actor, ms | requests/s |")
    print("|---|---|---:|---:|---:|---:|")
    for way, by_router in found.items():
        for name, cost in medians(by_router).items():
            row = f"{cost.latency_ms:.2f} | {cost.cpu_ms:.2f} | {cost.queue_cpu_ms:.2f} | {cost.per_second:.0f}"
            print(f"| {way} | {name} | {row} |")
        pairs = list(zip(by_router["headway"], by_router["ray"], strict=True))
        ratio = [statistics.median(ours[at] / theirs[at] for ours, theirs in pairs) for at in (0, 1, 3)]
        print(f"| {way} | ratio | {ratio[0]:.2f} | {ratio[1]:.2f} | | {ratio[2]:.2f} |")
    if chosen.svg is not None:
        chosen.svg.write_text(picture(found) + "\n")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
