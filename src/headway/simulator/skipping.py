"""The fast engine: vLLM V1's step rules without visiting requests, skipping over runs of identical decode steps.

It is equal, event by event, to the plain engine in `reference.py`; the tests hold one against the other. Between two
events nothing changes but counters, so a run of k decode steps is one addition (see `decoding.DecodeSet`). Steps that
must look at single requests, because memory or the token budget ran out, go through `constrained_step.py`.

Time line of asynchronous scheduling: step i is composed when step i - 2 has ended, while step i - 1 runs.

One file because composing, taking and ending a step change the same few counters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias

from headway.domain.event import Listener
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.scheduling.displacement import Room, Running
from headway.scheduling.head_lookups import MOVES_PER_STEP, STALE_SECONDS, is_stale, note_answer
from headway.scheduling.offline_gate import OfflineDecode, StepLoad
from headway.scheduling.scheduler import Policies, Scheduler
from headway.simulator.arrivals import FOREVER, Arrivals, RequestFactory, why_never
from headway.simulator.batch import NO_LIMIT, Batch, Chunks
from headway.simulator.blocks import BlockMemory, CountedBlocks, FusedBlocks
from headway.simulator.constrained_step import Moment, computed_tokens, constrained_step, preempt
from headway.simulator.day_columns import DayColumns, LoadCurve
from headway.simulator.decoding import computed_before, least_steps, run_duration
from headway.simulator.offline_control import OfflineControl
from headway.simulator.outcome import NEVER, DayOutcome, StepObserver
from headway.simulator.own_blocks import OwnBlocks
from headway.simulator.plugin_control import Inside, PluginControl, Steering
from headway.simulator.prefix_cache import CachedBlocks
from headway.simulator.rules import NO_PLUGIN, EngineRules, PluginRules
from headway.simulator.step_log import StepLog
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS, StepTime
from headway.simulator.trace import Trace
from headway.simulator.tracked import DECODING, LEAVING, PREFILLING, WAITING, TrackedRequest


def simulate(
    trace: Trace,
    rules: EngineRules,
    step_time: StepTime,
    policies: Policies,
    *,
    plugin: PluginRules = NO_PLUGIN,
    observer: StepObserver | None = None,
    listeners: Sequence[Listener] = (),
    steering: Steering | None = None,
) -> DayOutcome:
    """Replay a trace on one replica and return what became of every request.

    The same arguments give the same outcome, bit for bit, on every machine. `policies` are used up: make fresh ones
    for each run. `plugin` says what the vLLM plug-in does beside them; `steering` may change them during the day.

    Raises:
        ValueError: blocks do not divide the trace's prefix blocks (with prefix caching); a policy broke its contract.
    """
    columns = DayColumns(len(trace))
    served = ServedTrace(trace, columns)
    arrivals = Arrivals(trace)
    engine = SkippingEngine(served, rules, step_time, policies, plugin, observer, listeners, arrivals, steering)
    engine.run()
    return columns.outcome(engine.steps, engine.curve.blocks_peak, engine.curve.points())


class RequestSource(Protocol):
    """Where an engine's requests come from."""

    next_ps: int
    """When the next one that is known arrives, picoseconds; `FOREVER` if none is."""

    def take(self, now_ps: int) -> Sequence[tuple[int, int]]:
        """(time, row) of the requests that have arrived by `now_ps`, in order."""

    def first_token(self, row: int, at_ps: int) -> None:
        """The first token of `row` has come out."""

    def ended(self, row: int, at_ps: int) -> None:
        """The request of `row` has ended."""

    def following(self, row: int) -> Sequence[int]:
        """Rows of the later turns of this row's session."""


class ServedTrace:
    """One trace as the engines of a day share it: what each request is, and the columns of what becomes of it."""

    def __init__(self, trace: Trace, columns: DayColumns) -> None:
        self.trace = trace
        self.columns = columns
        self.output_tokens: list[int] = trace.output_tokens.tolist()
        self.requests = RequestFactory(trace, columns.arrived_ps)


