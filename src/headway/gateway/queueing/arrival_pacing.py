"""Lets newcomers in a few at a time, so that a crowd at the door does not hold up the tokens of those who are served.

Laws: in order of arrival; who comes when few have come lately waits for nothing; between two handfuls of a crowd the
loop reads and writes whatever is ready.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

HANDFUL = 2
"""Letting one in costs about as much as relaying a dozen tokens."""
SPELL_SECONDS = 0.002
"""A handful in so short a time goes straight in."""


class ArrivalPacer:
    """`clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._crowd: deque[Callable[[], None]] = deque()
        self._spell_began = 0.0
        self._came = 0  # in this spell

    def come(self, enter: Callable[[], None]) -> None:
        """Call `enter` now, or soon if many came lately."""
        now = self._clock()
        if now - self._spell_began >= SPELL_SECONDS:
            self._spell_began, self._came = now, 0
        self._came += 1
        if self._crowd:
            self._crowd.append(enter)
        elif self._came <= HANDFUL:
            enter()
        else:
            self._crowd.append(enter)
            asyncio.get_running_loop().call_soon(self._let_in)

    def _let_in(self) -> None:
        try:
            for _ in range(min(HANDFUL, len(self._crowd))):
                self._crowd.popleft()()
        finally:  # whoever fails must not shut the door on those behind it
            if self._crowd:
                asyncio.get_running_loop().call_soon(self._let_in)
