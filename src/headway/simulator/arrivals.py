"""Arrivals of a simulated day: rows of the trace at their times, follow-up turns after the turn before has ended."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np

from headway.domain.later_deadlines import LaterDeadlines, ProgramStage, later_deadlines
from headway.simulator.outcome import NEVER
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS
from headway.simulator.trace import Seconds, Trace
from headway.simulator.tracked import TrackedRequest

FOREVER = 1 << 63
"""Later than anything that a day's columns of 64 bits can hold, picoseconds."""
LONGEST_DAYS = 100
"""Of arrivals and pauses; it leaves the replica the last week of those columns to finish."""

_SECONDS_PER_DAY = 86_400


class Arrivals:
    """Rows still to come, in order of time, ties by row.

    A session is replayed in a closed loop: its first turn comes at its recorded time, each further turn
    `think_seconds` after the previous one has ended, as the client would have sent it.
    """

    def __init__(self, trace: Trace) -> None:
        check_clock(trace)
        times_ps = np.rint(trace.arrived_seconds * PS_PER_SECOND).astype(np.int64)
        self._next_turn = _next_turns(trace)
        think_seconds = np.zeros(len(trace)) if trace.think_seconds is None else trace.think_seconds
        self._think_ps: list[int] = np.rint(think_seconds * PS_PER_SECOND).astype(np.int64).tolist()
        follow_ups = set(self._next_turn.values())
        self._open = [(at, row) for row, at in enumerate(times_ps.tolist()) if row not in follow_ups]
        self._at = 0
        self._follow_ups: list[tuple[int, int]] = []
        self.next_ps = self._open[0][0] if self._open else FOREVER

    def take(self, now_ps: int) -> list[tuple[int, int]]:
        """(time, row) of the requests that have arrived by `now_ps`, in order."""
        taken: list[tuple[int, int]] = []
        opened, at, count = self._open, self._at, len(self._open)
        while at < count and opened[at][0] <= now_ps:
            taken.append(opened[at])
            at += 1
        self._at = at
        if self._follow_ups:
            while self._follow_ups and self._follow_ups[0][0] <= now_ps:
                taken.append(heapq.heappop(self._follow_ups))
            taken.sort()
        self._look_ahead()
        return taken

    def first_token(self, row: int, at_ps: int) -> None:
        """The first token of `row` has come out; no client sends anything because of it."""

    def ended(self, row: int, at_ps: int) -> None:
        """The request of `row` has ended: its session's next turn arrives after the client's pause."""
        following = self._next_turn.get(row)
        if following is not None:
            heapq.heappush(self._follow_ups, (at_ps + self._think_ps[following], following))
            self._look_ahead()

    def following(self, row: int) -> list[int]:
        """Rows of the later turns of this row's session, which never arrive once a turn is refused."""
        rows = []
        while (row := self._next_turn.get(row, -1)) >= 0:
            rows.append(row)
        return rows

    def _look_ahead(self) -> None:
        self.next_ps = self._open[self._at][0] if self._at < len(self._open) else FOREVER
        if self._follow_ups and self._follow_ups[0][0] < self.next_ps:
            self.next_ps = self._follow_ups[0][0]


class RequestFactory:
    """Makes the request of a row, with what its client gave and nothing of its true length."""

    def __init__(self, trace: Trace, sent_ps: Sequence[int] = ()) -> None:
        """`sent_ps` says when each row was sent, NEVER before it is; () where programs begin with each request."""
        count = len(trace)
        self._later = LaterOfRows(trace, sent_ps) if trace.has_later_deadlines else None
        self._prompts: list[int] = trace.prompt_tokens.tolist()
        self._outputs: list[int] = trace.output_tokens.tolist()
        self._limits = [0] * count if trace.max_output_tokens is None else trace.max_output_tokens.tolist()
        self._tenants = [0] * count if trace.tenant is None else trace.tenant.tolist()
        self._names = trace.tenants
        self._sessions = [-1] * count if trace.session is None else trace.session.tolist()
        self._within = [math.nan] * count if trace.deadline_seconds is None else trace.deadline_seconds.tolist()
        self._priorities = [0] * count if trace.priority is None else trace.priority.tolist()
        self._offline = [False] * count if trace.offline is None else trace.offline.tolist()
        self._adapters: list[int] | None = None if trace.adapter is None else trace.adapter.tolist()
        self._adapter_names = trace.adapters
        self._trace = trace

    def make(self, row: int, arrived_at: float, sent_at: float, max_model_tokens: int) -> TrackedRequest:
        """The request of `row`, arrived at `arrived_at` where a request may have so many tokens, sent at `sent_at`.

        Both are seconds. They differ where it waited in a queue in front of its engine; its deadline counts from when
        its client sent it.
        """
        prompt, output = self._prompts[row], self._outputs[row]
        limit, session, within = self._limits[row], self._sessions[row], self._within[row]
        request = TrackedRequest(
            row,
            arrived_at,
            prompt,
            self._names[self._tenants[row]],
            None if session < 0 else str(session),
            limit or None,
            None if math.isnan(within) else sent_at + within,
            self._priorities[row],
            output == limit or prompt + output == max_model_tokens,
            self.adapter(row),
            self._offline[row],
            None if self._later is None else self._later.of(row, sent_at),
        )
        if self._trace.prefix_ids is not None:
            request.prefix_hashes = self._trace.prefix_hashes(row)
        return request

    def adapter(self, row: int) -> str | None:
        """The LoRA adapter that a row wants; None for the base model."""
        if self._adapters is None or self._adapters[row] < 0:
            return None
        return self._adapter_names[self._adapters[row]]


