"""Streams that wait in one gateway and are kept alive: CPU time, as a share of a core, beside the same with it off.

    python -m benchmarks.cost.keep_alives [--streams 5000] [--every 15] [--seconds 60] [--json FILE]

Every stream is a request on a connection of its own over the loopback; its client is another process, which reads and
counts. The one replica never answers, so all but one request wait in the queue. The CPU time is that of the gateway's
process, the kernel's work for its sockets included, from when all have come.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import uvloop

from headway.gateway.gateway import Gateway
from headway.gateway.settings import (
    PolicySettings,
    QueueSettings,
    ReplicaSettings,
    Settings,
)
from headway.gateway.wire.limits import WireLimits
from tests.support.scripted_replica import ScriptedReplica, hangs

_BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}).encode()
_REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
_MARK = b": keep-alive"
_OPENED_AT_ONCE = 100


def _allow_descriptors() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Client(asyncio.Protocol):
    """Asks, and counts the keep-alives of all."""

    received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(_REQUEST)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        _Client.received += data.count(_MARK)


def _clients(port: int, streams: int, told: Connection) -> None:
    async def live() -> None:
        loop = asyncio.get_running_loop()
        for number in range(streams):
            await loop.create_connection(_Client, "127.0.0.1", port)
            if not number % _OPENED_AT_ONCE:
                await asyncio.sleep(0.02)
        told.send("open")
        await loop.run_in_executor(None, told.recv)
        told.send(_Client.received)

    _allow_descriptors()
    uvloop.run(live())


async def measured(streams: int, every: float, seconds: float) -> dict[str, float]:
    """CPU time of the gateway in a window of `seconds`, with a keep-alive `every` so many seconds; 0 for none."""
    replica = await ScriptedReplica(hangs).start()
    gateway = Gateway(
        Settings(
            listen="127.0.0.1:0",
            policies=PolicySettings(ordering="fcfs"),
            queue=QueueSettings(keep_alive_seconds=every, max_requests=2 * streams),
            replica=(ReplicaSettings(url=replica.url, max_requests=1, metrics=False),),
            wire=WireLimits(address_connections=2 * streams),
        )
    )
    await gateway.start()
    while not gateway.dispatcher.replicas[0].is_up:
        await asyncio.sleep(0.05)
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(
        target=_clients, args=(gateway.addresses[0][1], streams, there), daemon=True
    )
    child.start()
    await asyncio.to_thread(here.recv)
    while gateway.dispatcher.counts.inside < streams:
        await asyncio.sleep(0.1)
    await asyncio.sleep(every)  # each has had its first one, with the head
    gateway.loop_watch.longest_held_seconds = 0.0
    sent, cpu, began = gateway.dispatcher.counts.keep_alives, time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    wall, cpu = time.monotonic() - began, time.process_time() - cpu
    sent = gateway.dispatcher.counts.keep_alives - sent
    here.send("end")
    received = await asyncio.to_thread(here.recv)
    child.join()
    held = gateway.loop_watch.longest_held_seconds
    await gateway.stop()
    await replica.stop()
    return {
        "core_share": cpu / wall, "sent": sent, "received": received, "cpu_seconds": cpu, "wall_seconds": wall,
        "longest_held_ms": 1000 * held,
    }  # fmt: skip


def main() -> None:
    """Print both figures and what keep-alives add."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=5_000)
    parser.add_argument("--every", type=float, default=15.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    _allow_descriptors()
    off = uvloop.run(measured(asked.streams, 0.0, asked.seconds))
    on = uvloop.run(measured(asked.streams, asked.every, asked.seconds))
    added = on["cpu_seconds"] - off["cpu_seconds"]
    found = {"off": off, "on": on, "added_core_share": on["core_share"] - off["core_share"]}
    found |= {"us_each": 1e6 * added / max(1, on["sent"])}
    print(f"{asked.streams:,} waiting streams, off: {100 * off['core_share']:.2f} % of a core")
    print(f"a keep-alive every {asked.every:g} s: {100 * on['core_share']:.2f} %, {on['sent']:,.0f} were sent")
    print(f"added: {100 * found['added_core_share']:.2f} %, {found['us_each']:.0f} us for each")
    print(f"longest turn of the event loop: {off['longest_held_ms']:.0f} ms off, {on['longest_held_ms']:.0f} ms on")
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
