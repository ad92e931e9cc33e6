"""A day on the reference engine: a trace played from its first arrival to its last token.

`reference_engine.py` has the rules. Here is what surrounds them: arrivals, sessions, refusals, and the day's outcome.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from headway.domain.event import Listener
from headway.domain.later_deadlines import LaterDeadlines, ProgramStage
from headway.scheduling.scheduler import Policies
from headway.simulator.arrivals import why_never
from headway.simulator.outcome import NEVER, DayOutcome, Ints, LoadPoints, StepObserver, StepRecord, TokenGaps
from headway.simulator.reference_blocks import ContentKeys
from headway.simulator.reference_engine import ReferenceEngine
from headway.simulator.reference_request import ReferenceRequest
from headway.simulator.rules import NO_PLUGIN, EngineRules, PluginRules
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS, StepTime
from headway.simulator.trace import Trace


def simulate_reference(
    trace: Trace,
    rules: EngineRules,
    step_time: StepTime,
    policies: Policies,
    *,
    plugin: PluginRules = NO_PLUGIN,
    observer: StepObserver | None = None,
    listeners: Sequence[Listener] = (),
) -> DayOutcome:
    """Run a whole trace through one replica and return what became of every request.

    Args:
        trace: the requests, with their true output lengths.
        rules: limits and switches of the engine.
        step_time: duration of a step.
        policies: fresh ones; they keep state.
        plugin: what the vLLM plug-in does beside them.
        observer: receives every step.
        listeners: receive every event.

    Raises:
        ValueError: the preemption policy named a victim that does not run.
    """
    return _ReferenceDay(trace, rules, step_time, policies, plugin, observer, listeners).run()


class _ReferenceDay:
    """One trace on one engine; `run` once. It receives the engine's steps as their observer."""

    def __init__(
        self,
        trace: Trace,
        rules: EngineRules,
        step_time: StepTime,
        policies: Policies,
        plugin: PluginRules,
        observer: StepObserver | None,
        listeners: Sequence[Listener],
    ) -> None:
        content_key = ContentKeys(trace, rules.block_tokens).key
        self._engine = ReferenceEngine(
            rules, step_time, policies, content_key, plugin=plugin, observer=self, listeners=listeners
        )
        self._rules = rules
        self._trace = trace
        self._observer = observer
        self._expected = ExpectedArrivals(trace)
        self._arrived_ps = [NEVER] * len(trace)
        self._requests: dict[int, ReferenceRequest] = {}  # by row; also the refused ones that did arrive
        self._refused: dict[int, str] = {}
        self._steps = 0
        self._blocks_peak = 0
        self._gaps: list[TokenGaps] = []
        self._curve: list[tuple[int, int, int, int]] = []

    def run(self) -> DayOutcome:
        """Play the whole day: arrivals, then the next step; when no step is left, on to the next arrival."""
        engine, expected = self._engine, self._expected
        while True:
            self._take_arrivals()
            if engine.compose() is not None:
                self._finish_step()
            elif expected.next_ps is not None:
                self._curve.append((engine.now_ps, 0, 0, 0))
                engine.idle_until(expected.next_ps)
            else:
                assert not engine.waiting, "alone on the replica, every request that was not refused fits"
                return self._outcome()

    def _take_arrivals(self) -> None:
        """Submit every request that has arrived by now; refuse those that can never be served whole."""
        for at_ps, row in self._expected.take(self._engine.now_ps):
            self._arrived_ps[row] = at_ps
            at = at_ps * SECONDS_PER_PS
            request = self._requests[row] = request_of(self._trace, row, at, at, self._arrived_ps)
            output_tokens = int(self._trace.output_tokens[row])
            reason = why_never(self._rules, request.prompt_tokens, output_tokens, request.adapter)
            if reason is None:
                self._engine.submit(request, output_tokens)
                continue
            self._refused[row] = reason
            for later in self._expected.rest_of_session(row):
                self._refused[later] = f"an earlier turn of its session was refused: {reason}"
            self._engine.refuse(request, reason)

    def _finish_step(self) -> None:
        """The oldest step ends: note the gaps before its tokens, and expect the next turn where a request ended."""
        served = self._engine.finish_step()
        gaps = Counter([request.gap_ps for request in served])
        self._gaps += [TokenGaps(gap, 0, 1, tokens) for gap, tokens in gaps.items() if gap != NEVER]
        for request in served:
            if request.has_ended:
                self._expected.ended(request.row, self._engine.now_ps)

    def on_step(self, step: StepRecord) -> None:
        """Count a step that was composed, and add a point to the curves (`StepObserver`)."""
        engine = self._engine
        blocks_used = self._rules.kv_blocks - step.blocks_free
        self._steps += 1
        self._blocks_peak = max(self._blocks_peak, blocks_used)
        self._curve.append((engine.now_ps, engine.waiting, engine.size, blocks_used))
        if self._observer is not None:
            self._observer.on_step(step)

    def _outcome(self) -> DayOutcome:
        curve = list(zip(*self._curve, strict=True)) or [(), (), (), ()]
        return outcome_of(
            self._arrived_ps,
            self._requests,
            self._refused,
            self._gaps,
            steps=self._steps,
            kv_blocks_peak=self._blocks_peak,
            load=LoadPoints(*map(list, curve)),
        )


