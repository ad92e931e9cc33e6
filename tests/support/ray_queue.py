"""A queue for Ray Serve and its routers in one process and one event loop, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from headway.gateway.openai.prompt_count import PromptFacts
from headway.ray.queue_client import QueueClient, QueueEnd
from headway.ray.queue_messages import Greeting, RequestFacts, RouterNews, RouteVerdict, ServeReplica
from headway.ray.queue_settings import read_queue_settings
from headway.ray.shared_queue import SharedQueue


class LocalEnd:
    """A queue in this process, which can be made to fail. `calls` counts what was taken."""

    def __init__(self, queue: SharedQueue) -> None:
        self.queue = queue
        self.is_dead = False
        self.hangs = False
        self.calls = 0

    async def _reach(self) -> None:
        await asyncio.sleep(0)  # another turn of the event loop, as a real call takes
        if self.is_dead:
            raise ConnectionError("the actor died")
        if self.hangs:
            await asyncio.Event().wait()

    async def greet(self, greeting: Greeting) -> None:
        await self._reach()
        self.queue.greet(greeting)

    async def take(self, news: RouterNews) -> list[RouteVerdict] | None:
        await self._reach()
        self.calls += 1
        return self.queue.take(news)

    async def wait(self, router: str, seconds: float) -> list[RouteVerdict] | None:
        await self._reach()
        waiting = asyncio.ensure_future(self.queue.wait(router, seconds))
        while not waiting.done():
            if self.is_dead:
                waiting.cancel()
                raise ConnectionError("the actor died")
            await asyncio.wait([waiting], timeout=0.01)
        return waiting.result()


class QueueHouse:
    """A queue, and how routers reach it; `end` is replaced when the queue is lost and begins again."""

    def __init__(self, settings: Mapping[str, Any] | None = None, clock: Callable[[], float] | None = None) -> None:
        self._settings = read_queue_settings(settings or {})
        self._clock = clock
        self.is_reachable = True
        self.begin()

    def begin(self) -> None:
        """A new queue, which knows no router."""
        clock = {} if self._clock is None else {"clock": self._clock}
        self.queue = SharedQueue(self._settings, **clock)
        self.end = LocalEnd(self.queue)

    async def reach(self) -> QueueEnd:
        if not self.is_reachable:
            raise ConnectionError("there is no actor")
        return self.end

    def router(self, name: str = "router", **options: Any) -> QueueClient:
        return QueueClient(name, self.reach, **options)


def replicas(*names: str, requests_max: int = 1) -> list[ServeReplica]:
    return [ServeReplica(name, requests_max) for name in names]


def prompt_of(tokens: int, **more: Any) -> RequestFacts:
    return RequestFacts(prompt=PromptFacts(bytes=4 * tokens, ids=tokens), body_bytes=4 * tokens, **more)


async def until(holds: Callable[[], bool], turns: int = 10_000) -> None:
    """Let the event loop run until something holds; an error if it never does."""
    for turn in range(turns):
        if holds():
            return
        await asyncio.sleep(0 if turn < 100 else 0.002)
    raise AssertionError("it never came to hold")
