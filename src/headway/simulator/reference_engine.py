"""The reference engine: vLLM V1's scheduling loop, one request and one step at a time, written to be checked by eye.

It visits every request on every step and is therefore slow. It is the yardstick: the skipping engine has to give the
same day, and this one has to take vLLM's own decisions (`docs/parity.md`). Names in parentheses are the places of vLLM
0.32 that a rule comes from; methods without a class are those of `vllm.v1.core.sched.scheduler.Scheduler`.

It has no trace, no day and no wall clock. Its user submits requests and takes the steps: `reference.py` plays a trace
at once, the gateway's embedded engine plays live requests in real time. One file because vLLM's loop is one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from headway.domain.event import Listener
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request, RequestView
from headway.scheduling.displacement import Room, Running
from headway.scheduling.head_lookups import MOVES_PER_STEP, is_stale, note_answer
from headway.scheduling.offline_gate import NO_LIMIT, OfflineDecode, StepLoad
from headway.scheduling.prefill_budget import StepLimits
from headway.scheduling.scheduler import Policies, Scheduler
from headway.simulator.offline_control import OfflineControl
from headway.simulator.outcome import NEVER, StepObserver, StepRecord
from headway.simulator.plugin_control import Inside, PluginControl
from headway.simulator.reference_adapters import ReferenceAdapters
from headway.simulator.reference_blocks import ContentKeyOf, ReferenceBlockMemory
from headway.simulator.reference_request import ReferenceRequest
from headway.simulator.rules import NO_PLUGIN, EngineRules, PluginRules
from headway.simulator.step_time import SECONDS_PER_PS, StepTime


@dataclass(slots=True)
class _StepShare:
    """What one request gets of a step."""

    request: ReferenceRequest
    samples: bool  # a token comes out for it at the end of the step
    preemptions: int  # of the request when the step was composed


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
    offline_tokens: int  # most tokens of one offline prompt
    tokens: dict[ReferenceRequest, int] = field(default_factory=dict)  # in the order in which they were given
    heads_moved: int = 0  # because the prefix cache holds something else of them now
    preempted: list[int] = field(default_factory=list)
    admitted: list[int] = field(default_factory=list)

    def capped(self, request: ReferenceRequest, tokens: int) -> int:
        """`tokens` of a request, at most what one prompt may have of this step."""
        if request.is_offline and (request.is_prefilling or not request.is_running):
            tokens = min(tokens, self.offline_tokens)
        return min(tokens, self.long_prompt_tokens) if self.long_prompt_tokens else tokens


class ReferenceEngine:
    """One replica. It is also the `BatchView` that admission policies see.

    Time passes in steps. The engine composes a batch (`schedule`), the batch takes as long as `step_time` says, and
    its tokens appear at its end (`update_from_output`). With asynchronous scheduling two batches are in flight: while
    step n runs, step n + 1 is composed already, at the start of n, so what n brings is seen first by step n + 2
    (`EngineCore.step_with_batch_queue`).

    To drive it: `compose` until it returns None, and after each time `finish_step`. Between two steps `submit`,
    `refuse` and `cancel`; when nothing runs, `idle_until` the next request.
    """

    def __init__(
        self,
        rules: EngineRules,
        step_time: StepTime,
        policies: Policies,
        content_key: ContentKeyOf,
        *,
        plugin: PluginRules = NO_PLUGIN,
        observer: StepObserver | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        """`policies` must be fresh, for they keep state; `content_key` is asked with prefix caching only."""
        self.version = 0
        self.decode_steps = 0
        self.now_ps = 0
        self._rules = rules
        self._step_time = step_time
        self._observer = observer
        self._plugin = PluginControl(plugin, rules, policies, step_time)
        self._scheduler = Scheduler(policies, resumed=rules.resumed, listeners=[*self._plugin.listeners, *listeners])
        self._offline = OfflineControl(plugin, rules, step_time, self._scheduler)
        self._memory = ReferenceBlockMemory(
            rules.kv_blocks, rules.block_tokens, content_key if rules.prefix_caching else None
        )
        # vLLM takes the fraction of all blocks, its null block included (`KVCacheManager.__init__`).
        self._watermark_blocks = int(rules.watermark * (rules.kv_blocks + 1))
        self._inside: dict[ReferenceRequest, int] = {}  # true output tokens of every request, waiting or running
        self._running: list[ReferenceRequest] = []  # in order of admission
        self._sharing: set[ReferenceRequest] = set()  # of the running ones, those whose blocks were fused
        self._adapters = ReferenceAdapters(rules.adapters, self._memory, self._running)
        self._in_flight: deque[_Step] = deque()  # the oldest first
        self._depth = 2 if rules.async_scheduling else 1
        self._victims: list[int] = []  # rows preempted since the last step with tokens

    # -------------------------------------------------------------- requests

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._scheduler.queue)

    def queued(self) -> list[ReferenceRequest]:
        """The requests in the queue."""
        return [request for request in self._scheduler.queue if isinstance(request, ReferenceRequest)]

    @property
    def memory(self) -> MemoryView:
        """KV blocks, free and in all."""
        return MemoryView(self._memory.free, self._memory.blocks, self._rules.block_tokens)

    def submit(self, request: ReferenceRequest, output_tokens: int) -> None:
        """Queue a request that will produce `output_tokens`. It must fit the replica, see `arrivals.why_never`."""
        self._inside[request] = output_tokens
        note_answer(request, self.cached_tokens(request), self._now)
        self._scheduler.arrive(request, self._now)

    def refuse(self, request: ReferenceRequest, reason: str) -> None:
        """Turn a request away before it is queued."""
        self._scheduler.refuse(request, self._now, reason)

    def cancel(self, request: ReferenceRequest) -> None:
        """Drop a request that was submitted; its memory is free for the next step. Nothing if it has ended."""
        if self._inside.pop(request, None) is None:
            return
        request.has_ended = True
        if request.is_running:
            self._vacate(request)
            self._scheduler.left(request, self._now)
        else:
            self._scheduler.cancel(request.id, self._now)

    def resume(self, request: ReferenceRequest, output_tokens: int) -> None:
        """Queue a request that ran at another engine and brings `carried_tokens` and its `produced_tokens`."""
        self._inside[request] = output_tokens
        note_answer(request, self.cached_tokens(request), self._now)
        produced, request.produced_tokens = request.produced_tokens, 0
        self._scheduler.resume_from_elsewhere(request, produced, self._now)

    def take_back(self, request: ReferenceRequest, now: float) -> None:
        """A request that waits goes to another engine, at `now` seconds, which may be inside a step."""
        del self._inside[request]
        self._scheduler.cancel(request.id, now)

    def stop_request(self, request: ReferenceRequest) -> int | None:
        """Stop a running request between two steps, to go on elsewhere: as a preemption, but it does not wait here.

        Returns when its last token here comes out; None if it does not decode.
        """
        has_seat = request.is_running and not request.has_ended
        if not has_seat or request.is_prefilling or self._end_is_foreseen(request):
            return None
        on_its_way = any(
            share.request is request and share.samples for step in self._in_flight for share in step.shares
        )
        self._vacate(request)
        request.is_running = False
        request.placeholders = 0
        return self._in_flight[-1].ends_ps if on_its_way else self.now_ps

    def forget(self, request: ReferenceRequest, now: float) -> None:
        """A request that was stopped has gone to another engine, at `now` seconds."""
        del self._inside[request]
        self._scheduler.left(request, now)

    # ------------------------------------------------------------------ time

    def compose(self) -> int | None:
        """Compose steps while there is room in the pipeline.

        Returns when the oldest step in flight ends, in picoseconds; None when there is no step to run.
        """
        while len(self._in_flight) < self._depth:
            step = self._compose_step()
            if step is not None:
                self._in_flight.append(step)
            elif self._in_flight or not (self._victims and self.waiting):
                break
            # else the composition only made room; the next one, at the same instant, uses it
        return self._in_flight[0].ends_ps if self._in_flight else None

    def finish_step(self) -> list[ReferenceRequest]:
        """Go on to the end of the oldest step in flight; returns the requests that got a token, in batch order.

        (`update_from_output`)
        """
        step = self._in_flight.popleft()
        self.now_ps = step.ends_ps
        self.decode_steps += 1
        served: list[ReferenceRequest] = []
        for share in step.shares:
            request = share.request
            if request.has_ended or not share.samples:
                continue  # a prompt not done yet, or the token computed for one whose stop token came meanwhile
            if share.preemptions == request.preemptions:
                request.placeholders -= self._rules.async_scheduling
            # else it was preempted while the token was on its way: the token counts, the counters stay reset.
            self._deliver_token(request)
            served.append(request)
        if self._rules.fused_share:
            self._fuse(served)
        return served

    def _fuse(self, served: Sequence[ReferenceRequest]) -> None:
        """Requests whose prompts are computed since this step, and that run on, share their blocks from now on."""
        for request in served:
            if request.is_running and not request.has_ended and request not in self._sharing:
                self._sharing.add(request)
                full = request.prompt_tokens // self._rules.block_tokens
                self._memory.fuse(request, (request.tenant, request.adapter), int(self._rules.fused_share * full))

    def idle_until(self, at_ps: int) -> None:
        """Nothing is in flight: let time pass. A time that has passed changes nothing."""
        assert not self._in_flight, "time passes by itself while a step is in flight"
        self.now_ps = max(self.now_ps, at_ps)

    @property
    def _now(self) -> float:
        return self.now_ps * SECONDS_PER_PS

    # ------------------------------------------------- composition of a step

    def _compose_step(self) -> _Step | None:
        """Hand out the token budget: to running requests, then to waiting ones (`schedule`).

        None if no request got a token. Such a step takes no time and is not counted; its victims are reported with
        the next step.
        """
        if not self._running and not self.waiting:
            return None
        offline_tokens = self._give_way() if self._offline.acts else NO_LIMIT
        limits = self._plugin.before_step(self._scheduler, self.now_ps, self._inside_now())
        long_prompt_tokens, requests = limits.threshold, len(self._running) + self.waiting
        displaced = self._make_room(limits) if self._plugin.displaces else []
        if requests == 1:
            long_prompt_tokens = 0  # the threshold keeps a long prompt from starving others, and there are none
        elif long_prompt_tokens and self._rules.long_prefill_token_threshold_adaptive:
            long_prompt_tokens = max(long_prompt_tokens, self._rules.max_num_batched_tokens // requests)
        draft = _Draft(limits.token_budget, long_prompt_tokens, offline_tokens)
        self._serve_running(draft)
        if not draft.preempted:
            self._admit_waiting(draft)
        self._victims += draft.preempted
        for request in displaced:
            self._scheduler.wait_by_rank(request)
        return self._launch(draft) if draft.tokens else None

    def _inside_now(self) -> Inside:
        """What is inside as a step is composed."""
        prompts = [one for one in self._running if one.is_prefilling]
        decodes = [one.computed_tokens for one in self._running if not one.is_prefilling and self._lacks_tokens(one)]
        return Inside(
            len(self._running),
            len(decodes),
            sum(decodes),
            [one.lacking_tokens for one in prompts],
            sum([one.computed_tokens for one in prompts]),
            self.memory,
        )

    def _make_room(self, limits: StepLimits) -> list[Request]:
        """Preempt the requests that are displaced before this step; they are queued again after it is composed."""
        if not (self._running and self.waiting):
            return []
        inside, size = self._inside_now(), self._rules.block_tokens
        running: list[Running] = []
        for one in self._running:
            wanted = one.lacking_tokens if self._lacks_tokens(one) else 0
            if one.is_prefilling:
                wanted = min(wanted, limits.threshold or wanted)
            blocks = -(-one.computed_tokens // size) + self._growth_of(one)
            running.append(Running(one, one.computed_tokens, wanted, blocks))
        room = Room(
            self._rules.max_num_seqs - len(self._running),
            self._memory.free - self._watermark_blocks - self._growth(),
            limits.token_budget - sum([one.step_tokens for one in running]),
            self._rules.max_num_batched_tokens,
            inside.decodes,
            inside.context_tokens,
        )
        displaced = self._plugin.displaced(self._scheduler, self._now, running, room, self._admission_needs)
        for request in displaced:
            assert isinstance(request, ReferenceRequest)
            self._stop_running(request)
            self._victims.append(request.row)
            self._scheduler.displaced(request, self._now)
        return displaced

    def _give_way(self) -> int:
        """Preempt the offline requests that have to go before this step; most tokens of each offline prompt in it."""
        control = self._offline
        going_on = [one for one in self._running if self._lacks_tokens(one)]
        may_go = [one for one in going_on if one.is_offline]
        while may_go and control.lacks_room(
            len(self._running),
            self._memory.free - (self._watermark_blocks if self._running else 0) - self._growth(),
            self._now,
            self._admission_needs,
        ):
            self._displace(may_go.pop())
        online = [one for one in going_on if not one.is_offline]
        decoding = [one.computed_tokens for one in online if not one.is_prefilling]
        prompts = [one for one in may_go if one.is_prefilling]
        head = self._scheduler.head(self._now)
        plan = control.plan(
            StepLoad(
                len(decoding),
                sum(decoding),
                len(decoding) < len(online),
                head is not None and not head.is_offline,
                [OfflineDecode(one, one.computed_tokens) for one in may_go if not one.is_prefilling],
                prompts,
                control.prompts_before([one.computed_tokens for one in prompts], head),
                head is not None and head.is_offline,
                self.version,
            )
        )
        for request in plan.displaced:
            assert isinstance(request, ReferenceRequest)
            self._displace(request)
        return plan.chunk_tokens

    def _growth(self) -> int:
        """Blocks that the running requests may take in this step; offline prompts wait."""
        return sum([self._growth_of(one) for one in self._running if not (one.is_offline and one.is_prefilling)])

    def _growth_of(self, one: ReferenceRequest) -> int:
        if not self._lacks_tokens(one):
            return 0
        size = self._rules.block_tokens
        tokens = one.computed_tokens + min(one.lacking_tokens, self._rules.max_num_batched_tokens)
        return -(-tokens // size) - -(-one.computed_tokens // size)

    def _lacks_tokens(self, request: ReferenceRequest) -> bool:
        """Whether a running request still has something to compute, but for what is on its way."""
        if self._end_is_foreseen(request):
            return False
        return request.lacking_tokens > 0 and request.computed_tokens + 1 < self._rules.max_model_tokens

    def _displace(self, request: ReferenceRequest) -> None:
        self._preempt(request)
        self._victims.append(request.row)

    def _admission_needs(self, request: Request) -> tuple[int, int]:
        """The tokens that a waiting request has to compute, and the blocks that its admission needs."""
        assert isinstance(request, ReferenceRequest)
        hits = self._memory.find(request)
        before = max(len(hits) * self._rules.block_tokens, request.carried_tokens)
        new = request.total_tokens - before
        gate = (
            request.total_tokens
            if self._rules.reserve_full_prompt
            else before + min(new, self._rules.max_num_batched_tokens)
        )
        return new, self._memory.needed(gate, hits)

    def _serve_running(self, draft: _Draft) -> None:
        """Give every running request what it lacks, in order of admission, while the budget lasts."""
        place = 0
        while place < len(self._running) and draft.budget > 0:
            request = self._running[place]
            lacking = 0 if self._end_is_foreseen(request) else request.lacking_tokens
            new = min(draft.capped(request, lacking), draft.budget)
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
            draft.preempted.append(victim.row)
            if victim is request:
                return False
        return True

    def _preempt(self, victim: ReferenceRequest) -> None:
        """Take a request's memory; it waits again and will be recomputed (`_preempt_request`).

        Tokens of it that are in flight are still delivered (see `finish_step`).
        """
        self._stop_running(victim)
        self._scheduler.preempted(victim, self._now)

    def _stop_running(self, victim: ReferenceRequest) -> None:
        self._vacate(victim)
        victim.high_water_tokens = max(victim.high_water_tokens, victim.computed_tokens)
        victim.computed_tokens = 0
        victim.placeholders = 0
        victim.preemptions += 1
        victim.is_running = False

    def _vacate(self, request: ReferenceRequest) -> None:
        """A running request gives up its seat and its memory."""
        self._running.remove(request)
        self._sharing.discard(request)
        self._memory.release(request)
        self._adapters.leave(request)
        self.version += 1

    def _end_is_foreseen(self, request: ReferenceRequest) -> bool:
        """Whether the tokens on their way already reach the client's bound, so that no further step is needed."""
        if request.placeholders == 0:
            return False
        produced_with_those_on_their_way = request.computed_tokens + 2 - request.placeholders - request.prompt_tokens
        return produced_with_those_on_their_way >= request.output_limit

    def _admit_waiting(self, draft: _Draft) -> None:
        """Admit the head of the queue while budget, seats and memory allow; stop at the first that does not fit.

        Unless the admission policy backfills: then requests that it names may pass those that do not fit.
        """
        refused: list[Request] = []
        while True:
            if self._rules.prefix_caching and not refused:
                self._look_up_heads(draft)
            if draft.budget <= 0 or len(self._running) >= self._rules.max_num_seqs:
                return
            if refused:
                request = self._scheduler.candidate(refused, self, self.memory, self._now)
            else:
                request = self._scheduler.first_that(self._may_join, self._now)
            if request is None:
                return
            assert isinstance(request, ReferenceRequest)
            if not self._admit_one(request, refused, draft):
                refused.append(request)

    def _may_join(self, request: Request) -> bool:
        """Whether its LoRA adapter may be resident; vLLM steps over requests whose adapter may not (`max_loras`)."""
        assert isinstance(request, ReferenceRequest)
        return self._adapters.may_join(request)

    def _look_up_heads(self, draft: _Draft) -> None:
        """Ask the cache about the head, as the vLLM plug-in does; one that loses its place makes room for the next."""
        while draft.heads_moved < MOVES_PER_STEP:
            head = self._scheduler.head(self._now)
            if head is None or not is_stale(head, self._now):
                return
            assert isinstance(head, ReferenceRequest)
            if note_answer(head, self.cached_tokens(head), self._now):
                draft.heads_moved += 1
                self._scheduler.queue.requeue(head.id)

    def cached_tokens(self, request: ReferenceRequest) -> int:
        """Tokens from the start of a request that its prefix cache holds now."""
        return len(self._memory.find(request)) * self._rules.block_tokens

    def _admit_one(self, request: ReferenceRequest, refused: list[Request], draft: _Draft) -> bool:
        """Admit one request; False if budget, memory, adapters or policy say no."""
        if not self._adapters.may_join(request):
            return False
        hits = self._memory.find(request)
        cached = len(hits) * self._rules.block_tokens
        before = max(cached, request.carried_tokens)
        new = draft.capped(request, request.total_tokens - before)
        if new > draft.budget and not self._rules.chunked_prefill:
            return False
        new = min(new, draft.budget)
        # The gate looks at the whole prompt, but only the blocks of this step's tokens are taken.
        gate_tokens = request.total_tokens if self._rules.reserve_full_prompt else before + new
        keep_free = self._adapters.blocks_for(request) + (self._watermark_blocks if self._running else 0)
        if self._memory.needed(gate_tokens, hits) + keep_free > self._memory.free:
            return False
        # An empty batch takes any request, or nothing would ever run: the policy is not even asked.
        if self._running and self._scheduler.hold_steps(request, self, self.memory, self._now) > 0:
            return False
        if refused:
            self._scheduler.admit_past(request, refused[0], self._now)
        else:
            self._scheduler.take(request.id, self._now)
        self._memory.admit(request, before + new, hits)
        request.computed_tokens = before
        request.carried_tokens = 0
        request.is_prefilling = True
        request.is_running = True
        self._adapters.enter(request)
        self._running.append(request)
        self.version += 1
        if request.admitted_ps == NEVER:
            request.admitted_ps = self.now_ps
            request.cached_tokens = cached
        draft.tokens[request] = new
        draft.budget -= new
        draft.admitted.append(request.row)
        return True

    def _launch(self, draft: _Draft) -> _Step:
        """Count the tokens as computed, mark the requests that sample, and put the step behind those in flight.

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
                known = max(request.high_water_tokens, request.lost_tokens)
                request.recomputed_tokens += max(0, min(known, before + new) - before)
            else:
                decodes += 1
                context_tokens += before
            request.computed_tokens += new
            samples = request.lacking_tokens == 0
            if samples:
                self.version += request.is_prefilling
                request.is_prefilling = False
                request.placeholders += self._rules.async_scheduling
            shares.append(_StepShare(request, samples, request.preemptions))
        duration_ps = self._step_time.mixed_step(
            decodes, context_tokens, [chunk[1:] for chunk in chunks], sum(share.samples for share in shares)
        )
        duration_ps += self._adapters.loading_ps()
        started_ps = self._in_flight[-1].ends_ps if self._in_flight else self.now_ps
        if self._observer is not None:
            record = StepRecord(
                started_ps=started_ps,
                duration_ps=duration_ps,
                decodes=decodes,
                context_tokens=context_tokens,
                chunks=tuple(chunks),
                preempted=tuple(self._victims),
                admitted=tuple(draft.admitted),
                blocks_free=self._memory.free,
            )
            self._observer.on_step(record)
        self._victims.clear()
        return _Step(started_ps + duration_ps, shares)

    # --------------------------------------------------------- end of a step

    def _deliver_token(self, request: ReferenceRequest) -> None:
        request.produced_tokens += 1
        if request.is_running and self._rules.async_scheduling:
            # Outputs become known only now, so blocks they fill are named only now
            # (`AsyncScheduler._update_request_with_output`).
            self._memory.name_full_blocks(request, request.computed_tokens - request.placeholders)
        if request.produced_tokens == 1:
            request.first_token_ps = self.now_ps
            self._scheduler.first_token(request, self._now)
        else:
            request.gap_ps = self.now_ps - request.last_token_ps
        request.last_token_ps = self.now_ps
        if request.produced_tokens == self._inside[request]:
            self._end(request)

    def _end(self, request: ReferenceRequest) -> None:
        del self._inside[request]
        request.has_ended = True
        request.ended_ps = self.now_ps
        if request.is_running:
            self._vacate(request)
        else:
            self._scheduler.queue.remove(request.id)  # its last token was in flight when it was preempted
        self._scheduler.complete(request, self._now)

    # ----------------------------------------------------- for the policies

    @property
    def size(self) -> int:
        """Requests that run (`BatchView.size`)."""
        return len(self._running)

    def running(self) -> Sequence[RequestView]:
        """The requests that run, in order of admission (`BatchView.running`)."""
        return self._running
