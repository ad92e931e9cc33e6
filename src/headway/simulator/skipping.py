"""The fast engine: vLLM V1's step rules without visiting requests, skipping over runs of identical decode steps.

It is equal, event by event, to the plain engine in `reference.py`; the tests hold one against the other. Between two
events nothing changes but counters, so a run of k decode steps is one addition (see `decoding.DecodeSet`). Steps that
must look at single requests, because memory or the token budget ran out, go through `crowded.py`.

Time line of asynchronous scheduling: step i is composed when step i - 2 has ended, while step i - 1 runs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from headway.domain.event import Listener
from headway.domain.replica import MemoryView
from headway.scheduling.scheduler import Policies, Scheduler
from headway.simulator.arrivals import FOREVER, Arrivals, why_never
from headway.simulator.blocks import BlockMemory, CachedBlocks, CountedBlocks
from headway.simulator.crowded import schedule_one_by_one
from headway.simulator.day_columns import DayColumns
from headway.simulator.decoding import DecodeSet, computed_before, least_steps, run_duration
from headway.simulator.outcome import NEVER, DayOutcome, StepObserver, StepRecord
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import StepTime
from headway.simulator.trace import Trace
from headway.simulator.tracked import DECODING, LEAVING, PREFILLING, WAITING, TrackedRequest

SECONDS_PER_PS = 1e-12


def simulate(
    trace: Trace,
    rules: EngineRules,
    step_time: StepTime,
    policies: Policies,
    *,
    observer: StepObserver | None = None,
    listeners: Sequence[Listener] = (),
) -> DayOutcome:
    """Replay a trace on one replica and say what became of every request.

    The same arguments give the same outcome, bit for bit, on every machine. `policies` are used up: make fresh ones
    for each run.

    Raises:
        ValueError: blocks do not divide the trace's prefix blocks (with prefix caching); a policy broke its contract.
    """
    return SkippingEngine(trace, rules, step_time, policies, observer, listeners).run()


class Outputs(NamedTuple):
    """What comes out of a step when it ends."""

    end_ps: int
    step: int
    finals: list[TrackedRequest]  # their prompt is complete: a token each
    endings: list[TrackedRequest]  # their last token
    stale: list[TrackedRequest]  # preempted since, their token still on its way


class SkippingEngine:
    """One replica on one day; `run` once. Also the `BatchView` that admission policies see."""

    def __init__(
        self,
        trace: Trace,
        rules: EngineRules,
        step_time: StepTime,
        policies: Policies,
        observer: StepObserver | None,
        listeners: Sequence[Listener],
    ) -> None:
        self.rules = rules
        self.memory: BlockMemory = CountedBlocks(rules.kv_blocks, rules.block_tokens)
        if rules.prefix_caching:
            self.memory = CachedBlocks(rules.kv_blocks, rules.block_tokens, trace.prefix_ids, trace.prefix_block_tokens)
        self.scheduler = Scheduler(policies, resumed=rules.resumed, listeners=listeners)
        self.decoding = DecodeSet(rules.block_tokens)
        self.prefilling: list[TrackedRequest] = []
        self.in_batch: dict[TrackedRequest, None] = {}  # in order of admission
        self.columns = DayColumns(len(trace))
        self.step = 0  # the last one composed
        self.now_ps = 0
        self.version = 0
        self.busy_until_ps = 0  # end of the last step composed
        self.stalled: list[TrackedRequest] = []  # decoding, but left out of the last step
        self.wasting = 0  # decodes of the next step whose request has ended already
        self._observer = observer
        self._step_time = step_time
        self._depth = 2 if rules.async_scheduling else 1
        self._flying: deque[Outputs] = deque()
        self._done_step = 0
        self._arrivals = Arrivals(trace)
        self._load(trace)
        self._watermark_blocks = int(rules.watermark * (rules.kv_blocks + 1))
        self._blocks_peak = 0
        self._admitted: list[int] = []
        self._untold: tuple[int, ...] = ()  # preempted in an empty step: told with the next one
        self._empty_steps = 0
        self._seats = 0

    def _load(self, trace: Trace) -> None:
        count = len(trace)
        self._prompts: list[int] = trace.prompt_tokens.tolist()
        self._outputs: list[int] = trace.output_tokens.tolist()
        self._limits = [0] * count if trace.max_output_tokens is None else trace.max_output_tokens.tolist()
        self._tenants = [trace.tenants[0]] * count
        if trace.tenant is not None:
            self._tenants = [trace.tenants[index] for index in trace.tenant.tolist()]
        self._sessions = None if trace.session is None else trace.session.tolist()
        self._deadlines = None if trace.deadline_seconds is None else trace.deadline_seconds.tolist()
        self._priorities = None if trace.priority is None else trace.priority.tolist()

    # The view of policies

    @property
    def decode_steps(self) -> int:
        """See `BatchView`."""
        return self._done_step

    @property
    def size(self) -> int:
        """See `BatchView`."""
        return len(self.in_batch)

    def running(self) -> list[TrackedRequest]:
        """See `BatchView`."""
        return self.running_of(list(self.in_batch))

    def running_of(self, order: list[TrackedRequest]) -> list[TrackedRequest]:
        """These running requests with `produced_tokens` up to date."""
        for request in order:
            request.produced_tokens = self.produced_tokens(request)
        return order

    def token_on_its_way(self, victim: TrackedRequest) -> None:
        """A preempted request will still get the token of the step in flight."""
        self._flying[-1].stale.append(victim)

    def produced_tokens(self, request: TrackedRequest) -> int:
        """Output tokens that have come out, as the engine knows at this composition."""
        if request.phase <= PREFILLING:
            return request.produced_tokens
        done = self._done_step
        produced = request.base_produced - (done < request.last_token_step)
        if done > request.joined_step:
            produced += min(done, request.finish_step) - request.joined_step
        return produced

    # The day

    def run(self) -> DayOutcome:
        """Play the whole day."""
        arrivals, flying = self._arrivals, self._flying
        while True:
            if arrivals.next_ps <= self.now_ps:
                self._take_arrivals()
            if self._compose():
                if len(flying) >= self._depth:
                    self._finish_oldest()
            elif flying:
                self._finish_oldest()
            elif self.in_batch or len(self.scheduler.queue):
                raise RuntimeError(
                    f"nothing can run although {self.scheduler.head(self.now_ps * SECONDS_PER_PS)!r} waits"
                )
            elif arrivals.next_ps == FOREVER:
                return self.columns.outcome(self.step - self._empty_steps, self._blocks_peak)
            else:
                self.now_ps = arrivals.next_ps

    def _take_arrivals(self) -> None:
        now = self.now_ps * SECONDS_PER_PS
        prompts, limits, outputs, columns = self._prompts, self._limits, self._outputs, self.columns
        for at_ps, row in self._arrivals.take(self.now_ps):
            at = at_ps * SECONDS_PER_PS
            limit = limits[row]
            within = self._deadlines[row] if self._deadlines is not None else math.nan
            request = TrackedRequest(
                row,
                at,
                prompts[row],
                self._tenants[row],
                None if self._sessions is None or self._sessions[row] < 0 else str(self._sessions[row]),
                limit or None,
                None if math.isnan(within) else at + within,
                0 if self._priorities is None else self._priorities[row],
                limit == outputs[row],
            )
            columns.arrived_ps[row] = at_ps
            reason = why_never(self.rules, prompts[row], outputs[row])
            if reason is not None:
                self._refuse(request, now, reason)
                continue
            if self.rules.prefix_caching:
                request.cached_prompt_tokens = self.memory.cached_tokens(request)
            self.scheduler.arrive(request, now)

    def _refuse(self, request: TrackedRequest, now: float, reason: str) -> None:
        self.columns.refused[request.row] = reason
        for row in self._arrivals.following(request.row):
            self.columns.refused[row] = f"an earlier turn of its session was refused: {reason}"
        self.scheduler.refuse(request, now, reason)

    def _compose(self) -> bool:
        """Compose the next step, or a run of steps equal to it; False if nobody has anything to do."""
        rules, decoding, memory = self.rules, self.decoding, self.memory
        step = self.step + 1
        chunks: list[tuple[TrackedRequest, int, int]] = []
        preempted: tuple[int, ...] = ()
        self._admitted = []
        decodes, context = decoding.size, 0
        returning, self.stalled = self.stalled, []
        quiet = not returning and not self.wasting
        if decodes or self.prefilling:
            due = decoding.blocks_due(step)
            if self._fits(due, decodes, chunks):
                context = decoding.context_tokens(step)
                if due:
                    memory.take(due)
                for request, tokens, before in chunks:
                    memory.extend(request, before + tokens)
            else:
                chunks, preempted, decodes, context = schedule_one_by_one(self, step, returning)
                quiet = False
        budget = rules.max_num_batched_tokens - decodes - sum(chunk[1] for chunk in chunks)
        refusal = 1 if preempted else self._admit(budget, chunks)
        if not decodes and not chunks:
            if preempted:  # an empty step: it costs no time, and whoever lost its place may be admitted next
                self.step = step
                self._empty_steps += 1
                self._untold += preempted
            return bool(preempted) and not self._flying and self._compose()
        self.step = step
        calm = not self._flying or not (self._flying[0].endings or self._flying[0].stale)
        if chunks or refusal == 1 or not quiet or not calm:
            self._single_step(step, decodes, context, chunks, preempted, returning)
        else:
            self._run_of_steps(step, decodes, context, refusal)
        used = self.rules.kv_blocks - memory.free
        self._blocks_peak = max(self._blocks_peak, used)
        self.columns.sample(self.now_ps, len(self.scheduler.queue), len(self.in_batch), used)
        return True

    def _fits(self, due: int, decodes: int, chunks: list[tuple[TrackedRequest, int, int]]) -> bool:
        """Whether everybody running gets tokens and blocks; fills in `chunks` if so."""
        free = self.memory.free - due
        if free < 0:
            return False
        if not self.prefilling:
            return True
        budget = self.rules.max_num_batched_tokens - decodes
        threshold, block_tokens = self.chunk_limit(), self.rules.block_tokens
        for request in self.prefilling:
            before = request.computed_tokens
            tokens = min(request.target_tokens - before, threshold)
            if tokens > budget:
                if request is not next(reversed(self.in_batch)):
                    chunks.clear()
                    return False
                tokens = budget  # nobody behind it goes short
            if tokens:
                free -= -(-(before + tokens) // block_tokens) - request.blocks
                chunks.append((request, tokens, before))
                budget -= tokens
        if free < 0:
            chunks.clear()
        return free >= 0

    def chunk_limit(self) -> int:
        """Most tokens of one prompt in this step; nobody is starved by a request that is alone."""
        threshold = self.rules.long_prefill_token_threshold
        alone = len(self.in_batch) + len(self.scheduler.queue) <= 1
        return threshold if threshold and not alone else FOREVER

    def _admit(self, budget: int, chunks: list[tuple[TrackedRequest, int, int]]) -> int:
        """Let waiting requests in while they may; returns for how many steps like this one the refusal stands."""
        rules, memory, scheduler = self.rules, self.memory, self.scheduler
        now = self.now_ps * SECONDS_PER_PS
        while budget > 0 and len(self.in_batch) < rules.max_num_seqs:
            request = scheduler.head(now)
            if request is None:
                return FOREVER
            assert isinstance(request, TrackedRequest)
            target = request.prompt_tokens + request.produced_tokens
            free = memory.free - (self._watermark_blocks if self.in_batch else 0)
            if rules.reserve_full_prompt and memory.surely_needs_more(request, free):
                return FOREVER
            hit = memory.cached_tokens(request)
            tokens = min(target - hit, self.chunk_limit())
            if tokens > budget:
                if not rules.chunked_prefill:
                    return FOREVER
                tokens = budget
            if rules.reserve_full_prompt and memory.need(request, target, hit) > free:
                return FOREVER
            if memory.need(request, hit + tokens, hit) > free:
                return FOREVER
            if self.in_batch:
                view = MemoryView(memory.free, rules.kv_blocks, rules.block_tokens)
                hold = scheduler.hold_steps(request, self, view, now)
                if hold:
                    return hold
            scheduler.admit(now)
            self._enter(request, target, tokens, hit)
            chunks.append((request, tokens, hit))
            budget -= tokens
        return FOREVER

    def _enter(self, request: TrackedRequest, target: int, tokens: int, hit: int) -> None:
        self.memory.admit(request, hit + tokens, hit)
        request.target_tokens = target
        request.computed_tokens = hit
        request.phase = PREFILLING
        self._seats += 1
        request.seat = self._seats
        self.prefilling.append(request)
        self.in_batch[request] = None
        self.version += 1
        row = request.row
        if self.columns.admitted_ps[row] == NEVER:
            self.columns.admitted_ps[row] = self.now_ps
            self.columns.cached_tokens[row] = hit
        self._admitted.append(row)

    # Steps

    def _single_step(
        self,
        step: int,
        decodes: int,
        context: int,
        chunks: list[tuple[TrackedRequest, int, int]],
        preempted: tuple[int, ...],
        returning: list[TrackedRequest],
    ) -> None:
        columns = self.columns
        finals = [request for request, tokens, before in chunks if before + tokens == request.target_tokens]
        if chunks:
            work = [(tokens, before) for _, tokens, before in chunks]
            duration = self._step_time.mixed_step(decodes, context, work, decodes + len(finals))
        else:
            fixed, slope = self._step_time.decode_step(decodes)
            duration = fixed + slope * context
        start = max(self.busy_until_ps, self.now_ps)
        end = self.busy_until_ps = start + duration
        for request, tokens, before in chunks:
            request.computed_tokens = before + tokens
            if before < request.high_water_tokens:
                columns.recomputed_tokens[request.row] += min(request.high_water_tokens, before + tokens) - before
        came_back = 0
        for request in returning:
            if request.phase == DECODING and request.joined_step == step - 1:
                columns.gap(end - request.last_token_ps, 0, 1, 1)
                came_back += 1
        steady = decodes - self.wasting - came_back
        if steady:
            columns.gap(duration, 0, 1, steady)
        for request in finals:
            self._start_decoding(request, step, end)
        self._record(step, start, duration, decodes, context, chunks, preempted)
        self._flying.append(Outputs(end, step, finals, self._take_endings(step), []))

    def _start_decoding(self, request: TrackedRequest, step: int, end_ps: int) -> None:
        self.prefilling.remove(request)
        produced = request.produced_tokens
        if produced:
            self.columns.gap(end_ps - request.last_token_ps, 0, 1, 1)
        request.phase = DECODING
        request.base_produced = produced + 1
        request.last_token_step = step
        self.decoding.join(request, step, self._outputs[request.row] - produced)
        self.version += 1

    def _run_of_steps(self, step: int, decodes: int, context: int, refusal: int) -> None:
        """As many steps as equal this one; its own blocks are taken already."""
        fixed, slope = self._step_time.decode_step(decodes)
        first, growth = fixed + slope * context, slope * decodes
        next_end = self.decoding.next_end()
        assert next_end is not None
        steps = min(refusal, next_end - step + 1)
        until = self._next_change_ps()
        if until < FOREVER:
            # The first step is composed now, the second `depth - 1` steps before the first ends, and so on.
            lead = self._depth - 1
            span = until - (max(self.busy_until_ps, self.now_ps) if lead else self.now_ps)
            steps = min(steps, lead + least_steps(first, growth, span) if span > 0 else 1)
        if steps > 1:
            steps = 1 + self.decoding.steps_that_fit(step + 1, self.memory.free, steps - 1)
            self.memory.take(self.decoding.blocks_of_run(step + 1, steps - 1))
            if self._flying:
                self._finish_oldest()
        last = step + steps - 1
        start = max(self.busy_until_ps, self.now_ps)
        self._record_run(step, start, first, growth, steps, decodes, context)
        self.columns.gap(first, growth, steps, decodes)
        end = self.busy_until_ps = start + run_duration(first, growth, steps)
        self.step = last
        if self._depth > 1 and steps > 1:
            self.now_ps = end - (first + growth * (steps - 1))
            self._done_step = last - 1
        self._flying.append(Outputs(end, last, [], self._take_endings(last), []))

    def _next_change_ps(self) -> int:
        """When an arrival, or time alone, may change who is let in."""
        until = self._arrivals.next_ps
        stands_until = self.scheduler.queue.stands_until(self.now_ps * SECONDS_PER_PS)
        if stands_until * 1e12 < until and len(self.in_batch) < self.rules.max_num_seqs:
            until = int(stands_until * 1e12) - 1_000  # a nanosecond early: seconds are rounded
        return until

    def _take_endings(self, step: int) -> list[TrackedRequest]:
        """Those whose last token comes with `step`; who ends by a stop token is in the next step already (async)."""
        endings = self.decoding.pop_ends(step)
        self.wasting = 0
        for request in endings:
            if self._depth == 1 or request.ends_by_limit:
                self.decoding.leave(request)
                request.phase = LEAVING
            else:
                self.wasting += 1
        return endings

    def _finish_oldest(self) -> None:
        """The oldest step in flight ends: its tokens come out."""
        end_ps, step, finals, endings, stale = self._flying.popleft()
        self.now_ps, self._done_step = end_ps, step
        if not (finals or endings or stale):
            return
        now = end_ps * SECONDS_PER_PS
        for request in stale:
            request.produced_tokens += 1
        # In order of admission, as vLLM goes through its outputs.
        news = [(request.seat, 0, request) for request in finals] + [(request.seat, 1, request) for request in endings]
        for _, ending, request in sorted(news):
            if ending:
                self._end(request, now)
            elif self.columns.first_token_ps[request.row] == NEVER:
                self.columns.first_token_ps[request.row] = end_ps
                self.scheduler.first_token(request, now)

    def _end(self, request: TrackedRequest, now: float) -> None:
        if request.phase == WAITING:  # preempted while its last token was on the way
            self.scheduler.queue.remove(request.id)
        else:
            computed = computed_before(request, request.finish_step + 1)
            held = -(-computed // self.rules.block_tokens)
            if request.phase == DECODING:  # one wasted token
                held = -(-(computed + 1) // self.rules.block_tokens)
                self.decoding.leave(request)
            self.memory.release(request, computed, held, keep=False)
            del self.in_batch[request]
            self.version += 1
        request.produced_tokens = self._outputs[request.row]
        self.columns.ended_ps[request.row] = self.now_ps
        self.scheduler.complete(request, now)
        self._arrivals.ended(request.row, self.now_ps)

    # For whoever watches

    def _record(
        self,
        step: int,
        start: int,
        duration: int,
        decodes: int,
        context: int,
        chunks: Sequence[tuple[TrackedRequest, int, int]],
        preempted: tuple[int, ...],
    ) -> None:
        if self._observer is not None:
            work = tuple((request.row, tokens, before) for request, tokens, before in chunks)
            admitted = tuple(self._admitted)
            preempted, self._untold = self._untold + preempted, ()
            self._observer.on_step(
                StepRecord(start, duration, decodes, context, work, preempted, admitted, self.memory.free)
            )

    def _record_run(
        self, step: int, start: int, first: int, growth: int, steps: int, decodes: int, context: int
    ) -> None:
        if self._observer is None:
            return
        free = self.memory.free + self.decoding.blocks_of_run(step + 1, steps - 1)
        for i in range(steps):
            if i:
                free -= self.decoding.blocks_due(step + i)
            duration = first + growth * i
            untold, self._untold = self._untold, ()
            self._observer.on_step(StepRecord(start, duration, decodes, context + decodes * i, (), untold, (), free))
            start += duration
