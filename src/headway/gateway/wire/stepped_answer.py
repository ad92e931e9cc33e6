"""Stepped answer: its request is read first, a step at a time.

Law: at each turn of the event loop one step is taken, of whichever answer; so a crowd of large requests holds up the
other connections no longer than one does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from headway.gateway.wire.client_connection import PendingAnswer


class StepsInTurn:
    """Takes the steps of all answers that are not read yet, in turn."""

    def __init__(self) -> None:
        self._open: deque[SteppedAnswer] = deque()
        self._is_planned = False

    def add(self, answer: SteppedAnswer) -> None:
        """One more answer, whose first step is taken soon."""
        self._open.append(answer)
        self._plan()

    def _turn(self) -> None:
        answer = self._open.popleft()
        try:
            if answer.step():
                self._open.append(answer)
        finally:  # an answer that fails must not stop the others
            self._is_planned = False
            self._plan()

    def _plan(self) -> None:
        if self._open and not self._is_planned:
            self._is_planned = True
            asyncio.get_running_loop().call_soon(self._turn)


class SteppedAnswer:
    """A `PendingAnswer`. After the last step it is the answer that `then` gives."""

    def __init__(
        self, steps: Iterator[None], then: Callable[[], PendingAnswer | None], broke: Callable[[Exception], None]
    ) -> None:
        """`broke` hears of what a step or `then` raises."""
        self._steps = steps
        self._then = then
        self._broke = broke
        self._answer: PendingAnswer | None = None
        self._is_over = False

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

    def step(self) -> bool:
        """Take the next step; whether there are more."""
        if self._is_over:
            return False
        try:
            for _ in self._steps:
                return True
            self._answer = self._then()
            del self._then, self._broke  # they hold the body
        except Exception as error:
            self._is_over = True
            self._broke(error)
        return False