Outputs: TypeAlias = tuple[int, int, int, list[TrackedRequest], list[TrackedRequest], list[TrackedRequest]]
"""Output of a step when it ends; a plain tuple, since one is made for every step.

Its end in picoseconds; its number; how many steps end here (a run counts once); requests whose prompt is complete, a
token each; those whose last token comes; those preempted since, their token still on its way.
"""
_ENDINGS: Final = 4  # places in `Outputs`
_STALE: Final = 5


class SkippingEngine:
    """One replica on one day; `run` once.

    Attributes:
        curve: its load over the day.
        busy_ps: picoseconds of all steps.
        prefill_tokens: prompt tokens computed, those computed again included.
        decode_tokens: tokens of decode steps, those wasted included.
    """

    def __init__(
        self,
        served: ServedTrace,
        rules: EngineRules,
        step_time: StepTime,
        policies: Policies,
        plugin: PluginRules,
        observer: StepObserver | None,
        listeners: Sequence[Listener],
        arrivals: RequestSource,
        steering: Steering | None = None,
    ) -> None:
        trace = served.trace
        memory: BlockMemory = CountedBlocks(rules.kv_blocks, rules.block_tokens)
        if rules.prefix_caching:
            memory = OwnBlocks(rules.kv_blocks, rules.block_tokens)
        if rules.prefix_caching and trace.prefix_ids is not None:
            memory = CachedBlocks(rules.kv_blocks, rules.block_tokens, trace.prefix_ids, trace.prefix_block_tokens)
        self._fused = None
        if rules.fused_share:
            memory = self._fused = FusedBlocks(rules.kv_blocks, rules.block_tokens, rules.fused_share)
        self._rules = rules
        self._shares = rules.prefix_caching and trace.prefix_ids is not None
        self._looks_up = self._shares  # otherwise from the first preemption on
        self._look_up_ps = FOREVER  # when the cache is asked about the head again
        self._batch = Batch(rules, memory)
        self._plugin = PluginControl(plugin, rules, policies, step_time, steering)
        self._scheduler = Scheduler(policies, resumed=rules.resumed, listeners=[*self._plugin.listeners, *listeners])
        self._offline = OfflineControl(plugin, rules, step_time, self._scheduler)
        # A first chunk may fit that becomes shorter as decodes grow, where only its own blocks are asked for.
        self._no_room_steps = 1 if self._plugin.moves_budget and not rules.reserve_full_prompt else NO_LIMIT
        self._is_mixed = False  # requests of both classes are inside: the offline gate looks at every step
        self._columns = served.columns
        self.curve = LoadCurve()
        self.busy_ps = 0
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self._now_ps = 0
        self._busy_until_ps = 0  # end of the last step composed
        self._step = 0  # the last one composed
        self._empty_steps = 0
        self._flying: deque[Outputs] = deque()
        self._depth = 2 if rules.async_scheduling else 1
        self._step_time = step_time
        self._arrivals = arrivals
        self._request_factory = served.requests
        self._output_tokens = served.output_tokens
        self._watermark_blocks = int(rules.watermark * (rules.kv_blocks + 1))  # vLLM counts its null block
        self._log = StepLog(observer)
        self._replica_id: str | None = None  # its name in a fleet

    @property
    def steps(self) -> int:
        """Steps composed, those without tokens not counted."""
        return self._step - self._empty_steps

    def run(self) -> None:
        """Play the whole day."""
        arrivals, flying = self._arrivals, self._flying
        while True:
            if arrivals.next_ps <= self._now_ps:
                self._take_arrivals()
            if self._compose():
                if len(flying) >= self._depth:
                    self._finish_oldest()
            elif flying:
                self._finish_oldest()
            elif self._batch.members or len(self._scheduler.queue):
                head = self._scheduler.head(self._now_ps * SECONDS_PER_PS)
                raise RuntimeError(f"nothing can run although {head!r} waits")
            elif arrivals.next_ps == FOREVER:
                return
            else:
                self.curve.sample(self._now_ps, 0, 0, 0)  # idle until then
                self._now_ps = arrivals.next_ps

    def _take_arrivals(self) -> None:
        now = self._now_ps * SECONDS_PER_PS
        for at_ps, row in self._arrivals.take(self._now_ps):
            if self._columns.arrived_ps[row] == NEVER:  # else it has waited elsewhere
                self._columns.arrived_ps[row] = at_ps
            sent_ps = self._columns.arrived_ps[row]
            request = self._request_factory.make(
                row, at_ps * SECONDS_PER_PS, sent_ps * SECONDS_PER_PS, self._rules.max_model_tokens
            )
            request.replica_id = self._replica_id
            if self._columns.lost_tokens:
                request.recomputed_below = self._columns.lost_tokens.get(row, 0)
            reason = why_never(self._rules, request.prompt_tokens, self._output_tokens[row], request.adapter)
            if reason is None:
                if self._shares:
                    note_answer(request, self._batch.memory.cached_tokens(request), now)
                self._scheduler.arrive(request, now)
                continue
            self._columns.refused[row] = reason
            for later in self._arrivals.following(row):
                self._columns.refused[later] = f"an earlier turn of its session was refused: {reason}"
            self._scheduler.refuse(request, now, reason)

    # Composing a step

    def _compose(self) -> bool:
        """Compose the next step, or a run of steps equal to it; False if there is nothing to do."""
        batch, step = self._batch, self._step + 1
        displaced = self._give_way(step) if self._offline.acts else ()
        aside = self._plugin_acts(step) if self._plugin.acts else ()
        displaced += tuple([request.row for request in aside])
        decodes, context = batch.decoding.size, 0
        preempted: tuple[int, ...] = ()
        returning = batch.stalled
        quiet = not (returning or batch.wasting or displaced)
        chunks: Chunks = []
        waiting = len(self._scheduler.queue)
        if decodes or batch.prefilling:
            due = batch.decoding.blocks_due(step)
            shares = batch.shares(due, batch.chunk_limit(waiting))
            if returning:
                batch.stalled = []
            if shares is None:
                chunks, preempted, decodes, context = self._constrained(step, returning)
                quiet = False
            else:
                chunks, context = shares, batch.decoding.context_tokens(step)
                batch.memory.take(due)
                for request, tokens, before in chunks:
                    batch.memory.extend(request, before + tokens)
        if preempted:
            refusal = 1
        elif waiting:
            refusal = self._admit(decodes, chunks)
        else:
            refusal = NO_LIMIT
            self._look_up_ps = FOREVER
        for request in aside:
            self._scheduler.wait_by_rank(request)
        if not decodes and not chunks:
            return self._nothing_scheduled(step, (*displaced, *preempted))
        self._step = step
        calm = not self._flying or not (self._flying[0][_ENDINGS] or self._flying[0][_STALE])
        if chunks or refusal == 1 or not quiet or not calm:
            self._single_step(decodes, context, chunks, (*displaced, *preempted), returning)
        elif not self._run_of_steps(decodes, context, refusal, waiting):
            return True
        self._sample(waiting)
        return True

    def _plugin_acts(self, step: int) -> Sequence[TrackedRequest]:
        """What the plug-in does before a step: moves its limits; returns the requests that are displaced for it."""
        batch = self._batch
        if not (batch.members or self._scheduler.queue):
            return ()
        limits = self._plugin.before_step(self._scheduler, self._now_ps, self._inside_now(step))
        batch.threshold, batch.token_budget = limits
        aside = self._make_room(step) if self._plugin.displaces else ()
        batch.aside = len(aside)
        return aside

    def _inside_now(self, step: int) -> Inside:
        """What is inside as a step is composed."""
        batch = self._batch
        return Inside(
            len(batch.members),
            batch.decoding.size,
            batch.decoding.context_tokens(step) if batch.decoding.size else 0,
            [request.target_tokens - request.computed_tokens for request in batch.prefilling],
            sum([request.computed_tokens for request in batch.prefilling]),
            self._view(),
        )

    def _make_room(self, step: int) -> Sequence[TrackedRequest]:
        """Preempt the requests that are displaced before this step; they are queued again after it is composed."""
        batch = self._batch
        if not (batch.members and len(self._scheduler.queue)):
            return []
        inside, size, most = self._inside_now(step), self._rules.block_tokens, self._rules.max_num_batched_tokens
        running: list[Running] = []
        for one in batch.up_to_date([*batch.members]):
            computed = computed_tokens(one, step)
            left = one.target_tokens - computed if one.phase == PREFILLING else int(one.phase == DECODING)
            wanted = min(left, batch.threshold or left) if one.phase == PREFILLING else left
            running.append(Running(one, computed, wanted, -(-(computed + min(left, most)) // size)))
        room = Room(
            self._rules.max_num_seqs - len(batch.members),
            batch.memory.free - self._watermark_blocks - self._growth(step),
            batch.token_budget - sum([one.step_tokens for one in running]),
            most,
            inside.decodes,
            inside.context_tokens,
        )
        now = self._now_ps * SECONDS_PER_PS
        displaced: list[TrackedRequest] = []
        for request in self._plugin.displaced(self._scheduler, now, running, room, self._admission_needs):
            assert isinstance(request, TrackedRequest)
            self._stop_running(request, step)
            self._scheduler.displaced(request, now)
            displaced.append(request)
        return displaced

    def _sample(self, waiting: int) -> None:
        """Draw a point after a step; `waiting` requests were in the queue when it was composed."""
        used = self._rules.kv_blocks - self._batch.memory.free
        # A queue that only this step's victims make up shows from the next step on.
        queued = len(self._scheduler.queue) if waiting else 0
        self.curve.sample(self._now_ps, queued, len(self._batch.members), used)

    def _give_way(self, step: int) -> tuple[int, ...]:
        """Preempt the offline requests that have to go before this step; returns their rows."""
        control, batch, scheduler, now = self._offline, self._batch, self._scheduler, self._now_ps * SECONDS_PER_PS
        may_go = [one for one in batch.members if one.is_offline and one.phase != LEAVING]
        rows: list[int] = []
        while may_go and control.lacks_room(
            len(batch.members),
            batch.memory.free - (self._watermark_blocks if batch.members else 0) - self._growth(step),
            now,
            self._admission_needs,
        ):
            rows.append(self._displace(may_go.pop(), step))
        decodes = [OfflineDecode(one, computed_before(one, step)) for one in may_go if one.phase == DECODING]
        prompts = [one for one in may_go if one.phase == PREFILLING]
        head = scheduler.head(now)
        decoding = batch.decoding.size - len(decodes)
        context = batch.decoding.context_tokens(step) - sum([one.context_tokens for one in decodes])
        load = StepLoad(
            decoding,
            context if decoding else 0,
            len(prompts) < len(batch.prefilling),
            head is not None and not head.is_offline,
            decodes,
            prompts,
            control.prompts_before([one.computed_tokens for one in prompts], head),
            head is not None and head.is_offline,
            batch.version,
        )
        plan = control.plan(load)
        for request in plan.displaced:
            assert isinstance(request, TrackedRequest)
            rows.append(self._displace(request, step))
        batch.offline_tokens = plan.chunk_tokens
        self._is_mixed = load.is_mixed and load.has_offline
        return tuple(rows)

    def _growth(self, step: int) -> int:
        """Blocks that the running requests may take in this step; offline prompts wait."""
        batch, size = self._batch, self._rules.block_tokens
        growth = batch.decoding.blocks_due(step)
        for one in batch.prefilling:
            if not one.is_offline:
                tokens = min(one.target_tokens - one.computed_tokens, self._rules.max_num_batched_tokens)
                growth += -(-(one.computed_tokens + tokens) // size) - -(-one.computed_tokens // size)
        return growth

    def _displace(self, request: TrackedRequest, step: int) -> int:
        """Preempt a request before a step is composed; returns its row."""
        self._stop_running(request, step)
        self._scheduler.preempted(request, self._now_ps * SECONDS_PER_PS)
        return request.row

    def _stop_running(self, request: TrackedRequest, step: int) -> None:
        batch = self._batch
        batch.up_to_date([request])
        was_stalled = request in batch.stalled
        batch.stalled = [other for other in batch.stalled if other is not request]
        batch.wasting -= request.phase == DECODING and request.finish_step < step
        if preempt(batch, Moment(step, self._now_ps, self._busy_until_ps), request, 0, was_stalled=was_stalled):
            self._flying[-1][_STALE].append(request)
        self._columns.preemptions[request.row] += 1
        self._looks_up = self._rules.prefix_caching

    def _admission_needs(self, request: Request) -> tuple[int, int]:
        """The tokens that a waiting request has to compute, and the blocks that its admission needs."""
        assert isinstance(request, TrackedRequest)
        memory, target = self._batch.memory, request.prompt_tokens + request.produced_tokens
        hit = memory.cached_tokens(request)
        before = max(hit, request.carried_tokens)
        new = target - before
        gate = target if self._rules.reserve_full_prompt else before + min(new, self._rules.max_num_batched_tokens)
        return new, memory.need(request, gate, hit)

    def _constrained(self, step: int, returning: list[TrackedRequest]) -> tuple[Chunks, tuple[int, ...], int, int]:
        """(chunks, preempted rows, decodes, their context tokens) of a step that not every request gets a share of."""
        moment = Moment(step, self._now_ps, self._busy_until_ps)
        shared = constrained_step(self._batch, self._scheduler, moment, returning)
        for victim in shared.preempted:
            self._columns.preemptions[victim.row] += 1
            self._looks_up = self._rules.prefix_caching
        if shared.owed:
            self._flying[-1][_STALE].extend(shared.owed)
        return shared.chunks, tuple([v.row for v in shared.preempted]), shared.decodes, shared.context_tokens

    def _nothing_scheduled(self, step: int, preempted: tuple[int, ...]) -> bool:
        """A step without tokens takes no time; True if it made room that the next one, at this instant, may use."""
        if not preempted:
            return False
        self._step = step
        self._empty_steps += 1
        self._log.hold_over(preempted)
        return not self._flying

    def _admit(self, decodes: int, chunks: Chunks) -> int:
        """Admit waiting requests while they fit; returns for how many steps like this one the refusal stands."""
        rules, batch, scheduler = self._rules, self._batch, self._scheduler
        budget = batch.token_budget - decodes - sum([chunk[1] for chunk in chunks])
        now = self._now_ps * SECONDS_PER_PS
        refused: list[Request] = []  # in this step; others may pass them only under a backfilling policy
        moves_left = MOVES_PER_STEP
        while True:
            if self._looks_up and not refused:
                moves_left = self._look_up_heads(now, moves_left)
            if budget <= 0 or len(batch.members) >= rules.max_num_seqs:
                break
            request = self._first_that_can_run(refused, now)
            if request is None:
                break
            assert isinstance(request, TrackedRequest)
            room = self._room(request, budget)
            hold = self._no_room_steps if room is None else 0
            if room is not None and batch.members:
                hold = scheduler.hold_steps(request, batch, self._view(), now)
            if room is None or hold:
                if not scheduler.backfills:
                    return 1 if self._may_change_behind_head(now) else hold
                refused.append(request)
                continue
            if refused:
                scheduler.admit_past(request, refused[0], now)
            else:
                scheduler.take(request.id, now)
            tokens, before, hit = room
            batch.enter(request, request.prompt_tokens + request.produced_tokens, tokens, before, hit)
            self._columns.admit(request.row, self._now_ps, hit)
            if self._log.is_read:
                self._log.admitted.append(request.row)
            chunks.append((request, tokens, before))
            budget -= tokens
        return 1 if refused or self._may_change_behind_head(now) else NO_LIMIT

    def _first_that_can_run(self, refused: list[Request], now: float) -> Request | None:
        """The request to try next: the head, one behind a head whose adapter cannot be resident, or one to backfill."""
        scheduler, adapters = self._scheduler, self._batch.adapters
        if refused:
            return scheduler.candidate(refused, self._batch, self._view(), now)
        return scheduler.head(now) if adapters is None else scheduler.first_that(adapters.may_join, now)

    def _may_change_behind_head(self, now: float) -> bool:
        """Whether the head is stepped over, and time alone may change which request comes behind it."""
        adapters = self._batch.adapters
        if adapters is None or not self._scheduler.queue.is_laned:
            return False
        head = self._scheduler.head(now)
        return head is not None and not adapters.may_join(head)

    def _look_up_heads(self, now: float, moves_left: int) -> int:
        """Ask the cache about the head, as the vLLM plug-in does; returns how many more may lose their place."""
        self._look_up_ps = FOREVER
        while (head := self._scheduler.head(now)) is not None:
            assert isinstance(head, TrackedRequest)
            if not (self._shares or head.high_water_tokens):
                break  # it has never run, and others' blocks are not for it
            stale = moves_left and is_stale(head, now)
            if stale and note_answer(head, self._batch.memory.cached_tokens(head), now):
                moves_left -= 1
                self._scheduler.queue.requeue(head.id)
                continue
            # A preempted one's is -inf: ask in the next step.
            looked_up_at = max(head.looked_up_at, now - STALE_SECONDS)
            self._look_up_ps = int((looked_up_at + STALE_SECONDS) * PS_PER_SECOND) - 1_000  # as `_next_change_ps`
            break
        return moves_left

    def _room(self, request: TrackedRequest, budget: int) -> tuple[int, int, int] | None:
        """(tokens of its first chunk, those before them, how many of these are cached); None if they do not fit."""
        rules, batch, memory = self._rules, self._batch, self._batch.memory
        target = request.prompt_tokens + request.produced_tokens
        free = memory.free - (self._watermark_blocks if batch.members else 0)
        if batch.adapters is not None:
            if not batch.adapters.may_join(request):
                return None
            free -= batch.adapters.blocks_for(request)
        if rules.reserve_full_prompt and memory.surely_needs_more(request, free):
            return None
        hit = memory.cached_tokens(request)
        before = max(hit, request.carried_tokens)
        tokens = min(target - before, batch.chunk_limit(len(self._scheduler.queue)))
        if request.is_offline:
            tokens = min(tokens, batch.offline_tokens)
        if tokens > budget:
            if not rules.chunked_prefill:
                return None
            tokens = budget
        if memory.need(request, target if rules.reserve_full_prompt else before + tokens, hit) > free:
            return None
        return tokens, before, hit

    def _view(self) -> MemoryView:
        return MemoryView(self._batch.memory.free, self._rules.kv_blocks, self._rules.block_tokens)

    # Taking steps

    def _single_step(
        self,
        decodes: int,
        context: int,
        chunks: Chunks,
        preempted: tuple[int, ...],
        returning: list[TrackedRequest],
    ) -> None:
        columns, batch, step = self._columns, self._batch, self._step
        finals = [request for request, tokens, before in chunks if before + tokens == request.target_tokens]
        if chunks:
            work = [chunk[1:] for chunk in chunks]
            duration = self._step_time.mixed_step(decodes, context, work, decodes + len(finals))
        else:
            fixed, slope = self._step_time.decode_step(decodes)
            duration = fixed + slope * context
        if batch.adapters is not None:
            duration += batch.adapters.loading_ps()
        start = max(self._busy_until_ps, self._now_ps)
        end = self._busy_until_ps = start + duration
        self.busy_ps += duration
        self.decode_tokens += decodes
        for request, tokens, before in chunks:
            self.prefill_tokens += tokens
            request.computed_tokens = before + tokens
            if before < request.recomputed_below:
                columns.recomputed_tokens[request.row] += min(request.recomputed_below, before + tokens) - before
        steady = decodes - batch.wasting
        for request in returning:
            if request.phase == DECODING and request.joined_step == step - 1:
                columns.gap(end - request.last_token_ps, 0, 1, 1)
                steady -= 1
        if steady:
            columns.gap(duration, 0, 1, steady)
        for request in finals:
            if request.produced_tokens:
                columns.gap(end - request.last_token_ps, 0, 1, 1)
            batch.start_decoding(request, step, self._output_tokens[request.row] - request.produced_tokens)
        if self._log.is_read:
            self._log.step(start, duration, decodes, context, chunks, preempted, batch.memory.free)
        self._flying.append((end, step, 1, finals, batch.take_endings(step), []))

    def _run_of_steps(self, decodes: int, context: int, refusal: int, waiting: int) -> bool:
        """Take as many steps as equal this one, its own blocks being taken already; whether all of them are taken."""
        fixed, slope = self._step_time.decode_step(decodes)
        first, growth = fixed + slope * context, slope * decodes
        self._take_run(first, growth, self._length_of_run(first, growth, refusal), decodes, context)
        return True

    def _take_run(self, first: int, growth: int, steps: int, decodes: int, context: int, paid: int = 1) -> None:
        """Take a run of `steps`, the first of `first` picoseconds, each `growth` longer; `paid` have their blocks."""
        batch, step = self._batch, self._step
        if steps > 1:
            if steps > paid:
                batch.memory.take(batch.decoding.blocks_of_run(step + paid, steps - paid))
            if self._flying:
                self._finish_oldest()
        start = max(self._busy_until_ps, self._now_ps)
        if self._log.is_read:
            self._log.run(start, first, growth, steps, decodes, context, batch, step)
        self._columns.gap(first, growth, steps, decodes)
        duration = run_duration(first, growth, steps)
        end = self._busy_until_ps = start + duration
        self.busy_ps += duration
        self.decode_tokens += steps * decodes
        self._step = last = step + steps - 1
        if self._depth > 1 and steps > 1:  # the next step is composed when the last but one has ended
            self._now_ps = end - (first + growth * (steps - 1))
            batch.done_step = last - 1
            batch.decode_steps += steps - 1
            steps = 1
        self._flying.append((end, last, steps, [], batch.take_endings(last), []))

    def _length_of_run(self, first: int, growth: int, refusal: int) -> int:
        """Steps until a request ends, a block is missing, or a request may be admitted."""
        decoding = self._batch.decoding
        next_end = decoding.next_end()
        assert next_end is not None
        steps = min(refusal, next_end - self._step + 1, 1 if self._looks_at_each_step else NO_LIMIT)
        until = self._next_change_ps()
        if until < FOREVER:
            steps = min(steps, self._steps_until(first, growth, until))
        return 1 + decoding.steps_that_fit(self._step + 1, self._batch.memory.free, steps - 1) if steps > 1 else steps

    def _steps_until(self, first: int, growth: int, until_ps: int) -> int:
        """Steps of a run that are composed before `until_ps`; at least the first one, which is composed now."""
        lead = self._depth - 1  # each further one is composed when the step `depth` before it ends
        span = until_ps - (max(self._busy_until_ps, self._now_ps) if lead else self._now_ps)
        return lead + least_steps(first, growth, span) if span > 0 else 1

    @property
    def _looks_at_each_step(self) -> bool:
        """Whether what happens before a step may change although nothing joined or left."""
        return self._is_mixed or (self._plugin.displaces and len(self._scheduler.queue) > 0)

    def _next_change_ps(self) -> int:
        """When an arrival, or time alone, may change which request is admitted."""
        until = min(self._arrivals.next_ps, self._plugin.next_check_ps, self._look_up_ps)
        if len(self._batch.members) < self._rules.max_num_seqs:
            stands_until = self._scheduler.stands_until(self._now_ps * SECONDS_PER_PS)
            if stands_until * PS_PER_SECOND < until:
                until = int(stands_until * PS_PER_SECOND) - 1_000  # a nanosecond early: seconds are rounded
        return until

    # Ending steps

    def _finish_oldest(self) -> None:
        """The oldest step in flight ends: its tokens come out."""
        end_ps, step, steps, finals, endings, stale = self._flying.popleft()
        self._now_ps = end_ps
        self._batch.done_step = step
        self._batch.decode_steps += steps
        if not (finals or endings or stale):
            return
        now = end_ps * SECONDS_PER_PS
        for request in stale:
            request.produced_tokens += 1
        # In order of admission, as vLLM goes through its outputs.
        news = [(request.seat, 0, request) for request in finals] + [(request.seat, 1, request) for request in endings]
        for _, ends, request in sorted(news):
            if ends:
                self._end(request, now)
            elif self._columns.first_token_ps[request.row] == NEVER:
                self._columns.first_token_ps[request.row] = end_ps
                request.produced_tokens = 1
                self._scheduler.first_token(request, now)
                self._arrivals.first_token(request.row, end_ps)
        if self._fused is not None:
            for request in finals:
                if request.phase == DECODING:
                    self._fused.fuse(request)

    def _end(self, request: TrackedRequest, now: float) -> None:
        if request.phase == WAITING:  # preempted while its last token was on the way
            self._scheduler.queue.remove(request.id)
        else:
            self._batch.leave(request)
        request.produced_tokens = self._output_tokens[request.row]
        self._columns.ended_ps[request.row] = self._now_ps
        self._scheduler.complete(request, now)
        self._arrivals.ended(request.row, self._now_ps)
