"""What surrounds the reference engine: who comes when, a request with the engine's marks, and the book of the day."""

from __future__ import annotations

import heapq
import math
from itertools import pairwise

import numpy as np

from headway.domain.request import Request
from headway.simulator.outcome import NEVER, DayOutcome, TokenGaps
from headway.simulator.reference_blocks import Block
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS
from headway.simulator.trace import Trace


class ReferenceRequest(Request):
    """A request inside the engine. How long its output really is stands in the ledger, not here.

    Attributes:
        row: its row in the trace, also its id.
        output_limit: output tokens after which the engine ends it by counting: the client's bound, or endless.
        computed_tokens: KV tokens computed, those of steps in flight included.
        placeholders: tokens sampled by steps in flight, not known yet (asynchronous scheduling only).
        is_prefilling: admitted, and nothing was sampled for it since.
        is_running: has a seat in the batch.
        has_ended: its last token came out.
        preemptions: how often it lost its memory.
        high_water_tokens: most KV tokens it ever had when it lost its memory; computing below that is recomputing.
        last_token_ps: when its latest token came out.
        blocks, named_blocks: see `reference_blocks.Holder`.
    """

    __slots__ = (
        "blocks",
        "computed_tokens",
        "has_ended",
        "high_water_tokens",
        "is_prefilling",
        "is_running",
        "last_token_ps",
        "named_blocks",
        "output_limit",
        "placeholders",
        "preemptions",
        "row",
    )

    def __init__(self, row: int, trace: Trace, arrived_at: float) -> None:
        bound = 0 if trace.max_output_tokens is None else int(trace.max_output_tokens[row])
        deadline = math.nan if trace.deadline_seconds is None else float(trace.deadline_seconds[row])
        session = -1 if trace.session is None else int(trace.session[row])
        super().__init__(
            row,
            arrived_at,
            int(trace.prompt_tokens[row]),
            tenant=trace.tenants[0 if trace.tenant is None else int(trace.tenant[row])],
            session=str(session) if session >= 0 else None,
            max_output_tokens=bound or None,
            deadline=None if math.isnan(deadline) else arrived_at + deadline,
            priority=0 if trace.priority is None else int(trace.priority[row]),
        )
        self.row = row
        self.output_limit: float = bound or math.inf
        self.computed_tokens = 0
        self.placeholders = 0
        self.is_prefilling = False
        self.is_running = False
        self.has_ended = False
        self.preemptions = 0
        self.high_water_tokens = 0
        self.last_token_ps = NEVER
        self.blocks: list[Block] = []
        self.named_blocks = 0

    @property
    def total_tokens(self) -> int:
        """Prompt, and outputs so far."""
        return self.prompt_tokens + self.produced_tokens

    @property
    def lacking_tokens(self) -> int:
        """Tokens known or on their way whose KV is not computed yet."""
        return self.total_tokens + self.placeholders - self.computed_tokens


class ExpectedArrivals:
    """Rows still to come, by time and then by row.

    Sessions are closed loops: the first turn comes at its recorded time, every other `think_seconds` after the end of
    the one before it.
    """

    def __init__(self, trace: Trace) -> None:
        self._think_seconds = trace.think_seconds
        self._next_turn: dict[int, int] = {}
        if trace.session is not None and trace.turn is not None:
            turns: dict[int, list[tuple[int, int]]] = {}
            for row in range(len(trace)):
                if trace.session[row] >= 0:
                    turns.setdefault(int(trace.session[row]), []).append((int(trace.turn[row]), row))
            for session in turns.values():
                rows = [row for _, row in sorted(session)]
                self._next_turn.update(pairwise(rows))
        follow_ups = set(self._next_turn.values())
        self._heap = [
            (_picoseconds(seconds), row) for row, seconds in enumerate(trace.arrived_seconds) if row not in follow_ups
        ]
        heapq.heapify(self._heap)

    @property
    def next_ps(self) -> int | None:
        """When the next one comes; None if nobody is expected."""
        return self._heap[0][0] if self._heap else None

    def take(self, now_ps: int) -> list[tuple[int, int]]:
        """(time, row) of all who have come by now."""
        come: list[tuple[int, int]] = []
        while self._heap and self._heap[0][0] <= now_ps:
            come.append(heapq.heappop(self._heap))
        return come

    def ended(self, row: int, at_ps: int) -> None:
        """A request is over: its session's next turn is to be expected."""
        follower = self._next_turn.get(row)
        if follower is not None:
            pause = 0 if self._think_seconds is None else _picoseconds(self._think_seconds[follower])
            heapq.heappush(self._heap, (at_ps + pause, follower))

    def rest_of_session(self, row: int) -> list[int]:
        """All later turns of the row's session."""
        rows: list[int] = []
        while row in self._next_turn:
            row = self._next_turn[row]
            rows.append(row)
        return rows


