"""Batch control: sets, before each step, what vLLM's own scan obeys: its limits and the order of victims."""

from __future__ import annotations

from headway.scheduling.prefill_budget import PrefillLoad, StepLimits, prefill_limits
from headway.scheduling.self_tuned_threshold import StepFacts, self_tuned_threshold
from headway.vllm_plugin import vllm_adapter as vllm
from headway.vllm_plugin.config import PluginConfig
from headway.vllm_plugin.fallback import FallbackScheduler
from headway.vllm_plugin.plugin_metrics import PluginMetrics
from headway.vllm_plugin.policy_queue import PolicyQueue
from headway.vllm_plugin.request_book import RequestBook
from headway.vllm_plugin.step_meter import StepMeter
from headway.vllm_plugin.victims import blocks_wanted, with_victims_last
from headway.vllm_plugin.vllm_adapter import VllmAdapter, VllmRequest

_VICTIMS_NAMED = 4  # per step; vLLM seldom needs a second


class BatchControl:
    """Long-prefill threshold and token budget (where `tuning` is on), and which requests are preempted first."""

    def __init__(
        self,
        config: PluginConfig,
        engine: VllmAdapter,
        policies: FallbackScheduler,
        book: RequestBook,
        queue: PolicyQueue,
        metrics: PluginMetrics,
        meter: StepMeter,
    ) -> None:
        """Raises ValueError, one sentence, where this engine's limits cannot be moved as is wanted."""
        self._engine = engine
        self._policies = policies
        self._book = book
        self._queue = queue
        self._metrics = metrics
        self._meter = meter
        self._tuning = config.tuning
        self._tpot_seconds = config.tpot_seconds
        self._own = StepLimits(engine.own_threshold, engine.own_token_budget)
        if config.tuning == "prefill-budget" and not engine.cuts_prompts:
            raise ValueError(
                'headway: tuning "prefill-budget" cuts prompts into pieces: leave vLLM\'s chunked prefill on'
            )
        self.preempted = 0  # preemptions in this step
        self._reordered = False

    def before_step(self, now: float) -> None:
        """Set the limits and put victims last for the step that begins."""
        if self._tuning != "off":
            limits = self._limits() if self._policies.in_force else self._own
            self._engine.set_threshold(limits.threshold)
            self._engine.set_token_budget(limits.token_budget)
            self._metrics.show("long_prefill_threshold", limits.threshold)
            if self._tuning == "prefill-budget":
                self._metrics.show("step_token_budget", limits.token_budget)
        self.preempted = 0
        if self._policies.has_offline or (self._policies.chooses_victims and not self._policies.suspended):
            self._order_victims(now)

    def after_step(self) -> None:
        """vLLM has scanned: its own token budget again, which others read."""
        if self._tuning == "prefill-budget":
            self._engine.set_token_budget(self._own.token_budget)

    def preempt(self, request: VllmRequest) -> None:
        """Count a preemption: vLLM is about to take a running request's blocks."""
        tokens = vllm.computed_tokens(request)
        self.preempted += 1
        self._metrics.count("preemptions")
        self._metrics.count("preempted_tokens", tokens)

    def _limits(self) -> StepLimits:
        if self._tuning == "self-tuned":
            return self._own._replace(threshold=self._threshold())
        return self._prefill_limits() if self._meter.is_known else self._own

    def _prefill_limits(self) -> StepLimits:
        """The limits of a step whose prompt tokens have a budget; vLLM's own where no prompt can get any."""
        engine, load = self._engine, self._book.batch.load()
        head = self._policies.head(self._queue.now) if engine.running_count() < engine.seats else None
        if head is None and not load.prefill_left:
            return self._own
        before = load.prefilled_tokens + (0 if head is None else head.cached_prompt_tokens)
        inside = PrefillLoad(
            self._own, load.decodes, load.decode_tokens, load.context_tokens, load.prefill_left, before
        )
        return prefill_limits(inside, self._tpot_seconds, self._meter.step_ps)

    def _threshold(self) -> int:
        engine, running = self._engine, self._engine.running_count()
        prefilling = [entry.request for entry in self._book.batch.prefilling.values()]
        left = [vllm.total_tokens(request) - vllm.computed_tokens(request) for request in prefilling]
        prefill_left = [tokens for tokens in left if tokens > 0]
        head = self._policies.head(self._queue.now) if prefill_left else None
        if head is None:
            return engine.own_threshold
        facts = StepFacts(
            engine.own_token_budget,
            seats_free=engine.seats - running,
            decoding=running - len(prefill_left),
            prefill_left=prefill_left,
            head=self._book.entries[head.id].refresh(),  # a preempted request's last token may have come since
            memory=engine.memory(),
        )
        return self_tuned_threshold(facts, engine.own_threshold)

    def _order_victims(self, now: float) -> None:
        """Put victims at the end of vLLM's list when this step may run out of blocks; else restore its order."""
        engine, running = self._engine, self._engine.running
        tight = self._runs_short(running)
        if not tight and not self._reordered:
            return
        entries = self._book.entries
        in_order = sorted([entries[vllm.request_id(r)] for r in running], key=lambda entry: entry.admission)
        if tight:
            by_view = {id(entry.refresh()): entry for entry in in_order}
            views = [entry.view for entry in in_order]
            views = with_victims_last(views, _VICTIMS_NAMED, lambda some: self._policies.victim(some, now))
            in_order = [by_view[id(view)] for view in views]
        engine.reorder_running([entry.request for entry in in_order])
        self._reordered = tight

    def _runs_short(self, running: list[VllmRequest]) -> bool:
        """Whether this step may want more blocks than are free."""
        engine, memory = self._engine, self._engine.memory()
        if len(running) <= 1 or memory.blocks_free >= len(running) + engine.token_budget // memory.block_tokens + 1:
            return False
        progress = [(vllm.computed_tokens(request), vllm.total_tokens(request)) for request in running]
        return blocks_wanted(progress, engine.token_budget, memory.block_tokens) > memory.blocks_free
