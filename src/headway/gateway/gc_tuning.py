"""When Python looks for garbage: rarely, and not while a hundred thousand requests would have to be looked through.

Requests that end free themselves, having no cycles; what is left to find are the odds and ends of connections that
failed. A look at everything takes about ten microseconds a waiting request, in which no stream moves.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

EVERY_SECONDS = 60.0
INSIDE_MAX = 1_000
"""With more requests inside there is no look at everything."""
_NEVER = 1 << 30


async def collect_when_quiet(inside: Callable[[], int]) -> None:
    """Until cancelled; `inside` tells how many requests there are. Sets how the whole process collects."""
    gc.collect()
    gc.freeze()  # what is here now stays, and is not looked through again
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        if inside() <= INSIDE_MAX:
            gc.collect()
