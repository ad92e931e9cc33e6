"""Who comes when: rows of the trace at their times, follow-up turns of a session after the one before has ended."""

from __future__ import annotations

import heapq

import numpy as np

from headway.simulator.rules import EngineRules
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

FOREVER = 1 << 62
"""Later than anything, picoseconds."""


class Arrivals:
    """Rows still to come, in order of time, ties by row.

    A session is replayed in a closed loop: its first turn comes at its recorded time, each further turn
    `think_seconds` after the previous one has ended, as the client would have sent it.
    """

    def __init__(self, trace: Trace) -> None:
        times_ps = np.rint(trace.arrived_seconds * PS_PER_SECOND).astype(np.int64)
        self._next_turn = _next_turns(trace)
        self._think_ps = (
            None
            if trace.think_seconds is None
            else np.rint(trace.think_seconds * PS_PER_SECOND).astype(np.int64).tolist()
        )
        follow_ups = set(self._next_turn.values())
        self._open = [(at, row) for row, at in enumerate(times_ps.tolist()) if row not in follow_ups]
        self._at = 0
        self._follow_ups: list[tuple[int, int]] = []
        self.next_ps = self._open[0][0] if self._open else FOREVER

    def take(self, now_ps: int) -> list[tuple[int, int]]:
        """(time, row) of everybody who has come by `now_ps`, in order."""
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

    def ended(self, row: int, at_ps: int) -> None:
        """The request of `row` is over: its session's next turn will come after the client's pause."""
        following = self._next_turn.get(row)
        if following is not None:
            heapq.heappush(self._follow_ups, (at_ps + self._think_ps[following], following))
            self._look_ahead()

    def following(self, row: int) -> list[int]:
        """Rows of the later turns of this row's session, which a refusal keeps from ever coming."""
        rows = []
        while (row := self._next_turn.get(row, -1)) >= 0:
            rows.append(row)
        return rows

    def _look_ahead(self) -> None:
        self.next_ps = self._open[self._at][0] if self._at < len(self._open) else FOREVER
        if self._follow_ups and self._follow_ups[0][0] < self.next_ps:
            self.next_ps = self._follow_ups[0][0]


def _next_turns(trace: Trace) -> dict[int, int]:
    """Row -> row of the session's next turn."""
    if trace.session is None or trace.turn is None:
        return {}
    order = np.lexsort((trace.turn, trace.session))
    sessions = trace.session[order].tolist()
    rows = order.tolist()
    return {rows[i]: rows[i + 1] for i in range(len(rows) - 1) if sessions[i] >= 0 and sessions[i] == sessions[i + 1]}


def why_never(rules: EngineRules, prompt_tokens: int, output_tokens: int) -> str | None:
    """Why a request of these lengths can never be served whole on this replica; None if it can."""
    total = prompt_tokens + output_tokens
    if total > rules.max_model_tokens:
        return f"prompt and output of {total} tokens exceed the model's context of {rules.max_model_tokens}"
    if total > rules.context_tokens:
        return (
            f"prompt and output of {total} tokens exceed the replica's KV memory of {rules.context_tokens - 1} tokens"
        )
    return None
