"""Stepped answer: its request is read first, a step at each turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from headway.gateway.wire.client_connection import PendingAnswer


class SteppedAnswer:
    """A `PendingAnswer`. After the last step it is the answer that `then` gives."""

    def __init__(
        self, steps: Iterator[None], then: Callable[[], PendingAnswer | None], broke: Callable[[Exception], None]
    ) -> None:
        """Take the first step at once; `broke` hears of what a step or `then` raises."""
        self._steps = steps
        self._then = then
        self._broke = broke
        self._answer: PendingAnswer | None = None
        self._is_over = False
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._step)

    def client_left(self) -> None:
        """Stop."""
        self._is_over = True
        if self._answer is not None:
            self._answer.client_left()

    def client_full(self) -> None:
        """It is the answer's to know."""
        if self._answer is not None:
            self._answer.client_full()

    def client_ready(self) -> None:
        """It is the answer's to know."""
        if self._answer is not None:
            self._answer.client_ready()

    def _step(self) -> None:
        if self._is_over:
            return
        try:
            for _ in self._steps:
                self._loop.call_soon(self._step)
                return
            self._answer = self._then()
            del self._then, self._broke  # they hold the body
        except Exception as error:
            self._is_over = True
            self._broke(error)
