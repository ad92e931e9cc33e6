"""Loop watch: the longest time in which the event loop had no turn for other work.

No single request, scrape, log reader or reload may hold the loop for more than `PAUSE_SECONDS`. Wall time counts what
clients notice, also where the machine is busy with other programs. What this thread computed of it is told apart: in
the rest other threads or programs had the processor.

A pause is seen from the moment on at which a look was due: it lasted up to a period longer than it shows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from headway.gateway.observing import prometheus_text as prometheus

PAUSE_SECONDS = 0.05
PERIOD_SECONDS = 0.05
"""Between two looks. Each wakes the process, which costs more than the look: at 0.02 it was 4 % of a request's CPU."""
_WINDOW_SECONDS = 30.0  # the gauge covers this window and the one before it


class LoopWatch:
    """One per event loop. `clock` gives seconds, `cpu_clock` seconds in which this thread computed."""

    def __init__(self, clock: Callable[[], float], cpu_clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self.period_seconds = PERIOD_SECONDS
        self.pauses = 0  # above `PAUSE_SECONDS`, since the start
        self.longest_held_seconds = 0.0  # since the start
        self._longest = self._longest_before = 0.0  # of this window and of the one before it
        self._held = self._held_before = 0.0  # likewise, of what this thread computed
        self.holds = 0  # above `PAUSE_SECONDS` of it, since the start
        self._window_began = self._due = clock()
        self._cpu_before = cpu_clock()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch the running loop."""
        self._cpu_before = self._cpu_clock()
        self._wait()

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()

    def longest_seconds(self) -> float:
        """The longest pause of the last 30 to 60 seconds."""
        return max(self._longest, self._longest_before)

    def held_seconds(self) -> float:
        """The longest that this thread computed in a pause of the last 30 to 60 seconds."""
        return max(self._held, self._held_before)

    def metrics(self) -> Iterator[str]:
        """The figures in Prometheus's text format."""
        yield prometheus.gauge(
            "headway_event_loop_pause_seconds",
            "Longest time within the last minute in which the event loop had no turn",
            [({}, self.longest_seconds())],
        )
        yield prometheus.counter(
            "headway_event_loop_pauses", "Times that the event loop had no turn for 50 ms or more", [({}, self.pauses)]
        )
        yield prometheus.gauge(
            "headway_event_loop_held_seconds",
            "Longest time within the last minute that the loop's thread computed in one such pause",
            [({}, self.held_seconds())],
        )
        yield prometheus.counter(
            "headway_event_loop_holds",
            "Pauses in which the loop's thread computed for 50 ms or more",
            [({}, self.holds)],
        )

    def turn(self) -> None:
        """The loop has a turn: how late is it?"""
        now, cpu = self._clock(), self._cpu_clock()
        late = max(0.0, now - self._due)
        held = min(late, cpu - self._cpu_before)
        self.longest_held_seconds = max(self.longest_held_seconds, held)
        self._cpu_before = cpu
        if now - self._window_began >= _WINDOW_SECONDS:
            self._longest_before, self._longest, self._window_began = self._longest, 0.0, now
            self._held_before, self._held = self._held, 0.0
        self._longest, self._held = max(self._longest, late), max(self._held, held)
        self.pauses += late >= PAUSE_SECONDS
        self.holds += held >= PAUSE_SECONDS
        self._due = now + self.period_seconds

    def _wait(self) -> None:
        self._due = self._clock() + self.period_seconds
        self._timer = asyncio.get_running_loop().call_later(self.period_seconds, self._tick)

    def _tick(self) -> None:
        self.turn()
        self._wait()
