"""The reference engine: vLLM V1's scheduling loop, one request and one step at a time, written to be checked by eye.

It visits every request on every step and is therefore slow. It is the yardstick: the fast engine has to give the same
day, and this one has to take vLLM's own decisions (`docs/parity.md`). Names in parentheses are the places of vLLM 0.32
that a rule comes from; methods without a class are those of `vllm.v1.core.sched.scheduler.Scheduler`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from headway.domain.event import Listener
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request, RequestView
from headway.scheduling.scheduler import Policies, Scheduler
from headway.simulator.arrivals import why_never
from headway.simulator.outcome import DayOutcome, StepObserver, StepRecord, TokenGaps
from headway.simulator.reference_blocks import ContentKeys, ReferenceBlockMemory
from headway.simulator.reference_day import DayRecord, ExpectedArrivals, ReferenceRequest
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import SECONDS_PER_PS, StepTime
from headway.simulator.trace import Trace


def simulate_reference(
    trace: Trace,
    rules: EngineRules,
    step_time: StepTime,
    policies: Policies,
    *,
    observer: StepObserver | None = None,
    listeners: Sequence[Listener] = (),
) -> DayOutcome:
    """Run a whole trace through one replica and say what came of it.

    Time passes in steps. The engine composes a batch (`schedule`), the batch takes as long as `step_time` says, and
    its tokens appear at its end (`update_from_output`). With asynchronous scheduling two batches are in flight: while
    step n runs, step n + 1 is composed already, at the start of n, so what n brings is seen first by step n + 2
    (`EngineCore.step_with_batch_queue`).

    Args:
        trace: who comes when, with the true output lengths.
        rules: limits and switches of the engine.
        step_time: duration of a step.
        policies: fresh ones; they keep state.
        observer: is given every step.
        listeners: are told every event.

    Raises:
        ValueError: the preemption policy named a victim that does not run.
    """
    return ReferenceEngine(trace, rules, step_time, policies, observer=observer, listeners=listeners).run()


@dataclass(slots=True)
class _StepShare:
    """What one request gets of a step."""

    request: ReferenceRequest
    tokens: int
    samples: bool  # a token comes out for it at the end of the step
    preemptions: int  # how often it had been preempted when the step was composed


@dataclass(slots=True)
class _Step:
    """A composed batch on its way through the GPU."""

    ends_ps: int
    shares: list[_StepShare]


@dataclass(slots=True)
class _Draft:
    """A batch being composed."""

    budget: int
    long_prompt_tokens: int  # most tokens of one prompt in this step, 0 for no limit
    tokens: dict[ReferenceRequest, int] = field(default_factory=dict)  # in the order in which they were given
    preempted: list[ReferenceRequest] = field(default_factory=list)
    admitted: list[ReferenceRequest] = field(default_factory=list)

    def capped(self, tokens: int) -> int:
        """`tokens`, at most what one prompt may have of this step."""
        return min(tokens, self.long_prompt_tokens) if self.long_prompt_tokens else tokens


class ReferenceEngine:
    """One replica; also the `BatchView` that admission policies see. The embedded engine drives one in real time."""

    def __init__(
        self,
        trace: Trace,
        rules: EngineRules,
        step_time: StepTime,
        policies: Policies,
        *,
        observer: StepObserver | None,
        listeners: Sequence[Listener],
    ) -> None:
        self.version = 0
        self.decode_steps = 0
        self._rules = rules
        self._step_time = step_time
        self._observer = observer
        self._scheduler = Scheduler(policies, resumed=rules.resumed, listeners=listeners)
        keys = ContentKeys(trace, rules.block_tokens) if rules.prefix_caching else None
        self._memory = ReferenceBlockMemory(rules.kv_blocks, rules.block_tokens, keys)
        # vLLM takes the fraction of all blocks, its null block included (`KVCacheManager.__init__`).
        self._watermark_blocks = int(rules.watermark * (rules.kv_blocks + 1))
        self._running: list[ReferenceRequest] = []  # in order of admission
        self._in_flight: deque[_Step] = deque()  # the oldest first
        self._victims: list[int] = []  # rows preempted since the last step with tokens
        self._expected = ExpectedArrivals(trace)
        self._ledger = DayRecord(trace)
        self._now_ps = 0

    # ------------------------------------------------------------------ time

    def run(self) -> DayOutcome:
        """Compose while there is room in the pipeline, else wait for the oldest step; until nobody is left."""
        depth = 2 if self._rules.async_scheduling else 1
        while True:
            self._take_arrivals()
            step = self._compose()
            if step is not None:
                self._in_flight.append(step)
                if len(self._in_flight) < depth:
                    continue
            if self._in_flight:
                finished = self._in_flight.popleft()
                self._now_ps = finished.ends_ps
                self._take_output(finished)
            elif not self._pass_idle_time():
                return self._ledger.outcome()

    def _pass_idle_time(self) -> bool:
        """Nothing runs and nothing could be composed: go on to the next arrival. False when the day is over."""
        if self._victims and len(self._scheduler.queue):
            return True  # the composition only made room; the next one, at the same instant, uses it
        if self._expected.next_ps is not None:
            self._ledger.idle(self._now_ps)
            self._now_ps = max(self._now_ps, self._expected.next_ps)
            return True
        assert not len(self._scheduler.queue), "alone on the replica, every request that was not refused fits"
        return False

    @property
    def _now(self) -> float:
        return self._now_ps * SECONDS_PER_PS

    # -------------------------------------------------------------- arrivals

    def _take_arrivals(self) -> None:
        """Queue everybody who has come by now; turn away whoever could never be served whole."""
        for at_ps, row in self._expected.take(self._now_ps):
            request = self._ledger.arrive(row, at_ps)
            reason = why_never(self._rules, request.prompt_tokens, self._ledger.output_tokens(row))
            if reason is not None:
                self._ledger.refuse(row, reason)
                for later in self._expected.rest_of_session(row):
                    self._ledger.refuse(later, f"an earlier turn of its session was refused: {reason}")
                self._scheduler.refuse(request, self._now, reason)
                continue
            request.cached_prompt_tokens = len(self._memory.find(request)) * self._rules.block_tokens
            self._scheduler.arrive(request, self._now)

    # ------------------------------------------------- composition of a step

    def _compose(self) -> _Step | None:
        """Hand out the token budget: who runs first, then who waits (`schedule`). None if nobody got a token.

        A step without tokens takes no time and is not counted; whom it preempted is told with the next step.
        """
        if not self._running and not len(self._scheduler.queue):
            return None
        # The threshold keeps a long prompt from starving others; who is alone has nobody to starve.
        alone = len(self._running) + len(self._scheduler.queue) <= 1
        draft = _Draft(
            budget=self._rules.max_num_batched_tokens,
            long_prompt_tokens=0 if alone else self._rules.long_prefill_token_threshold,
        )
        self._serve_running(draft)
        if not draft.preempted:
            self._admit_waiting(draft)
        self._victims += [victim.row for victim in draft.preempted]
        return self._launch(draft) if draft.tokens else None

    def _serve_running(self, draft: _Draft) -> None:
        """Give every running request what it lacks, in order of admission, while the budget lasts."""
        place = 0
        while place < len(self._running) and draft.budget > 0:
            request = self._running[place]
            lacking = 0 if self._end_is_foreseen(request) else request.lacking_tokens
            new = min(draft.capped(lacking), draft.budget)
            new = min(new, self._rules.max_model_tokens - request.computed_tokens - 1)
            if new <= 0:
                place += 1  # nothing to do for it; those behind it may still go on
                continue
            if not self._grow(request, new, draft):
                return
            draft.tokens[request] = new
            draft.budget -= new
            place = self._running.index(request) + 1  # a victim in front of it moved it forward

    def _grow(self, request: ReferenceRequest, new: int, draft: _Draft) -> bool:
        """Find blocks for `new` more tokens, preempting until there are enough. False if it gave way itself."""
        while not self._memory.extend(request, request.computed_tokens + new):
            chosen = self._scheduler.victim(self._running, self._now)
            victim = next(running for running in self._running if running is chosen)
            # One that got tokens in this very step gives them back.
            draft.budget += draft.tokens.pop(victim, 0)
            self._preempt(victim)
            draft.preempted.append(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, victim: ReferenceRequest) -> None:
        """Take a request's memory; it waits again and will be computed anew (`_preempt_request`).

        Tokens of it that are in flight are still delivered (see `_take_output`).
        """
        self._running.remove(victim)
        self._memory.release(victim)
        victim.high_water_tokens = max(victim.high_water_tokens, victim.computed_tokens)
        victim.computed_tokens = 0
        victim.placeholders = 0
        victim.preemptions += 1
        victim.is_running = False
        self.version += 1
        self._scheduler.preempted(victim, self._now)

    def _end_is_foreseen(self, request: ReferenceRequest) -> bool:
        """Whether the tokens on their way already reach the client's bound, so that no further step is needed."""
        if request.placeholders == 0:
            return False
        produced_with_those_on_their_way = request.computed_tokens + 2 - request.placeholders - request.prompt_tokens
        return produced_with_those_on_their_way >= request.output_limit

    def _admit_waiting(self, draft: _Draft) -> None:
        """Let the head of the queue in while budget, seats and memory allow; stop at the first that does not fit.

        Unless the admission policy backfills: then those it names may pass whom they do not keep waiting.
        """
        refused: list[Request] = []
        while draft.budget > 0 and len(self._running) < self._rules.max_num_seqs:
            request = self._scheduler.candidate(refused, self, self._memory_view(), self._now)
            if request is None:
                return
            assert isinstance(request, ReferenceRequest)
            if not self._admit_one(request, refused, draft):
                refused.append(request)

    def _admit_one(self, request: ReferenceRequest, refused: list[Request], draft: _Draft) -> bool:
        """Let one in; False if budget, memory or policy say no."""
        found = self._memory.find(request)
        cached = len(found) * self._rules.block_tokens
        new = draft.capped(request.total_tokens - cached)
        if new > draft.budget and not self._rules.chunked_prefill:
            return False
        new = min(new, draft.budget)
        # The gate looks at the whole prompt, but only the blocks of this step's tokens are taken.
        gate_tokens = request.total_tokens if self._rules.reserve_full_prompt else cached + new
        keep_free = self._watermark_blocks if self._running else 0
        if self._memory.needed(gate_tokens, found) + keep_free > self._memory.free:
            return False
        # An empty batch takes whoever comes, or nothing would ever run: the policy is not even asked.
        if self._running and self._scheduler.hold_steps(request, self, self._memory_view(), self._now) > 0:
            return False
        if refused:
            self._scheduler.admit_past(request, refused[0], self._now)
        else:
            self._scheduler.admit(self._now)
        self._memory.admit(request, cached + new, found)
        request.computed_tokens = cached
        request.is_prefilling = True
        request.is_running = True
        self._running.append(request)
        self.version += 1
        self._ledger.admit(request, self._now_ps, cached)
        draft.tokens[request] = new
        draft.budget -= new
        draft.admitted.append(request)
        return True

    def _memory_view(self) -> MemoryView:
        return MemoryView(self._memory.free, self._memory.blocks, self._rules.block_tokens)

    def _launch(self, draft: _Draft) -> _Step:
        """Count the tokens as computed, foresee who samples, and put the step behind those in flight.

        (`_update_after_schedule`; with asynchronous scheduling every token to come is counted as a placeholder,
        `AsyncScheduler._update_after_schedule`.)
        """
        shares: list[_StepShare] = []
        chunks: list[tuple[int, int, int]] = []
        decodes = context_tokens = 0
        for request, new in draft.tokens.items():
            before = request.computed_tokens
            if request.is_prefilling:
                chunks.append((request.row, new, before))
                self._ledger.computed(request, before, new)
            else:
                decodes += 1
                context_tokens += before
            request.computed_tokens += new
            samples = request.lacking_tokens == 0
            if samples:
                self.version += request.is_prefilling
                request.is_prefilling = False
                request.placeholders += self._rules.async_scheduling
            shares.append(_StepShare(request, new, samples, request.preemptions))
        duration_ps = self._step_time.mixed_step(
            decodes, context_tokens, [chunk[1:] for chunk in chunks], sum(share.samples for share in shares)
        )
        started_ps = self._in_flight[-1].ends_ps if self._in_flight else self._now_ps
        record = StepRecord(
            started_ps=started_ps,
            duration_ps=duration_ps,
            decodes=decodes,
            context_tokens=context_tokens,
            chunks=tuple(chunks),
            preempted=tuple(self._victims),
            admitted=tuple(request.row for request in draft.admitted),
            blocks_free=self._memory.free,
        )
        self._note(record)
        return _Step(started_ps + duration_ps, shares)

    def _note(self, record: StepRecord) -> None:
        """Write a composed step down."""
        self._victims.clear()
        self._ledger.step(
            self._now_ps,
            waiting=len(self._scheduler.queue),
            running=len(self._running),
            blocks_used=self._memory.blocks - self._memory.free,
        )
        if self._observer is not None:
            self._observer.on_step(record)

    # --------------------------------------------------------- end of a step

    def _take_output(self, step: _Step) -> None:
        """A step has ended: its tokens appear, in the order of the batch (`update_from_output`)."""
        self.decode_steps += 1
        gaps: Counter[int] = Counter()
        for share in step.shares:
            request = share.request
            if request.has_ended or not share.samples:
                continue  # a prompt not done yet, or the token computed for one whose stop token came meanwhile
            if share.preemptions == request.preemptions:
                request.placeholders -= self._rules.async_scheduling
            # else it was preempted while the token was on its way: the token counts, the counters stay reset.
            self._deliver_token(request, gaps)
        self._ledger.gaps += [TokenGaps(gap, 0, 1, tokens) for gap, tokens in gaps.items()]

    def _deliver_token(self, request: ReferenceRequest, gaps: Counter[int]) -> None:
        request.produced_tokens += 1
        if request.is_running and self._rules.async_scheduling:
            # Outputs become known only now, so blocks they fill are named only now
            # (`AsyncScheduler._update_request_with_output`).
            self._memory.name_full_blocks(request, request.computed_tokens - request.placeholders)
        if request.produced_tokens == 1:
            self._ledger.first_token(request, self._now_ps)
            self._scheduler.first_token(request, self._now)
        else:
            gaps[self._now_ps - request.last_token_ps] += 1
        request.last_token_ps = self._now_ps
        if request.produced_tokens == self._ledger.output_tokens(request.row):
            self._end(request)

    def _end(self, request: ReferenceRequest) -> None:
        request.has_ended = True
        if request.is_running:
            self._running.remove(request)
            self._memory.release(request)
            self.version += 1
        else:
            self._scheduler.queue.remove(request.id)  # its last token was in flight when it was preempted
        self._ledger.end(request, self._now_ps)
        self._scheduler.complete(request, self._now)
        self._expected.ended(request.row, self._now_ps)

    # ----------------------------------------------------- for the policies

    @property
    def size(self) -> int:
        """See `BatchView.size`."""
        return len(self._running)

    def running(self) -> Sequence[RequestView]:
        """See `BatchView.running`."""
        return self._running
