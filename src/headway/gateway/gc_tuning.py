"""Garbage collection settings: full collections run only while few requests are in the gateway.

Requests that end free themselves, having no cycles. What is left to collect are parts of connections that failed. A
full collection takes about ten microseconds per waiting request, in which no stream moves.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

EVERY_SECONDS = 60.0
INSIDE_MAX = 1_000
"""With more requests in the gateway no full collection runs."""
_NEVER = 1 << 30


async def collect_when_quiet(inside: Callable[[], int]) -> None:
    """Collect once a minute until cancelled. Changes how the whole process collects garbage.

    `inside` gives the number of requests that are queued or running.
    """
    gc.collect()
    gc.freeze()  # objects of the start live on, and are not visited again
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        if inside() <= INSIDE_MAX:
            gc.collect()
