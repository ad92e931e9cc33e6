"""Embedded engine: a simulated vLLM on a loopback port of its own, reached by the gateway like any other replica."""

from __future__ import annotations

import asyncio
import time

from headway.gateway.embedded.engine_routes import EngineRoutes
from headway.gateway.embedded.live_engine import LiveEngine
from headway.gateway.settings import EmbeddedSettings, ReplicaSettings
from headway.gateway.wire.client_connection import ClientConnection
from headway.gateway.wire.limits import WireLimits
from headway.simulator.replica import replica

_SWEEP_SECONDS = 1.0


class EmbeddedEngine:
    """A simulated engine and the HTTP server in front of it."""

    def __init__(self, settings: EmbeddedSettings) -> None:
        """Raises ValueError, in one sentence, for an unknown hardware or model."""
        self._shape = replica(
            settings.hardware,
            settings.model,
            max_num_seqs=settings.max_num_seqs,
            kv_tokens=settings.kv_tokens,
            prefix_caching=settings.prefix_caching,
        )
        self._clients: set[ClientConnection] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, number: int) -> ReplicaSettings:
        """Listen; returns the replica settings with which the gateway reaches it."""
        loop = asyncio.get_running_loop()
        engine = LiveEngine(self._shape, time.monotonic)
        routes = EngineRoutes(engine, self._shape.model.name)

        def connect() -> ClientConnection:
            return ClientConnection(routes, WireLimits(), self._clients, time.monotonic)

        self._server = await loop.create_server(connect, "127.0.0.1", 0, backlog=4_096)
        self._tasks = [asyncio.create_task(engine.live()), asyncio.create_task(self._sweep())]
        self.engine = engine
        port = self._server.sockets[0].getsockname()[1]
        return ReplicaSettings(url=f"http://127.0.0.1:{port}", name=f"simulated-{number}")

    async def stop(self) -> None:
        """Stop at once."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in list(self._clients):
            client.hang_up()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            for client in list(self._clients):
                client.sweep(time.monotonic())
