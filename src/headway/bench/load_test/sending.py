"""Sends a trace on the wall clock and notes when its answers came: times as the client sees them.

A turn of a session is sent after the one before it has ended and the client has thought. A request that was refused or
failed is not sent again; it counts under the endpoint's own reason.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from headway.bench.load_test.completion_stream import StreamFault
from headway.bench.load_test.prompts import Prompts
from headway.bench.load_test.stream_client import HeaderFields, StreamClient
from headway.domain.later_deadlines import LaterDeadlines
from headway.simulator.arrivals import FOREVER, Arrivals, LaterOfRows
from headway.simulator.day_columns import DayColumns
from headway.simulator.outcome import NO_POINTS, DayOutcome
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS
from headway.simulator.trace import Trace

_POLL_SECONDS = 0.05  # how long it takes at most to notice that a follow-up turn is due


class Tally(NamedTuple):
    """How far a run is after `seconds`. Later turns of a session that a refusal or failure ends count with it."""

    seconds: float
    sent: int
    completed: int
    refused: int
    failed: int

    @property
    def ended(self) -> int:
        """Requests that nothing more is expected of."""
        return self.completed + self.refused + self.failed


class Sender:
    """One run of one trace. Create it inside the loop that runs it."""

    def __init__(self, client: StreamClient, trace: Trace, prompts: Prompts) -> None:
        self._trace = trace
        self._prompts = prompts
        self._client = client
        self._arrivals = Arrivals(trace)
        self._news = asyncio.Event()
        self._inside: set[asyncio.Task[None]] = set()
        self.columns = DayColumns(len(trace))
        self._later = LaterOfRows(trace, self.columns.arrived_ps) if trace.has_later_deadlines else None
        self.output_tokens = trace.output_tokens.copy()
        self.prompt_tokens = trace.prompt_tokens.copy()
        self.failed: dict[int, str] = {}
        self._began = 0.0
        self._last_end_ps = 0
        self._sent = 0
        self._completed = 0
        self._is_stopped = False
        self._fault: BaseException | None = None

    async def run(self) -> tuple[Trace, DayOutcome]:
        """Send everything; the trace with the lengths that really came, and what became of every row.

        After `stop`, what had been sent and had not ended is unfinished, and rows that were not sent have no arrival.
        """
        self._began = time.monotonic()
        arrivals = self._arrivals
        while not self._is_stopped:
            for at_ps, row in arrivals.take(self.now_ps()):
                self.columns.arrived_ps[row] = at_ps
                self._sent += 1
                task = asyncio.create_task(self._send(row))
                self._inside.add(task)
                task.add_done_callback(self._left)
            if arrivals.next_ps == FOREVER and not self._inside:
                break
            left = (arrivals.next_ps - self.now_ps()) / PS_PER_SECOND
            self._news.clear()
            with_timeout = min(max(left, 0.0), _POLL_SECONDS)
            try:
                await asyncio.wait_for(self._news.wait(), with_timeout)
            except TimeoutError:
                continue
        if self._is_stopped:
            await self._give_up()
        if self._fault is not None:
            raise self._fault
        self._client.close()
        came = replace(self._trace, output_tokens=self.output_tokens, prompt_tokens=self.prompt_tokens)
        outcome = self.columns.outcome(0, 0, NO_POINTS)
        return came, replace(outcome, failed=self.failed, makespan_ps=self._last_end_ps)

    def stop(self) -> None:
        """Send nothing more, and wait for nothing."""
        self._is_stopped = True
        self._news.set()

    def tally(self) -> Tally:
        """How far it is now."""
        seconds = self.now_ps() / PS_PER_SECOND
        return Tally(seconds, self._sent, self._completed, len(self.columns.refused), len(self.failed))

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
            self._lost(row, fault)
        else:
            self.output_tokens[row] = served.output_tokens
            self.prompt_tokens[row] = max(1, served.prompt_tokens)
            self._last_end_ps = self.columns.ended_ps[row] = self.now_ps()
            self._completed += 1
            self._arrivals.ended(row, self._last_end_ps)
        self._news.set()

    def _lost(self, row: int, fault: StreamFault) -> None:
        """A row was refused or failed; the later turns of its session never come."""
        self._last_end_ps = self.now_ps()
        why, verb = (self.columns.refused, "was refused") if fault.is_refusal else (self.failed, "failed")
        why[row] = fault.reason or str(fault).removeprefix("failed: ")
        for later in self._arrivals.following(row):
            why[later] = f"an earlier turn of its session {verb}"

    async def _give_up(self) -> None:
        self._last_end_ps = self.now_ps()
        for task in self._inside:
            task.cancel()
        while self._inside:
            await asyncio.wait(self._inside)

    def _left(self, task: asyncio.Task[None]) -> None:
        """A request's task has ended; a fault of ours in it ends the run."""
        self._inside.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._fault = fault
            self.stop()

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
        if self._later is not None:
            sent_at = self.columns.arrived_ps[row] * SECONDS_PER_PS
            headers += _later_headers(self._later.of(row, sent_at), sent_at)
        if trace.priority is not None and trace.priority[row]:
            headers.append(("x-request-priority", str(int(trace.priority[row]))))
        return headers


def _later_headers(later: LaterDeadlines | None, sent_at: float) -> HeaderFields:
    """Deadlines after the first token and the place in a program, as times left when the request is sent."""
    if later is None:
        return []
    program = later.program
    left = {"x-headway-end-deadline-ms": later.end}
    headers: list[tuple[str, str]] = []
    if later.tpot_seconds is not None:
        headers.append(("x-slo-tpot-ms", f"{later.tpot_seconds * 1000:g}"))
    if program is not None:
        headers += [("x-headway-program", program.program), ("x-headway-program-stage", str(program.stage))]
        if program.stages is not None:
            headers.append(("x-headway-program-stages", str(program.stages)))
        left["x-headway-program-deadline-ms"] = program.deadline
    return headers + [(name, str(max(1, round((at - sent_at) * 1000)))) for name, at in left.items() if at is not None]


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