class LaterOfRows:
    """Deadlines after the first token, by row; only of traces that have some."""

    def __init__(self, trace: Trace, sent_ps: Sequence[int]) -> None:
        """`sent_ps` says when each row was sent, NEVER before it is; () where programs begin with each request."""
        count = len(trace)

        def spans(column: Seconds | None) -> list[float]:
            return [math.nan] * count if column is None else column.tolist()

        self._tpot = spans(trace.tpot_deadline_seconds)
        self._end = spans(trace.end_deadline_seconds)
        self._programs = [-1] * count if trace.program is None else trace.program.tolist()
        self._stage = [1] * count if trace.stage is None else trace.stage.tolist()
        self._stages = [0] * count if trace.stages is None else trace.stages.tolist()
        self._whole = spans(trace.program_deadline_seconds)
        self._first: dict[int, int] = {}
        for row, program in enumerate(self._programs):
            self._first.setdefault(program, row)
        self._sent_ps = sent_ps

    def of(self, row: int, sent_at: float) -> LaterDeadlines | None:
        """Those of a row that its client sent at `sent_at`, seconds."""
        tpot, end, program = self._tpot[row], self._end[row], self._programs[row]
        return later_deadlines(
            None if math.isnan(tpot) else tpot,
            None if math.isnan(end) else sent_at + end,
            None if program < 0 else self._place(row, program, sent_at),
        )

    def _place(self, row: int, program: int, sent_at: float) -> ProgramStage:
        first = self._first[program]
        whole = self._whole[first]
        began_ps = self._sent_ps[first] if self._sent_ps else NEVER
        began = sent_at if began_ps == NEVER else began_ps * SECONDS_PER_PS
        deadline = None if math.isnan(whole) else began + whole
        return ProgramStage(str(program), self._stage[row], self._stages[row] or None, deadline)


def check_clock(trace: Trace) -> None:
    """Refuse a trace that would run over the end of the clock.

    Raises:
        ValueError: arrivals, or the pauses of a session after them, last longer than `LONGEST_DAYS`.
    """
    seconds = float(trace.arrived_seconds.max(initial=0.0))
    pauses = 0.0
    if trace.session is not None and trace.turn is not None and trace.think_seconds is not None:
        inside = trace.session >= 0
        pauses = float(np.bincount(trace.session[inside], trace.think_seconds[inside], 1).max())
    days = (seconds + pauses) / _SECONDS_PER_DAY
    if days > LONGEST_DAYS:
        raise ValueError(
            f"{trace.name}: lasts {days:,.1f} days{', pauses included' if pauses else ''}; the simulator's clock holds "
            f"{LONGEST_DAYS}, so replay a shorter part of it, or squeeze its arrivals"
        )


def _next_turns(trace: Trace) -> dict[int, int]:
    """Row -> row of the session's next turn."""
    if trace.session is None or trace.turn is None:
        return {}
    order = np.lexsort((trace.turn, trace.session))
    rows: list[int] = order.tolist()
    sessions = [int(session) for session in trace.session[order]]
    return {rows[i]: rows[i + 1] for i in range(len(rows) - 1) if sessions[i] >= 0 and sessions[i] == sessions[i + 1]}


def why_never(rules: EngineRules, prompt_tokens: int, output_tokens: int, adapter: str | None = None) -> str | None:
    """Why this replica can never serve a request of these lengths whole, in a sentence; None if it can."""
    if not rules.serves(adapter):
        return f"no replica has the adapter {adapter!r}"
    total = prompt_tokens + output_tokens
    if total > rules.max_model_tokens:
        return f"prompt and output of {total} tokens exceed the model's context of {rules.max_model_tokens}"
    if total > rules.context_tokens:
        return (
            f"prompt and output of {total} tokens exceed the replica's KV memory of {rules.context_tokens - 1} tokens"
        )
    return None
