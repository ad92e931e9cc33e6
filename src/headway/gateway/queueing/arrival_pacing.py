"""Pacing of arrivals: a burst of requests enters a few at a time, so that it does not hold up running streams.

Laws: requests enter in order of arrival; outside a burst a request enters at once; between two handfuls of a burst the
event loop reads and writes whatever is ready.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

HANDFUL = 2
"""Requests that enter together. One costs about as much as relaying a dozen tokens."""
WINDOW_SECONDS = 0.002
"""A handful within this time enters at once."""


class ArrivalPacer:
    """Calls the way in of each arrival, at once or in turn. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._burst: deque[Callable[[], None]] = deque()
        self._window_began = 0.0
        self._arrived = 0  # in this window

    def arrive(self, enter: Callable[[], None]) -> None:
        """Call `enter` now, or soon if many requests arrived lately."""
        now = self._clock()
        if now - self._window_began >= WINDOW_SECONDS:
            self._window_began, self._arrived = now, 0
        self._arrived += 1
        if self._burst:
            self._burst.append(enter)
        elif self._arrived <= HANDFUL:
            enter()
        else:
            self._burst.append(enter)
            asyncio.get_running_loop().call_soon(self._let_in)

    def _let_in(self) -> None:
        try:
            for _ in range(min(HANDFUL, len(self._burst))):
                self._burst.popleft()()
        finally:  # a request that fails must not stop those behind it
            if self._burst:
                asyncio.get_running_loop().call_soon(self._let_in)
