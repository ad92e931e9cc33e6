"""Offline steps: makes offline requests give way inside vLLM, before each step, by `scheduling.offline_gate`.

vLLM's own means are used: a request that has to go is preempted as vLLM preempts; a prompt that has to wait is left out
of its running list for one scan, as it is where the token budget ends before it; the long-prefill threshold cuts the
prompt's piece. What a step takes is learned from the steps themselves (`step_meter`), once there are offline requests.
"""

from __future__ import annotations

from headway.domain.request import Request
from headway.scheduling.offline_gate import OfflineDecode, OfflineGate, OfflineRules, StepLoad
from headway.vllm_plugin import vllm_adapter as vllm
from headway.vllm_plugin.fallback import FallbackScheduler
from headway.vllm_plugin.plugin_metrics import PluginMetrics
from headway.vllm_plugin.request_book import RequestBook
from headway.vllm_plugin.request_entries import Entry
from headway.vllm_plugin.step_meter import StepMeter
from headway.vllm_plugin.victims import blocks_wanted
from headway.vllm_plugin.vllm_adapter import VllmAdapter, VllmRequest

_HEADS_MAX = 8
"""Online requests for which room is made before one step, at most."""
_PICOSECONDS = 1e12


class OfflineSteps:
    """One per engine. `displaced` are the requests that had to go before this step: none of them joins it again."""

    def __init__(
        self,
        rules: OfflineRules,
        engine: VllmAdapter,
        policies: FallbackScheduler,
        book: RequestBook,
        metrics: PluginMetrics,
        meter: StepMeter,
    ) -> None:
        self._engine = engine
        self._policies = policies
        self._book = book
        self._metrics = metrics
        self._meter = meter
        self.displaced: set[str] = set()
        self._paused: list[VllmRequest] = []
        self._seats = 0  # while some are paused, how many there are
        self._changes_limits = False
        policies.use_gate(OfflineGate(rules, self._step_ps, engine.token_budget, engine.seats))

    def before_step(self, now: float) -> None:
        """Preempt, pause and limit offline requests for the step that begins; after the threshold is set."""
        self.displaced.clear()
        if not self._policies.has_offline:
            return
        self._meter.measures = True
        entries = [self._book.entries[vllm.request_id(request)] for request in self._engine.running]
        going = sorted([entry for entry in entries if entry.view.is_offline], key=lambda entry: entry.admission)
        online = [entry for entry in entries if not entry.view.is_offline]
        while going and self._engine.can_preempt and self._lacks_room(online, going, now):
            self._displace(going.pop())
        decodes = [entry for entry in going if not _is_prefilling(entry)]
        prompts = [entry for entry in going if _is_prefilling(entry)]
        head = self._policies.head(now)
        decoding = [vllm.computed_tokens(entry.request) for entry in online if not _is_prefilling(entry)]
        before = sum([vllm.computed_tokens(entry.request) for entry in prompts])
        load = StepLoad(
            len(decoding),
            sum(decoding),
            len(decoding) < len(online),
            head is not None and not head.is_offline,
            [OfflineDecode(entry.refresh(), vllm.computed_tokens(entry.request)) for entry in decodes],
            [entry.refresh() for entry in prompts],
            before + (0 if head is None or not head.is_offline else head.cached_prompt_tokens),
            head is not None and head.is_offline,
            self._book.batch.version,
        )
        plan = self._policies.plan_offline(load)
        by_id = {entry.id: entry for entry in decodes}
        for request in plan.displaced if self._engine.can_preempt else ():
            self._displace(by_id[str(request.id)])
        self._limit(plan.chunk_tokens, load, prompts)

    def hold(self, request: Request, version: int) -> bool:
        """Whether an offline head may not join this step."""
        if request.id in self.displaced:
            return True
        return bool(self._engine.running_count()) and self._policies.hold_offline(request, version)

    def after_scan(self) -> None:
        """vLLM has scanned: undo what was set for this step."""
        engine = self._engine
        if self._paused:
            engine.reorder_running([*engine.running, *self._paused])
            engine.set_seats(self._seats)
            self._paused = []
        if self._changes_limits:
            self._changes_limits = False
            engine.set_token_budget(engine.own_token_budget)
            engine.set_threshold(engine.own_threshold)

    def _limit(self, chunk_tokens: int, load: StepLoad, prompts: list[Entry]) -> None:
        """Have offline prompts wait this step, or get at most so many tokens each."""
        engine = self._engine
        if prompts and not chunk_tokens:
            self._paused = [entry.request for entry in prompts]
            engine.reorder_running([one for one in engine.running if one not in self._paused])
            self._seats = engine.seats
            engine.set_seats(self._seats - len(self._paused))  # theirs are taken
        elif chunk_tokens and (prompts or load.is_offline_waiting):
            self._changes_limits = True
            threshold = engine.threshold
            engine.set_threshold(min(chunk_tokens, threshold) if threshold else chunk_tokens)
            if engine.running_count() <= 1:  # vLLM sets no threshold to a request that is alone
                decodes = load.online_decodes + len(load.offline_decodes)
                engine.set_token_budget(min(engine.token_budget, chunk_tokens + decodes))

    def _lacks_room(self, online: list[Entry], offline: list[Entry], now: float) -> bool:
        """Whether the online requests that this step would admit find no seats or no blocks."""
        heads = self._policies.online_heads(now, _HEADS_MAX)
        if not heads:
            return False
        engine = self._engine
        growing = [*online, *[entry for entry in offline if not _is_prefilling(entry)]]
        progress = [(vllm.computed_tokens(one.request), vllm.total_tokens(one.request)) for one in growing]
        blocks = engine.blocks_to_spare - blocks_wanted(progress, self._engine.own_token_budget, engine.block_tokens)
        seats, tokens_left = engine.seats - engine.running_count(), self._engine.own_token_budget
        for head in heads:
            tokens, needed = engine.admission_needs(self._book.entries[head.id].request)
            seats -= 1
            blocks -= needed
            tokens_left -= tokens
            if seats < 0 or blocks < 0:
                return True
            if tokens_left <= 0:
                break
        return False

    def _displace(self, entry: Entry) -> None:
        self.displaced.add(entry.id)
        self._metrics.count("offline_displaced")
        self._engine.preempt(entry.request)

    def _step_ps(self, decodes: int, context_tokens: int, prompts: int, tokens: int, before: int) -> int:
        if not self._meter.is_known:  # nothing offline beside online requests, and short pieces, until it is
            return int((0.001 + tokens * 2e-4 + decodes) * _PICOSECONDS)
        return self._meter.step_ps(decodes, context_tokens, prompts, tokens, before)


def _is_prefilling(entry: Entry) -> bool:
    """Whether more than its next token lacks; one that is on its way makes this 0."""
    return vllm.total_tokens(entry.request) - vllm.computed_tokens(entry.request) > 1
