"""What happens around each of vLLM's calls: the books are kept here, and every decision is asked for from here.

Knows vLLM only through `VllmAdapter`; `scheduler_mixin` forwards vLLM's calls to it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from headway.domain.request import uncached_prefill_tokens
from headway.policies.contracts import BackfillingAdmission
from headway.scheduling.scheduler import Policies
from headway.vllm_plugin.config import PluginConfig
from headway.vllm_plugin.fallback import FallbackScheduler
from headway.vllm_plugin.harm_judge import HarmJudge, WaitComparison
from headway.vllm_plugin.plugin_metrics import PluginMetrics
from headway.vllm_plugin.policy_guard import PolicyFault, PolicyTimer
from headway.vllm_plugin.policy_queue import PolicyQueue
from headway.vllm_plugin.policy_state import PolicyState
from headway.vllm_plugin.prefix_hits import PrefixHits
from headway.vllm_plugin.publishing import Publisher
from headway.vllm_plugin.request_entries import EngineBatch, Entry, Place, VllmRequest, view_of
from headway.vllm_plugin.self_tuned_limits import SelfTunedLimits, StepFacts
from headway.vllm_plugin.victims import blocks_wanted, with_victims_last
from headway.vllm_plugin.vllm_adapter import VllmAdapter
from headway.vllm_plugin.wait_explanations import WaitExplanations
from headway.vllm_plugin.xargs_hints import NO_HINTS, HintedLengths, read_hints

logger = logging.getLogger("vllm.headway")  # below vLLM's own, so that its handlers and levels hold

_VICTIMS_NAMED = 4  # per step; vLLM seldom needs a second
_EXPLAINED_PER_SECOND = 10


class SchedulerHooks:
    """One engine's policies, queue, guard and books. `clock` may be replaced (virtual time)."""

    def __init__(
        self,
        config: PluginConfig,
        engine: VllmAdapter,
        publisher: Publisher,
        engine_name: str,
        queue_class: type[PolicyQueue] = PolicyQueue,
        state_file: Path | None = None,
    ) -> None:
        self.config = config
        self.clock: Callable[[], float] = time.monotonic
        self._engine = engine
        self._publisher = publisher
        self.metrics = PluginMetrics(config.ordering, engine_name)
        self._watch = PolicyTimer(config.guard, time.perf_counter, time.thread_time)
        self._hinted: HintedLengths | None = None
        self.charge = self._in_charge(config.policies(), state_file)
        self.batch = EngineBatch()
        self.entries: dict[str, Entry] = {}
        self._young: dict[str, Entry] = {}  # admitted, and no token came since
        self._hits = PrefixHits(engine.cached_tokens, time.perf_counter) if self._looks_up() else None
        self._shadow = WaitComparison()
        self._judge = HarmJudge(config.guard.harm_ratio, config.guard.harm_slack_seconds, config.guard.harm_seconds)
        self._tuned = SelfTunedLimits(engine.seats, engine.own_threshold) if config.tuning == "self-tuned" else None
        self.stories = WaitExplanations(self.entries, self._order, self._now)
        self._arrivals = 0
        self._preempted = 0  # in this step
        self._lost_tokens = 0  # by preemptions since the knobs were turned
        self._computed_tokens = 0  # in the step before
        self._reordered = False
        self._back_until = 0.0
        self._second_ends = float("-inf")
        self._explained = 0
        self._published_at = float("-inf")
        self.queue = self._waiting(queue_class)

    # around vLLM's calls --------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Before anything happens to requests between two steps."""
        self.queue.now = self.clock()

    def before_schedule(self) -> None:
        """Before vLLM scans: time is read once, victims and knobs are set."""
        began = time.perf_counter()
        now = self.clock()
        self.queue.seconds = 0.0
        if self._hits is not None:
            self._hits.begin_step()
        self.queue.begin_scan(now)
        if (values := self.learning.wanted()) is not None:
            self.charge.retune(values)
        self._turn_knobs()
        self._preempted = 0
        self._order_victims(now)
        self.queue.seconds += time.perf_counter() - began

    def after_schedule(self, tokens: int) -> None:
        """After vLLM scanned and gave out so many tokens."""
        began = time.perf_counter()
        now = self.queue.now
        self._computed_tokens = tokens
        self.queue.end_scan()
        self.charge.end_step()
        self.learning.stepped(now)
        self.stories.clocks.scanned(self._why_nobody_more(tokens), now)
        self.metrics.count("steps")
        if self.queue.held:
            self.metrics.count("admissions_held")
        if now >= self._second_ends:
            self._second_ends, self._explained = now + 1.0, 0
            self._judge_harm(now)
        self.metrics.decisions.observe(self.queue.seconds + time.perf_counter() - began)
        idle = not self.entries
        if now - self._published_at >= self.config.metrics_seconds or idle:
            self._published_at = now
            self.publish()

    def after_update(self) -> None:
        """After a step's tokens came back."""
        self.tick()
        self.batch.decode_steps += 1
        if not self._young:
            return
        for request_id, entry in list(self._young.items()):
            if entry.request.num_output_tokens > entry.produced_at_admission:
                del self._young[request_id]
                self.batch.version += 1
                self._tell_first_token(entry)

    def _tell_first_token(self, entry: Entry) -> None:
        if not entry.first_token_came and entry.request.num_output_tokens:
            entry.first_token_came = True
            self.charge.first_token(entry.refresh(), self.queue.now)

    def preempting(self, request: VllmRequest) -> None:
        """Before vLLM takes a running request's blocks."""
        self._preempted += 1
        self._lost_tokens += request.num_computed_tokens
        self._young.pop(request.request_id, None)
        self.metrics.count("preemptions")
        self.metrics.count("recomputed_tokens", request.num_computed_tokens)

    def turn_ended(self, request: VllmRequest) -> None:
        """A streaming session has answered, and its next input is awaited."""
        entry = self.entries.get(request.request_id)
        if entry is not None and entry.place is Place.RUNNING:
            self.tick()
            self._young.pop(request.request_id, None)
            self.queue.end_turn(entry)

    def next_turn(self, request: VllmRequest) -> None:
        """A streaming session has got its next input."""
        entry = self.entries.get(request.request_id)
        if entry is not None and entry.turn_over:
            self.tick()
            self.queue.next_turn(request)

    def ended(self, request: VllmRequest) -> None:
        """A request finished or its client left; its status says which."""
        entry = self.entries.get(request.request_id)
        if entry is None:
            return
        self.tick()
        now = self.queue.now
        self.queue.forget(request)
        self._young.pop(request.request_id, None)
        del self.entries[request.request_id]
        entry.place = Place.ENDED
        if entry.turn_over:
            return
        if entry.admission < 0:
            self._shadow.leave(entry.arrival, now)
        self._tell_first_token(entry)  # vLLM frees who ends in its first step before the step's tokens are told of
        view = entry.refresh()
        if request.status.name == "FINISHED_ABORTED":
            self.charge.left(view, now)
        else:
            self.charge.complete(view, now)

    def publish(self) -> None:
        """Hand the metrics out."""
        metrics = self.metrics
        metrics.show("waiting", self.queue.queued(), 'state="queued"')
        metrics.show("waiting", self.queue.parked, 'state="parked"')
        metrics.show("lanes", self.charge.lanes)
        metrics.counters["backfilled", ""] = self.queue.passed
        metrics.show("stepped_back", float(self.charge.stepped_back or self.charge.put_aside))
        for kind, seconds in self._watch.total_seconds.items():
            metrics.counters["policy_seconds", f'kind="{kind}"'] = seconds
        if self._hits is not None:
            metrics.counters["prefix_lookups", ""] = self._hits.lookups
            metrics.counters["prefix_hit_tokens", ""] = self._hits.hit_tokens
        self._publisher.metrics(metrics.text())

    # ----------------------------------------------------------------------------------------------------------------

    def _in_charge(self, policies: Policies, state_file: Path | None) -> FallbackScheduler:
        """The policies under guard, with what they had learned and who listens to hints."""
        config = self.config
        if isinstance(policies.admission, BackfillingAdmission) and not self._engine.full_attention:
            raise ValueError(
                f"headway: admission {config.admission} has to know whose blocks fit, and this model has several "
                "kinds of KV blocks, or drops some on the way: choose another admission policy"
            )
        self.learning = PolicyState(config, policies, state_file)
        if config.hints:
            self._hinted = HintedLengths(policies.prediction)
            policies = Policies(policies.ordering, policies.admission, policies.preemption, self._hinted)
        return FallbackScheduler(policies, self._watch, self._put_aside, self.learning.listeners)

    def _waiting(self, queue_class: type[PolicyQueue]) -> PolicyQueue:
        engine = self._engine
        return queue_class(
            charge=self.charge,
            batch=self.batch,
            entries=self.entries,
            newcomer=self._newcomer,
            blocked=engine.blocked,
            ready=engine.ready,
            runs=engine.runs,
            fits=engine.fits,
            running=engine.running_count,
            memory=engine.memory,
            refresh=self._refresh,
            admitted=self._admitted,
            timer=time.perf_counter,
        )

    def _newcomer(self, request: VllmRequest) -> Entry:
        now = self.queue.now
        hints = NO_HINTS
        if self.config.hints:
            hints = read_hints(getattr(request.sampling_params, "extra_args", None))
            for name in hints.ignored:
                self.metrics.count("hints_ignored", 1, f'hint="{name}"')
        entry = Entry(request, view_of(request, hints, now), hints, self._arrivals)
        self._arrivals += 1
        self.entries[request.request_id] = entry
        if self._hinted is not None and hints.expected_tokens is not None:
            self._hinted.hint(request.request_id, hints.expected_tokens)
        if self._hits is not None:
            self._hits.arrive(entry, now)
        view = entry.view
        entry.work = max(0, view.prompt_tokens - view.cached_prompt_tokens)
        entry.began = self.stories.clocks.reading(now)
        self._shadow.arrive(entry.arrival, now, entry.work)
        return entry

    def _admitted(self, entry: Entry) -> None:
        now, view = self.queue.now, entry.view
        first = entry.admission < 0
        entry.admission = self.stories.clocks.admit(entry.arrival)
        entry.produced_at_admission = entry.request.num_output_tokens
        self._young[entry.request.request_id] = entry
        if not first:
            return
        waited = now - view.arrived_at
        self._shadow.admit(entry.arrival, view.arrived_at, now, entry.work)
        self.metrics.waited(self._length_class(view.prompt_tokens), waited)
        story = self.stories.admitted(entry, now)
        explained = waited >= self.config.explain_above_seconds and self._explained < _EXPLAINED_PER_SECOND
        if explained or self._publisher.logs_decisions:
            facts = self.stories.facts(story)
            if explained:
                self._explained += 1
                logger.info("headway: request %s %s", story.request_id, facts["why"])
            if self._publisher.logs_decisions:
                self._publisher.decision(json.dumps(facts))

    def _now(self) -> float:
        return self.clock()  # whichever it is then

    def _order(self) -> str:
        return "fcfs" if self.charge.put_aside or self.charge.stepped_back else self.config.ordering

    def _looks_up(self) -> bool:
        return self.config.prefix_hits and self._engine.caches_prefixes

    def _refresh(self, entry: Entry, now: float) -> bool:
        return self._hits is not None and self._hits.refresh(entry, now)

    def _length_class(self, prompt_tokens: int) -> str:
        short, medium = self.config.length_class_tokens
        return "short" if prompt_tokens <= short else "medium" if prompt_tokens <= medium else "long"

    def _order_victims(self, now: float) -> None:
        """Put who should give way at the end of vLLM's list, when this step may need somebody's blocks."""
        if not self.charge.chooses_victims or self.charge.stepped_back:
            return
        engine, running = self._engine, self._engine.running
        memory = engine.memory()
        tight = len(running) > 1 and memory.blocks_free < len(running) + engine.token_budget // memory.block_tokens + 1
        if tight:
            computed = [request.num_computed_tokens for request in running]
            prefill = min(engine.token_budget, sum([r.num_tokens - r.num_computed_tokens for r in running]))
            tight = blocks_wanted(computed, prefill, memory.block_tokens) > memory.blocks_free
        if not tight and not self._reordered:
            return
        entries = self.entries
        in_order = sorted(running, key=lambda request: entries[request.request_id].admission)
        if tight:
            views = {id(entries[r.request_id].refresh()): r for r in in_order}
            ranked = [entries[r.request_id].view for r in in_order]
            ranked = with_victims_last(ranked, _VICTIMS_NAMED, lambda some: self.charge.victim(some, now))
            in_order = [views[id(view)] for view in ranked]
        engine.reorder_running(in_order)
        self._reordered = tight

    def _turn_knobs(self) -> None:
        if self._tuned is None:
            return
        engine, running = self._engine, self._engine.running_count()
        if self.charge.put_aside or self.charge.stepped_back:
            engine.set_threshold(engine.own_threshold)
            engine.set_cap(engine.seats)
            return
        left = [e.request.num_tokens - e.request.num_computed_tokens for e in self._young.values()]
        prefill_left = [tokens for tokens in left if tokens > 0]
        knobs = self._tuned.step(
            StepFacts(
                token_budget=engine.token_budget,
                decoding=running - len(prefill_left),
                prefill_left=prefill_left,
                next_tokens=self._next_short_tokens(),
                seats_free=engine.cap - running,
                waiting=len(self.queue),
                preempted=self._preempted,
                lost_tokens=self._lost_tokens,
                computed_tokens=self._computed_tokens,
            )
        )
        self._lost_tokens = 0
        engine.set_threshold(knobs.long_prefill_threshold)
        engine.set_cap(knobs.active_cap)
        self.metrics.show("long_prefill_threshold", knobs.long_prefill_threshold)
        self.metrics.show("active_cap", knobs.active_cap)

    def _next_short_tokens(self) -> int:
        """What the next in the order has to compute; 0 unless that is at most half a step and its blocks are free."""
        view = self.charge.head(self.queue.now)
        work = 0 if view is None else uncached_prefill_tokens(view)
        memory = self._engine.memory()
        fits = -(-work // memory.block_tokens) <= memory.blocks_free
        return work if fits and work <= self._engine.token_budget // 2 else 0

    def _why_nobody_more(self, tokens: int) -> str:
        if not self.queue.queued():
            return "idle"
        if self._engine.paused:
            return "paused"
        if self.queue.held:
            return "held"
        if self._preempted:
            return "preempting"
        if self._engine.running_count() >= self._engine.cap:
            return "seats"
        return "tokens" if tokens >= self._engine.token_budget else "blocks"

    def _judge_harm(self, now: float) -> None:
        waits = self._shadow.waits(now)
        self.metrics.show("p99_wait_seconds", waits.ours, 'of="ours"')
        self.metrics.show("p99_wait_seconds", waits.fcfs, 'of="fcfs-estimate"')
        charge, guard = self.charge, self.config.guard
        if charge.put_aside or self.config.ordering == "fcfs":
            return
        if charge.stepped_back:
            if now >= self._back_until:
                charge.step_back(False)
                self._shadow.forget()
                logger.warning("headway: the order is %s again", self.config.ordering)
        elif self._judge.harmful(waits, now):
            charge.step_back(True)
            self._judge.reset()
            self._back_until = now + guard.step_back_seconds
            self.metrics.count("step_backs")
            logger.error(
                "headway: p99 wait under %s was %.2f s where first come, first served would have had about %.2f s, for "
                "%g s: serving first come, first served for %g s",
                self.config.ordering, waits.ours, waits.fcfs, guard.harm_seconds, guard.step_back_seconds,
            )  # fmt: skip

    def _put_aside(self, fault: PolicyFault) -> None:
        self.metrics.count("fallbacks", 1, f'reason="{fault.reason}"')
        logger.error(
            "headway: %s. All policies are put aside until the engine restarts; it goes on first come, first served.",
            fault,
        )
