"""Scheduler hooks: what the plug-in does before and after each call of vLLM's scheduler.

`scheduler_mixin` calls the hooks; they call the parts that are made in `SchedulerHooks.__init__`, in this order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from headway.domain.request import RequestView
from headway.policies.contracts import BackfillingAdmission
from headway.scheduling.harm_watch import SECONDS_BETWEEN_CHECKS
from headway.scheduling.scheduler import Policies
from headway.twin.look_messages import EngineFacts
from headway.twin.traffic_window import PREFIX_BLOCK_TOKENS
from headway.vllm_plugin import vllm_adapter as vllm
from headway.vllm_plugin.batch_control import BatchControl
from headway.vllm_plugin.block_sharing import BlockSharing
from headway.vllm_plugin.config import PluginConfig
from headway.vllm_plugin.displacing import Displacing
from headway.vllm_plugin.fallback import FallbackScheduler
from headway.vllm_plugin.harm_guard import HarmGuard
from headway.vllm_plugin.offline_steps import OfflineSteps
from headway.vllm_plugin.plugin_metrics import PluginMetrics
from headway.vllm_plugin.plugin_twin import PluginTwin
from headway.vllm_plugin.policy_guard import PolicyTimer
from headway.vllm_plugin.policy_queue import PolicyQueue
from headway.vllm_plugin.policy_state import PolicyState
from headway.vllm_plugin.prefix_hits import PrefixHits
from headway.vllm_plugin.publishing import Publisher
from headway.vllm_plugin.reporting import Reporter
from headway.vllm_plugin.request_book import RequestBook
from headway.vllm_plugin.request_entries import Entry, Place
from headway.vllm_plugin.step_meter import StepMeter
from headway.vllm_plugin.vllm_adapter import VllmAdapter, VllmRequest
from headway.vllm_plugin.xargs_hints import HintedLengths


class SchedulerHooks:
    """One engine's policies, queue and books. `clock` may be replaced (virtual time)."""

    def __init__(
        self,
        config: PluginConfig,
        engine: VllmAdapter,
        publisher: Publisher,
        engine_name: str,
        queue_class: type[PolicyQueue] = PolicyQueue,
        state_file: Path | None = None,
    ) -> None:
        """Raises ValueError, one sentence, where the policies do not work with this engine or cannot be tuned."""
        chosen = config.policies()
        _refuse_backfilling_of_mixed_blocks(config, chosen, engine)
        hinted = HintedLengths(chosen.prediction) if config.hints else None
        looks_up = config.prefix_hits and engine.caches_prefixes
        self.clock: Callable[[], float] = time.monotonic
        self.config = config
        self.engine = engine
        self.metrics = PluginMetrics(config.ordering, engine_name)
        self.timer = PolicyTimer(config.guard, time.perf_counter, time.thread_time)
        self.learned = PolicyState(config, chosen, state_file)
        self.twin = PluginTwin(config, self._engine_facts, self._prefix_of)
        self.meter = StepMeter(engine)
        self.meter.measures = config.tuning == "prefill-budget" or config.displace is not None
        self.displacing = None if config.displace is None else Displacing(config.displace, engine, self.meter)
        displacement = [] if self.displacing is None else [self.displacing.displacement]
        self.policies = FallbackScheduler(
            chosen if hinted is None else replace(chosen, prediction=hinted),
            self.timer,
            self.metrics.policy_fault,
            (*self.learned.listeners, *self.twin.listeners, *displacement),
        )
        self.harm = HarmGuard(config, self.policies, self.metrics)
        self.report = Reporter(config, self.policies, self.metrics, publisher)
        self.prefix_hits = PrefixHits(engine.cached_tokens, time.perf_counter) if looks_up else None
        self.book = RequestBook(
            hinted=hinted, prefix_hits=self.prefix_hits, comparison=self.harm.comparison, report=self.report
        )
        self.queue = queue_class(engine, self.policies, self.book, time.perf_counter)
        self.control = BatchControl(config, engine, self.policies, self.book, self.queue, self.metrics, self.meter)
        self.offline = OfflineSteps(config.offline, engine, self.policies, self.book, self.metrics, self.meter)
        self.queue.offline = self.offline
        self.sharing: BlockSharing | None = None
        self._prepared_seconds = 0.0  # before the scan of this step
        self._second_ends = float("-inf")
        self._published_at = float("-inf")

    def __repr__(self) -> str:
        return f"SchedulerHooks({self.report.order}, {self.queue!r})"

    # around vLLM's calls --------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Before anything happens to requests between two steps: read the clock."""
        self.queue.tick(self.clock())

    def before_schedule(self) -> None:
        """Before vLLM scans: read the clock once, judge and retune the policies, set limits and victims, make room."""
        began = time.perf_counter()
        now = self.clock()
        if self.prefix_hits is not None:
            self.prefix_hits.begin_step()
        self.queue.begin_scan(now)
        if now >= self._second_ends:
            self._second_ends = now + SECONDS_BETWEEN_CHECKS
            self.report.begin_second()
            self.harm.check(now)
            self.twin.follow(self.policies, now)
        if (values := self.learned.wanted()) is not None:
            self.policies.retune(values)
        self.control.before_step(now)
        if self.displacing is not None:
            self.displacing.before_step(self.policies, self.book, self.queue, self.metrics)
        self.offline.before_step(now)
        self.control.preempted = 0  # from here on those that keep vLLM from admitting
        self._prepared_seconds = time.perf_counter() - began

    def after_schedule(self, given: Mapping[str, int]) -> None:
        """After vLLM scanned and gave out these tokens, by request: judge the policies' time, count, publish."""
        began = time.perf_counter()
        now, tokens = self.queue.now, sum(given.values())
        self.offline.after_scan()
        self.meter.composed(given)
        self.queue.end_scan()
        self.book.batch.composed()
        self.policies.end_step()
        self.learned.stepped(now)
        self.report.explanations.clocks.scanned(self._stop_reason(tokens), now)
        self.control.after_step()
        self.metrics.count("steps")
        if self.queue.held:
            self.metrics.count("admissions_held")
        judged_seconds = time.perf_counter() - began
        self.metrics.decisions.observe(self._prepared_seconds + self.queue.seconds + judged_seconds)
        idle = not self.book.entries
        if now - self._published_at >= self.config.metrics_seconds or idle:
            self._published_at = now
            self.publish()

    def after_update(self, tokens: int) -> None:
        """After a step came back that had computed so many tokens."""
        self.tick()
        if tokens:
            self.meter.step_ended(self.queue.now)
        for entry in self.book.batch.end_step(had_tokens=tokens > 0):
            self._report_first_token(entry)

    def before_preempt(self, request: VllmRequest) -> None:
        """Before vLLM takes a running request's blocks."""
        self.control.preempt(request)

    def turn_ended(self, request: VllmRequest) -> None:
        """A streaming session has answered, and its next input is awaited."""
        entry = self.book.get(request)
        if entry is not None and entry.place is Place.RUNNING:
            self.tick()
            self.queue.end_turn(entry)

    def next_turn(self, request: VllmRequest) -> None:
        """A streaming session has got its next input."""
        entry = self.book.get(request)
        if entry is not None and entry.turn_over:
            self.tick()
            self.queue.next_turn(request)

    def finished(self, request: VllmRequest) -> None:
        """A request finished or its client left; its status says which."""
        entry = self.book.get(request)
        if entry is None:
            return
        self.tick()
        now = self.queue.now
        self.queue.forget(entry)
        self.book.remove(entry, now)
        if entry.turn_over:
            return
        self._report_first_token(entry)  # vLLM frees a request that ends in its first step before `after_update`
        if vllm.was_aborted(request):
            self.policies.cancel(entry.refresh(), now)
        else:
            self.policies.complete(entry.refresh(), now)

    # what operators ask for -----------------------------------------------------------------------------------------

    def explain(self, request_id: str) -> dict[str, object] | None:
        """Why a request waits or waited; None if it is unknown. Other threads may call it."""
        return self.report.explanations.explain(request_id, self.book.entries, self.report.order, self.clock())

    def publish(self) -> None:
        """Bring the metrics up to date and hand them over to be written."""
        metrics = self.metrics
        metrics.show("waiting", self.queue.queued(), 'state="queued"')
        metrics.show("waiting", self.queue.parked, 'state="parked"')
        metrics.show("lanes", self.policies.lanes)
        metrics.show("offline_waiting", self.policies.offline_waiting)
        metrics.show("stepped_back", float(not self.policies.in_force))
        metrics.total("backfilled", self.queue.passed)
        for kind, seconds in self.timer.total_seconds.items():
            metrics.total("policy_seconds", seconds, f'kind="{kind}"')
        if self.prefix_hits is not None:
            metrics.total("prefix_lookups", self.prefix_hits.lookups)
            metrics.total("prefix_hit_tokens", self.prefix_hits.hit_tokens)
        if self.sharing is not None:
            metrics.show("fusion_on", float(self.sharing.on))
            metrics.show("fusion_shared_entries", self.sharing.shared_entries)
            metrics.total("fusion_compared_blocks", self.sharing.compared_blocks)
            metrics.total("fusion_fused_blocks", self.sharing.fused_blocks)
            metrics.total("fusion_freed_blocks", self.sharing.freed_blocks)
        self.report.publish()

    # ----------------------------------------------------------------------------------------------------------------

    def _report_first_token(self, entry: Entry) -> None:
        if not entry.first_token_came and vllm.output_tokens(entry.request):
            entry.first_token_came = True
            self.policies.first_token(entry.refresh(), self.queue.now)

    def _engine_facts(self) -> EngineFacts:
        engine, memory = self.engine, self.engine.memory()
        tokens = memory.blocks_total * memory.block_tokens
        return EngineFacts(1, engine.seats, tokens, engine.token_budget, engine.caches_prefixes, chooses_victims=True)

    def _prefix_of(self, view: RequestView) -> list[int]:
        """Hashes of a prompt's blocks as vLLM has them, of every so many that make 512 tokens."""
        entry = self.book.entries.get(view.id)
        every = max(1, PREFIX_BLOCK_TOKENS // self.engine.block_tokens)
        hashes = () if entry is None else vllm.block_hashes_to_look_up(entry.request)
        return [hash(one) for one in hashes[every - 1 :: every]]

    def _stop_reason(self, tokens: int) -> str:
        """Why the scan admitted no more: one of `wait_clocks.REASONS`."""
        if not self.queue.queued():
            return "idle"
        if self.engine.paused:
            return "paused"
        if self.queue.held:
            return "held"
        if self.control.preempted:
            return "preempting"
        if self.engine.running_count() >= self.engine.seats:
            return "seats"
        return "tokens" if tokens >= self.engine.token_budget else "blocks"


def _refuse_backfilling_of_mixed_blocks(config: PluginConfig, chosen: Policies, engine: VllmAdapter) -> None:
    if isinstance(chosen.admission, BackfillingAdmission) and not engine.full_attention:
        raise ValueError(
            f"headway: admission {config.admission} has to know which requests' blocks fit, and this model has several "
            "kinds of KV blocks, or drops some on the way: choose another admission policy"
        )