def outcome_of(
    arrived_ps: Sequence[int],
    requests: Mapping[int, ReferenceRequest],
    refused: dict[int, str],
    gaps: Sequence[TokenGaps],
    *,
    steps: int,
    kv_blocks_peak: int,
    load: LoadPoints,
) -> DayOutcome:
    """A whole day, one row a request; a later turn of a refused session has no request."""

    def column(value: Callable[[ReferenceRequest], int], absent: int) -> Ints:
        rows = map(requests.get, range(len(arrived_ps)))
        return np.array([absent if request is None else value(request) for request in rows], dtype=np.int64)

    ended_ps = column(lambda request: request.ended_ps, NEVER)
    return DayOutcome(
        arrived_ps=np.array(arrived_ps, dtype=np.int64),
        admitted_ps=column(lambda request: request.admitted_ps, NEVER),
        first_token_ps=column(lambda request: request.first_token_ps, NEVER),
        ended_ps=ended_ps,
        cached_tokens=column(lambda request: request.cached_tokens, 0),
        preemptions=column(lambda request: request.preemptions, 0),
        recomputed_tokens=column(lambda request: request.recomputed_tokens, 0),
        refused=refused,
        makespan_ps=max(0, int(ended_ps.max(initial=0))),
        steps=steps,
        kv_blocks_peak=kv_blocks_peak,
        gaps=np.array(gaps, np.int64).reshape(-1, 4),
        curve_ps=load.at_ps,
        curve_waiting=load.waiting,
        curve_running=load.running,
        curve_blocks=load.blocks,
    )


def request_of(trace: Trace, row: int, arrived_at: float, sent_at: float, sent_ps: Sequence[int]) -> ReferenceRequest:
    """The request of a row, with what its client gave and nothing of its true length.

    Its client sent it at `sent_at`; at `arrived_at`, perhaps later, it comes to its engine. Both are seconds.
    `sent_ps` says when each row was sent, as far as it was; () where that does not matter.
    """
    bound = 0 if trace.max_output_tokens is None else int(trace.max_output_tokens[row])
    deadline = math.nan if trace.deadline_seconds is None else float(trace.deadline_seconds[row])
    session = -1 if trace.session is None else int(trace.session[row])
    adapter = -1 if trace.adapter is None else int(trace.adapter[row])
    request = ReferenceRequest(
        row,
        arrived_at,
        int(trace.prompt_tokens[row]),
        tenant=trace.tenants[0 if trace.tenant is None else int(trace.tenant[row])],
        session=str(session) if session >= 0 else None,
        max_output_tokens=bound or None,
        deadline=None if math.isnan(deadline) else sent_at + deadline,
        priority=0 if trace.priority is None else int(trace.priority[row]),
        adapter=trace.adapters[adapter] if adapter >= 0 else None,
        is_offline=trace.offline is not None and bool(trace.offline[row]),
        later_deadlines=_later(trace, row, sent_at, sent_ps) if trace.has_later_deadlines else None,
    )
    request.prefix_hashes = trace.prefix_hashes(row)
    return request


def _later(trace: Trace, row: int, sent_at: float, sent_ps: Sequence[int]) -> LaterDeadlines | None:
    """Deadlines after the first token; that of a program counts from when the first row of it was sent."""
    tpot = math.nan if trace.tpot_deadline_seconds is None else float(trace.tpot_deadline_seconds[row])
    end = math.nan if trace.end_deadline_seconds is None else float(trace.end_deadline_seconds[row])
    program = None
    if trace.program is not None and trace.program[row] >= 0:
        first = int(np.flatnonzero(trace.program == trace.program[row])[0])
        whole = math.nan if trace.program_deadline_seconds is None else float(trace.program_deadline_seconds[first])
        was_sent = len(sent_ps) > 0 and sent_ps[first] != NEVER
        began = sent_ps[first] * SECONDS_PER_PS if was_sent else sent_at
        stages = 0 if trace.stages is None else int(trace.stages[row])
        program = ProgramStage(
            str(int(trace.program[row])),
            1 if trace.stage is None else int(trace.stage[row]),
            stages if stages > 0 else None,
            None if math.isnan(whole) else began + whole,
        )
    if math.isnan(tpot) and math.isnan(end) and program is None:
        return None
    return LaterDeadlines(None if math.isnan(tpot) else tpot, None if math.isnan(end) else sent_at + end, program)


class ExpectedArrivals:
    """Rows still to arrive, by time and then by row.

    Sessions are closed loops: the first turn arrives at its recorded time, every other `think_seconds` after the end
    of the one before it.
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
        """Time of the next arrival; None if none is expected."""
        return self._heap[0][0] if self._heap else None

    def take(self, now_ps: int) -> list[tuple[int, int]]:
        """(time, row) of the requests that have arrived by now."""
        arrived: list[tuple[int, int]] = []
        while self._heap and self._heap[0][0] <= now_ps:
            arrived.append(heapq.heappop(self._heap))
        return arrived

    def ended(self, row: int, at_ps: int) -> None:
        """A request has ended: its session's next turn is expected after the client's pause."""
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
