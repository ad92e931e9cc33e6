"""A hundred thousand requests waiting in one gateway: memory, and how long it is deaf while it looks after them.

    python -m benchmarks.cost.waiting_requests [--requests 100000] [--ordering highest-response-ratio] [--json FILE]

Every request is a chat of 1.7 KB on a connection of its own. The transports are stubs, so that no limit of descriptors
stands in the way; what the kernel holds for a socket is not in the figures. The first request runs for ever on a
replica that never answers.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uvloop

from benchmarks.cost import relay
from headway.gateway.gateway import Gateway
from headway.gateway.settings import (
    PolicySettings,
    QueueSettings,
    ReplicaSettings,
    Settings,
)
from headway.gateway.wire.client_connection import ClientConnection
from tests.support.scripted_replica import ScriptedReplica, hangs

PROMPT = "What did the committee decide about the budget, and who objected? " * 24
HEADERS = (
    "host: 127.0.0.1\r\nauthorization: Bearer sk-0123456789abcdef0123456789abcdef\r\n"
    "user-agent: OpenAI/Python 2.1.0\r\n"
    "accept: application/json\r\naccept-encoding: gzip, deflate\r\ncontent-type: application/json\r\n"
    "x-stainless-lang: python\r\nx-stainless-retry-count: 0\r\n"
)


class Unplugged(asyncio.Transport):
    """A transport that takes everything and sends nothing."""

    __slots__ = ()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    abort = pause_reading = resume_reading = close


def request(number: int) -> bytes:
    body = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": f"{number}: {PROMPT}"}], "stream": True}
    ).encode()
    return f"POST /v1/chat/completions HTTP/1.1\r\n{HEADERS}content-length: {len(body)}\r\n\r\n".encode() + body


def timed_ms(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return 1_000 * (time.process_time() - began)


def sweep(clients: list[ClientConnection], now: float) -> None:
    for client in clients:
        client.sweep(now)


async def measure(requests: int, ordering: str) -> dict[str, float]:
    silent = await ScriptedReplica(hangs).start()
    settings = ReplicaSettings(url=silent.url, max_requests=1, metrics=False)
    queue = QueueSettings(max_requests=requests, max_tokens=1 << 40, max_bytes=1 << 40)
    policies = PolicySettings(ordering=ordering)
    gateway = Gateway(Settings(listen="127.0.0.1:0", replica=(settings,), queue=queue, policies=policies))
    await gateway.start()
    dispatcher, (replica,) = gateway.dispatcher, gateway.dispatcher.replicas
    while not (replica.is_up and replica.state.models):
        await asyncio.sleep(0.01)
    gc.collect()
    gc.freeze()
    before, began = relay.rss_mib(0), time.process_time()
    clients = []
    for number in range(requests):
        client = ClientConnection(gateway.site, gateway.settings.wire, gateway._clients, time.monotonic)
        client.connection_made(Unplugged())
        client.data_received(request(number))
        clients.append(client)
        if number % 64 == 0:
            await asyncio.sleep(0)
    while sum(map(len, dispatcher.queues.values())) < requests - 1:
        await asyncio.sleep(0)
    spent, grown = time.process_time() - began, relay.rss_mib(0) - before
    now = time.monotonic()
    found = {
        "waiting": sum(map(len, dispatcher.queues.values())),
        "mib": grown,
        "kib_each": grown * 1024 / requests,
        "arrival_us_each": 1e6 * spent / requests,
        "sweep_ms": timed_ms(lambda: dispatcher.sweep(now)),
        "clients_sweep_ms": timed_ms(lambda: sweep(clients, now)),
        "garbage_ms": timed_ms(gc.collect),
        "other_policies_ms": timed_ms(
            lambda: dispatcher.replace(
                replace(dispatcher.settings, policies=replace(policies, ordering="smallest-volume-first")),
                [replica],
                now,
            )
        ),
    }
    for client in clients:
        client.connection_lost(None)
    await gateway.stop()
    await silent.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--ordering", default="highest-response-ratio")
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    found = uvloop.run(measure(asked.requests, asked.ordering))
    for name, value in found.items():
        print(f"{name:18} {value:,.1f}".removesuffix(".0"))
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
