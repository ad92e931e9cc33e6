"""A gateway on real sockets, in front of replicas that do as they are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from headway.gateway.gateway import Gateway
from headway.gateway.settings import (
    HealthSettings,
    PolicySettings,
    QueueSettings,
    ReplicaSettings,
    Settings,
)
from headway.gateway.wire.client_connection import ClientConnection
from tests.support.scripted_replica import ScriptedReplica

QUICK = HealthSettings(
    scrape_seconds=0.05, eject_seconds=0.1, eject_seconds_max=0.2, connect_seconds=2.0, drain_seconds=5.0
)

LOOP_HELD_SECONDS_MAX = 1.0
"""CPU time at one turn, of gateway, replicas and clients together; far above the law's 50 ms, for slow machines."""
LOOP_WATCH_SECONDS = 0.02
"""Between two looks of the loop watch: so much of a pause a test may miss. A gateway that serves looks less often."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def texts(self) -> str:
        events = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: {")]
        return "".join(c.get("text", "") for e in events for c in json.loads(e)["choices"])

    @property
    def reason(self) -> str:
        return self.headers.get("x-headway-reason", "")


class RawClient:
    """A client that sends the bytes it is given and reads one answer at a time."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> RawClient:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        await asyncio.sleep(0)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), headers

    async def answer(self) -> Answer:
        status, headers = await self.head()
        if "content-length" in headers:
            return Answer(status, headers, await self.reader.readexactly(int(headers["content-length"])))
        if headers.get("transfer-encoding") != "chunked":
            return Answer(status, headers, await self.reader.read())
        body = b""
        try:
            while True:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                piece = await self.reader.readexactly(size + 2)
                if not size:
                    return Answer(status, headers, body)
                body += piece[:-2]
        except (asyncio.IncompleteReadError, ConnectionError):
            return Answer(status, headers, body, whole=False)

    async def closes(self) -> bool:
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


def post(body: object, path: str = "/v1/completions", headers: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(data)}\r\n\r\n".encode() + data


def completion(**fields: object) -> dict[str, object]:
    return {"model": "m", "prompt": "hello there", "stream": True, **fields}


@dataclass
class Clock:
    """Seconds that pass by hand."""

    now: float

    def __call__(self) -> float:
        return self.now


@dataclass
class Setup:
    """Everything a test needs; made inside its event loop."""

    gateway: Gateway
    replicas: list[ScriptedReplica]
    settings: Settings
    port: int
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def dispatcher(self) -> Any:
        return self.gateway.dispatcher

    @property
    def clients(self) -> set[ClientConnection]:
        """Every open connection of a client."""
        return self.gateway._clients

    async def ask(self, body: object = None, path: str = "/v1/completions", headers: str = "") -> Answer:
        async with RawClient(self.port) as client:
            await client.send(post(completion() if body is None else body, path, headers))
            return await client.answer()

    async def get(self, path: str, headers: str = "") -> Answer:
        async with RawClient(self.port) as client:
            await client.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode())
            return await client.answer()

    def stop_the_clock(self) -> Clock:
        """Of connections that come from now on: their time passes by hand, so that no slow machine uses it up."""
        clock = Clock(self.gateway._clock())
        self.gateway._clock = clock
        return clock

    async def until(self, fact: Callable[[], object], seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while not fact():
                await asyncio.sleep(0.005)

    def law(self) -> None:
        """Nothing lost, nothing answered twice, every place free again."""
        counts = self.dispatcher.counts
        assert counts.is_conserved()
        assert counts.inside == 0, counts.inside
        assert not self.dispatcher.relays
        for one in self.dispatcher.replicas:
            assert one.ledger.requests == 0
            assert (one.ledger.prefill_tokens, one.ledger.kv_tokens, one.ledger.decode_tokens) == (0, 0, 0)
        for queue in self.dispatcher.queues.values():
            assert len(queue) == 0
            assert (queue.waiting.tokens, queue.waiting.bytes, queue.waiting_work) == (0, 0, 0)
            assert not queue.waiting_by_payer


RunGateway = Callable[..., None]


def run_gateway(
    scenario: Callable[[Setup], Awaitable[None]],
    replicas: int = 1,
    *,
    queue: QueueSettings | None = None,
    health: HealthSettings = QUICK,
    policies: PolicySettings | None = None,
    seats: int | None = None,
    metrics: str = "",
    **more: object,
) -> None:
    """Run a test's coroutine with a gateway in front of `replicas`, check the law, and take everything down."""

    async def whole() -> None:
        troubles: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
        scripted = [await ScriptedReplica().start() for _ in range(replicas)]
        for one in scripted:
            one.metrics = metrics
        settings = Settings(
            listen="127.0.0.1:0",
            queue=queue or QueueSettings(),
            health=health,
            policies=policies or PolicySettings(ordering="fcfs"),
            replica=tuple(
                ReplicaSettings(url=one.url, name=f"r{number}", max_requests=seats)
                for number, one in enumerate(scripted)
            ),
        )
        settings = replace(settings, **more)  # type: ignore[arg-type]
        gateway = Gateway(settings)
        gateway.loop_watch.period_seconds = LOOP_WATCH_SECONDS
        await gateway.start()
        setup = Setup(gateway, scripted, settings, gateway.addresses[0][1])
        try:
            await setup.until(lambda: all(one.is_up for one in setup.dispatcher.replicas))
            await scenario(setup)
            await setup.until(lambda: not setup.dispatcher.counts.inside)
            setup.law()
        finally:
            await gateway.stop()
            for one in scripted:
                await one.stop()
            await asyncio.sleep(0.02)
        held = gateway.loop_watch.longest_held_seconds
        assert held < LOOP_HELD_SECONDS_MAX, f"the event loop was held for {held:.2f} s of CPU time"
        assert not troubles, troubles  # an exception in a callback ends no test by itself

    async def bounded() -> None:
        async with asyncio.timeout(300):
            await whole()

    asyncio.run(bounded())
