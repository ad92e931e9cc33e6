"""The actor that holds the queue of one Ray Serve deployment. Routers start it by its name, and it ends by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import ray

from headway.ray.queue_client import QueueEnd
from headway.ray.queue_messages import Greeting, RouterNews, RouteVerdict
from headway.ray.queue_settings import read_queue_settings
from headway.ray.shared_queue import SharedQueue

NAMESPACE = "headway"
_CALLS_MAX = 100_000  # that wait at once: one for each router
log = logging.getLogger("headway.ray")


class QueueActor:
    """The queue as an actor: `SharedQueue`, and its end."""

    async def __init__(self, settings: str | Mapping[str, Any]) -> None:  # type: ignore[misc] # as Ray wants it
        """`settings`: see `read_queue_settings`."""
        read = read_queue_settings(settings)
        self._queue = SharedQueue(read)
        self._idle_seconds = read.ray.idle_seconds
        self._tasks = [asyncio.ensure_future(self._queue.keep_sweeping()), asyncio.ensure_future(self._end_unused())]

    async def greet(self, greeting: Greeting) -> None:
        """See `SharedQueue.greet`."""
        self._queue.greet(greeting)

    async def take(self, news: RouterNews) -> list[RouteVerdict] | None:
        """See `SharedQueue.take`."""
        return self._queue.take(news)

    async def wait(self, router: str, seconds: float) -> list[RouteVerdict] | None:
        """See `SharedQueue.wait`."""
        return await self._queue.wait(router, seconds)

    async def figures(self) -> dict[str, object]:
        """See `SharedQueue.figures`."""
        return self._queue.figures()

    async def _end_unused(self) -> None:
        while self._queue.unused_seconds < self._idle_seconds:
            await asyncio.sleep(min(1.0, self._idle_seconds / 4))
        log.info("the queue had no router for %.0f s and ends", self._idle_seconds)
        ray.kill(ray.get_runtime_context().current_actor)


class ActorEnd:
    """A `QueueEnd` that is an actor."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def greet(self, greeting: Greeting) -> None:
        """See `SharedQueue.greet`."""
        await self._handle.greet.remote(greeting)

    async def take(self, news: RouterNews) -> list[RouteVerdict] | None:
        """See `SharedQueue.take`."""
        verdicts: list[RouteVerdict] | None = await self._handle.take.remote(news)
        return verdicts

    async def wait(self, router: str, seconds: float) -> list[RouteVerdict] | None:
        """See `SharedQueue.wait`."""
        verdicts: list[RouteVerdict] | None = await self._handle.wait.remote(router, seconds)
        return verdicts


def queue_name(application: str, deployment: str) -> str:
    """Name of the actor that holds a deployment's queue, in the namespace `headway`."""
    return f"queue:{application}:{deployment}"


async def reach_queue(name: str, settings: str | Mapping[str, Any]) -> QueueEnd:
    """The queue of that name; it is started if there is none, with these settings."""
    return ActorEnd(await asyncio.to_thread(_started, name, settings))


def _started(name: str, settings: str | Mapping[str, Any]) -> Any:
    """One actor, started at the first call. It takes no CPU of the cluster; Ray starts it again if its node dies."""
    actor = ray.remote(QueueActor)
    return actor.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=_CALLS_MAX,
    ).remote(settings)


def figures_of(application: str, deployment: str) -> dict[str, object]:
    """What the queue of a deployment counts, for people: see `SharedQueue.figures`.

    Raises:
        ValueError: it has none now.
    """
    name = queue_name(application, deployment)
    try:
        actor = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        raise ValueError(
            f"the deployment {deployment!r} of {application!r} has no queue now; send it a request"
        ) from None
    figures: dict[str, object] = ray.get(actor.figures.remote())
    return figures
