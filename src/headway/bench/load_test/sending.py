"""Sends a trace on the wall clock and notes when its answers came: times as the client sees them.

A turn of a session is sent after the one before it has ended and the client has thought. A refused request is not
sent again; it counts as refused, under the endpoint's own reason.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from headway.bench.load_test.prompts import Prompts
from headway.bench.load_test.stream_client import HeaderFields, StreamClient, StreamFault
from headway.simulator.arrivals import FOREVER, Arrivals
from headway.simulator.day_columns import DayColumns
from headway.simulator.outcome import NO_POINTS, DayOutcome
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

_POLL_SECONDS = 0.05  # how long it takes at most to notice that a follow-up turn is due


class Sender:
    """One run of one trace. Create it inside the loop that runs it."""

    def __init__(
        self, client: StreamClient, trace: Trace, prompts: Prompts, *, on_end: Callable[[], None] = lambda: None
    ) -> None:
        self._trace = trace
        self._prompts = prompts
        self._client = client
        self._on_end = on_end
        self._arrivals = Arrivals(trace)
        self._news = asyncio.Event()
        self._inside: set[asyncio.Task[None]] = set()
        self.columns = DayColumns(len(trace))
        self.output_tokens = trace.output_tokens.copy()
        self.prompt_tokens = trace.prompt_tokens.copy()
        self._began = 0.0

    async def run(self) -> tuple[Trace, DayOutcome]:
        """Send everything; the trace with the lengths that really came, and what became of every row."""
        self._began = time.monotonic()
        arrivals = self._arrivals
        while True:
            for at_ps, row in arrivals.take(self.now_ps()):
                self.columns.arrived_ps[row] = at_ps
                task = asyncio.create_task(self._send(row))
                self._inside.add(task)
                task.add_done_callback(self._inside.discard)
            if arrivals.next_ps == FOREVER and not self._inside:
                break
            left = (arrivals.next_ps - self.now_ps()) / PS_PER_SECOND
            self._news.clear()
            with_timeout = min(max(left, 0.0), _POLL_SECONDS)
            try:
                await asyncio.wait_for(self._news.wait(), with_timeout)
            except TimeoutError:
                continue
        self._client.close()
        came = replace(self._trace, output_tokens=self.output_tokens, prompt_tokens=self.prompt_tokens)
        return came, self.columns.outcome(0, 0, NO_POINTS)

    def now_ps(self) -> int:
        """Picoseconds since the start."""
        return int((time.monotonic() - self._began) * PS_PER_SECOND)

    async def _send(self, row: int) -> None:
        times = _TokenTimes(self, row)
        try:
            served = await self._client.complete(
                self._prompts.body(row), headers=self._headers(row), on_tokens=times.note
            )
        except StreamFault as fault:
            self.ended(row, fault.reason or str(fault))
        else:
            self.output_tokens[row] = served.output_tokens
            self.prompt_tokens[row] = max(1, served.prompt_tokens)
            self.ended(row, None)
        self._on_end()

    def ended(self, row: int, refusal: str | None) -> None:
        """A row is over; with a refusal the later turns of its session never come."""
        now = self.now_ps()
        if refusal is None:
            self.columns.ended_ps[row] = now
            self._arrivals.ended(row, now)
        else:
            self.columns.refused[row] = refusal
            for later in self._arrivals.following(row):
                self.columns.refused[later] = f"an earlier turn of its session was refused: {refusal}"
                self._on_end()
        self._news.set()

    def _headers(self, row: int) -> HeaderFields:
        """What the trace knows of the row, as the gateway's hints."""
        trace = self._trace
        headers: list[tuple[str, str]] = []
        if trace.tenant is not None:
            headers.append(("x-llm-d-inference-fairness-id", trace.tenants[int(trace.tenant[row])]))
        if trace.session is not None and trace.session[row] >= 0:
            headers.append(("x-session-id", str(int(trace.session[row]))))
        if trace.deadline_seconds is not None and not np.isnan(trace.deadline_seconds[row]):
            headers.append(("x-llm-d-slo-ttft-ms", str(round(float(trace.deadline_seconds[row]) * 1000))))
        if trace.priority is not None and trace.priority[row]:
            headers.append(("x-request-priority", str(int(trace.priority[row]))))
        return headers


class _TokenTimes:
    """Notes the first token of a row, and the gaps between the pieces in which its tokens come."""

    def __init__(self, sender: Sender, row: int) -> None:
        self._sender = sender
        self._row = row
        self._last_ps: int | None = None

    def note(self) -> None:
        """A piece with tokens came now."""
        now, columns = self._sender.now_ps(), self._sender.columns
        if self._last_ps is None:
            columns.first_token_ps[self._row] = now
            columns.admit(self._row, now, 0)
        else:
            columns.gap(now - self._last_ps, 0, 1, 1)
        self._last_ps = now
