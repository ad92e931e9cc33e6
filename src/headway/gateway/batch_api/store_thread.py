"""The one thread in which the store of the Batch API is called, one call after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class StoreThread:
    """Calls from the event loop; `close` ends the thread."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch-store")

    async def call(self, act: Callable[P, T], *values: P.args, **named: P.kwargs) -> T:
        """What `act` returns or raises. A call that has begun is not given up when its caller is cancelled."""
        future = self._threads.submit(act, *values, **named)
        return await asyncio.shield(asyncio.wrap_future(future))

    async def close(self) -> None:
        """End the thread, after the calls that were made."""
        await asyncio.to_thread(self._threads.shutdown)