def _picoseconds(seconds: float) -> int:
    return int(np.rint(seconds * PS_PER_SECOND))


class DayRecord:
    """Everything that `DayOutcome` tells, written down as it happens; and the true output lengths."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        rows = len(trace)
        self._arrived = [NEVER] * rows
        self._admitted = [NEVER] * rows
        self._first_token = [NEVER] * rows
        self._ended = [NEVER] * rows
        self._cached = [0] * rows
        self._preemptions = [0] * rows
        self._recomputed = [0] * rows
        self._refused: dict[int, str] = {}
        self._steps = 0
        self._blocks_peak = 0
        self.gaps: list[TokenGaps] = []
        self._curve: list[tuple[int, int, int, int]] = []

    def output_tokens(self, row: int) -> int:
        """How many tokens the request gives before it stops."""
        return int(self._trace.output_tokens[row])

    def arrive(self, row: int, at_ps: int) -> ReferenceRequest:
        """A request comes in."""
        self._arrived[row] = at_ps
        return ReferenceRequest(row, self._trace, at_ps * SECONDS_PER_PS)

    def refuse(self, row: int, reason: str) -> None:
        """A request is turned away, or never comes because an earlier turn of its session was."""
        self._refused[row] = reason

    def admit(self, request: ReferenceRequest, at_ps: int, cached_tokens: int) -> None:
        """A request gets a seat; its first time counts."""
        if self._admitted[request.row] == NEVER:
            self._admitted[request.row] = at_ps
            self._cached[request.row] = cached_tokens
        self._preemptions[request.row] = request.preemptions

    def computed(self, request: ReferenceRequest, before: int, new: int) -> None:
        """A chunk is computed; what was computed once already counts as recomputed."""
        self._recomputed[request.row] += max(0, min(request.high_water_tokens, before + new) - before)

    def step(self, at_ps: int, *, waiting: int, running: int, blocks_used: int) -> None:
        """A step was composed at `at_ps`."""
        self._steps += 1
        self._blocks_peak = max(self._blocks_peak, blocks_used)
        self._curve.append((at_ps, waiting, running, blocks_used))

    def idle(self, at_ps: int) -> None:
        """From `at_ps` on nobody is there."""
        self._curve.append((at_ps, 0, 0, 0))

    def first_token(self, request: ReferenceRequest, at_ps: int) -> None:
        """The first token came out."""
        self._first_token[request.row] = at_ps

    def end(self, request: ReferenceRequest, at_ps: int) -> None:
        """The last token came out."""
        self._ended[request.row] = at_ps
        self._preemptions[request.row] = request.preemptions

    def outcome(self) -> DayOutcome:
        """The whole day."""

        def column(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            return np.array(values, dtype=np.int64)

        curve = list(zip(*self._curve, strict=True)) or [(), (), (), ()]
        return DayOutcome(
            arrived_ps=column(self._arrived),
            admitted_ps=column(self._admitted),
            first_token_ps=column(self._first_token),
            ended_ps=column(self._ended),
            cached_tokens=column(self._cached),
            preemptions=column(self._preemptions),
            recomputed_tokens=column(self._recomputed),
            refused=self._refused,
            makespan_ps=max(self._ended, default=0) if any(at != NEVER for at in self._ended) else 0,
            steps=self._steps,
            kv_blocks_peak=self._blocks_peak,
            gaps=np.array(self.gaps, np.int64).reshape(-1, 4),
            curve_ps=list(curve[0]),
            curve_waiting=list(curve[1]),
            curve_running=list(curve[2]),
            curve_blocks=list(curve[3]),
        )
