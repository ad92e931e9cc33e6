"""A gateway that lives in a thread of its own, on uvloop as `headway serve` does, for tests that send raw bytes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

import uvloop

from headway.gateway.gateway import Gateway
from headway.gateway.settings import PolicySettings, ReplicaSettings, Settings
from headway.gateway.wire.limits import WireLimits
from tests.support.gateway_setup import QUICK
from tests.support.scripted_replica import Call, ScriptedReplica, answers, streams

T = TypeVar("T")


async def serves_anything(call: Call) -> None:
    """Two tokens to a completion, whatever else it holds, and a word of JSON to the rest, which may be any bytes."""
    await (streams(2) if call.path.endswith("/completions") else answers())(call)


class LiveGateway:
    """One gateway in front of one scripted replica; `troubles` is what nobody caught."""

    def __init__(self, wire: WireLimits) -> None:
        self.troubles: list[object] = []
        self._wire = wire
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._live)

    def __enter__(self) -> LiveGateway:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.inside(self._over.set)
        self._thread.join(30)

    def inside(self, what: Callable[[], T]) -> T:
        """Call it in the gateway's loop, and wait."""

        async def call() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(30)

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(lambda _, trouble: self.troubles.append(trouble))
        self.replica = await ScriptedReplica(serves_anything).start()
        settings = Settings(
            listen="127.0.0.1:0",
            policies=PolicySettings(ordering="fcfs"),
            health=QUICK,
            wire=self._wire,
            replica=(ReplicaSettings(url=self.replica.url, name="r0", metrics=False),),
        )
        self.gateway = Gateway(settings)
        await self.gateway.start()
        self.port = self.gateway.addresses[0][1]
        while not self.gateway.dispatcher.replicas[0].is_up:
            await asyncio.sleep(0.01)
        self._ready.set()
        await self._over.wait()
        await self.gateway.stop()
        await self.replica.stop()
        await asyncio.sleep(0.02)
