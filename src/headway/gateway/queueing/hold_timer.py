"""Hold timer: has a queue's head asked for again when the admission policy's refusal of it ends.

A refusal stands for a number of engine steps. An engine asks at each of its steps; here only arrivals, ends and first
tokens are noticed at once, so a timer stands in for the steps between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headway.gateway.replicas.upstream_replica import UpstreamReplica

_SOONEST_SECONDS = 0.005
_LATEST_SECONDS = 1.0  # by then the dispatcher looks at everything anyway


class HoldTimer:
    """One per process, in its event loop. `clock` gives seconds; `ask` is called when a refusal may have ended."""

    def __init__(self, clock: Callable[[], float], ask: Callable[[], None]) -> None:
        self._clock = clock
        self._ask = ask
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def held(self, replica: UpstreamReplica, steps: int) -> None:
        """A head was refused a place at this replica for so many of its steps."""
        seconds = max(_SOONEST_SECONDS, steps * replica.ledger.clock.step_seconds)
        if seconds >= _LATEST_SECONDS:
            return
        due = self._clock() + seconds
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = asyncio.get_running_loop().call_later(seconds, self._ends)

    def close(self) -> None:
        """Forget what is held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ends(self) -> None:
        self._timer = None
        self._ask()
