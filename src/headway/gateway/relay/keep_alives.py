"""Keep-alives: what a waiting stream is sent every `queue.keep_alive_seconds`, so that nothing on its way closes it.

Laws: one timer for all streams; a stream is sent nothing while its client does not read, nor after its answer began;
at one turn of the event loop few are written, however many are due; of requests that need none any more about as many
entries are kept as of those that do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from weakref import ref

from headway.gateway.relay.early_stream import needs_keep_alive
from headway.gateway.relay.exchange import Exchange

_SOONEST_SECONDS = 0.25  # between two turns of the timer
_FEW = 1_000  # entries that are not looked through
_WRITTEN_A_TURN = 50  # each takes about 20 us


class KeepAlives:
    """One per process, in its event loop. `clock` gives seconds; `seconds` is the setting as it is now, 0 for off."""

    def __init__(
        self, clock: Callable[[], float], seconds: Callable[[], float], broke: Callable[[Exchange, Exception], None]
    ) -> None:
        """`broke` hears of what a write raises."""
        self._clock = clock
        self._seconds = seconds
        self._broke = broke
        # The one that was written to longest ago first. A request that ends is not kept for its entry's sake.
        self._waiting: deque[tuple[float, ref[Exchange]]] = deque()
        self._looked_through_at = _FEW  # entries, with which those are dropped that need none any more
        self._timer: asyncio.TimerHandle | None = None

    def add(self, exchange: Exchange) -> None:
        """A stream was asked for just now."""
        if self._seconds():
            self._waiting.append((self._clock(), ref(exchange)))
            if len(self._waiting) >= self._looked_through_at:
                self._look_through()
            self._plan()

    def _look_through(self) -> None:
        """Drop the entries of requests that need none any more; so seldom that it takes each request no longer."""
        waiting = ((since, entry, entry()) for since, entry in self._waiting)
        left = [(since, entry) for since, entry, one in waiting if one is not None and needs_keep_alive(one.request)]
        self._waiting = deque(left)
        self._looked_through_at = max(_FEW, 2 * len(left))

    def plan_again(self) -> None:
        """The setting may have changed: streams that wait go by it too."""
        self._stop_timer()
        self._plan()

    def close(self) -> None:
        """Send no more."""
        self._waiting.clear()
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _plan(self) -> None:
        if self._timer is None and self._waiting:
            due = self._waiting[0][0] + self._seconds() - self._clock()
            self._timer = asyncio.get_running_loop().call_later(max(_SOONEST_SECONDS, due), self._turn)

    def _turn(self) -> None:
        self._timer = None
        seconds, now = self._seconds(), self._clock()
        if not seconds:  # switched off by a reload
            self._waiting.clear()
            return
        written = 0
        while self._waiting and self._waiting[0][0] + seconds <= now:
            if written >= _WRITTEN_A_TURN:  # the others after all other connections had a turn
                self._timer = asyncio.get_running_loop().call_later(0, self._turn)
                return
            exchange = self._waiting.popleft()[1]()
            if exchange is not None and self._write(exchange):
                written += 1
                self._waiting.append((now, ref(exchange)))
        self._plan()

    def _write(self, exchange: Exchange) -> bool:
        """Whether it goes on waiting."""
        try:
            return exchange.keep_alive() is not None
        except Exception as error:
            self._broke(exchange, error)
            return False
