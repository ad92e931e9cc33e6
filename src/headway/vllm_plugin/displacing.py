"""Displacing: a waiting request takes the place of running ones of lower priority, by `scheduling.displacement`.

What is displaced is preempted between two steps, as vLLM itself preempts, and waits outside the order until the next
scan: the request that it made room for is admitted in this one.
"""

from __future__ import annotations

from collections.abc import Iterator

from headway.domain.request import Request
from headway.scheduling.displacement import HEADS_MAX, Displacement, DisplaceRules, Room, Running, Waiting
from headway.vllm_plugin import vllm_adapter as vllm
from headway.vllm_plugin.fallback import FallbackScheduler
from headway.vllm_plugin.plugin_metrics import PluginMetrics
from headway.vllm_plugin.policy_queue import PolicyQueue
from headway.vllm_plugin.request_book import RequestBook
from headway.vllm_plugin.request_entries import Entry
from headway.vllm_plugin.step_meter import StepMeter
from headway.vllm_plugin.vllm_adapter import VllmAdapter


class Displacing:
    """One per engine; `displacement` is to hear every event.

    Raises ValueError, one sentence, where this vLLM cannot preempt between two steps.
    """

    def __init__(self, rules: DisplaceRules, engine: VllmAdapter, meter: StepMeter) -> None:
        if not engine.can_preempt:
            raise ValueError(
                "headway: with asynchronous scheduling this vLLM cannot preempt a request between two steps: leave "
                "displace out, start it with --no-async-scheduling, or take a newer vLLM (0.28 can)"
            )
        self._engine = engine
        self._meter = meter
        self.displacement = Displacement(rules, meter.step_ps)

    def before_step(
        self, policies: FallbackScheduler, book: RequestBook, queue: PolicyQueue, metrics: PluginMetrics
    ) -> None:
        """Preempt the requests that make room for the step that begins; after its limits are set."""
        if not (policies.in_force and self._meter.is_known and self._engine.running and queue.queued()):
            return
        heads = policies.online_heads(queue.now, HEADS_MAX)
        if not heads:
            return
        running = sorted([book.entries[vllm.request_id(one)] for one in self._engine.running], key=_admission)
        if any(entry.view.is_offline for entry in running):
            return  # it gives way by itself
        views = [self._view(entry, book) for entry in running]
        for request in self.displacement.plan(
            self._needs(heads, book), views, self._room(views, book), queue.now, policies.victim
        ):
            metrics.count("displaced")
            queue.displace(book.entries[request.id])

    def _needs(self, heads: list[Request], book: RequestBook) -> Iterator[Waiting]:
        for head in heads:
            yield Waiting(head, *self._engine.admission_needs(book.entries[head.id].request))

    def _view(self, entry: Entry, book: RequestBook) -> Running:
        engine, request, size = self._engine, entry.request, self._engine.block_tokens
        computed, lacking = vllm.computed_tokens(request), 0
        if not vllm.is_ending(request):
            lacking = vllm.lacking_tokens(request)
        wanted = min(lacking, engine.threshold or lacking) if entry.id in book.batch.prefilling else lacking
        blocks = -(-(computed + min(lacking, engine.own_token_budget)) // size)
        return Running(entry.refresh(), computed, wanted, blocks)

    def _room(self, running: list[Running], book: RequestBook) -> Room:
        engine, load = self._engine, book.batch.load()
        growth = sum([one.blocks - -(-one.computed_tokens // engine.block_tokens) for one in running])
        return Room(
            engine.seats - len(running),
            engine.blocks_to_spare - growth,
            engine.token_budget - sum([one.step_tokens for one in running]),
            engine.own_token_budget,
            load.decodes,
            load.context_tokens,
        )


def _admission(entry: Entry) -> int:
    return entry.admission
