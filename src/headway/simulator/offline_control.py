"""Offline control: makes offline requests give way in both simulated engines, by `scheduling.offline_gate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headway.domain.request import Request
from headway.scheduling.offline_gate import NO_LIMIT, OfflineGate, StepLoad, StepPlan
from headway.scheduling.scheduler import Scheduler
from headway.simulator.rules import EngineRules, PluginRules
from headway.simulator.step_time import StepTime, expected_step_ps

_HEADS_MAX = 8
"""Online requests for which room is made before one step, at most."""


class OfflineControl:
    """One per engine; it gives the scheduler its gate."""

    def __init__(self, plugin: PluginRules, rules: EngineRules, step_time: StepTime, scheduler: Scheduler) -> None:
        self._rules = rules
        self._step_time = step_time
        self._scheduler = scheduler
        scheduler.gate = self._gate = OfflineGate(
            plugin.offline, self._step_ps, rules.max_num_batched_tokens, rules.max_num_seqs
        )

    @property
    def acts(self) -> bool:
        """Whether there is anything to do before a step."""
        return self._scheduler.has_offline

    def lacks_room(
        self, running: int, blocks_free: int, now: float, needs: Callable[[Request], tuple[int, int]]
    ) -> bool:
        """Whether the online requests that a step would admit find no seats or no blocks.

        Args:
            running: requests that run.
            blocks_free: of the KV memory, less the watermark.
            now: seconds.
            needs: the tokens that a waiting request has to compute, and the blocks that its admission needs.
        """
        online = self._scheduler.queue.online
        head = online.head(now)
        if head is None:
            return False
        seats, tokens_left = self._rules.max_num_seqs - running, self._rules.max_num_batched_tokens
        for request in (head, *online.following(now, _HEADS_MAX - 1)):
            tokens, blocks = needs(request)
            seats -= 1
            blocks_free -= blocks
            tokens_left -= min(tokens, self._rules.long_prefill_token_threshold or tokens)
            if seats < 0 or blocks_free < 0:
                return True
            if tokens_left <= 0:
                break
        return False

    def plan(self, load: StepLoad) -> StepPlan:
        """What the step that is composed may do for offline requests; see `OfflineGate.plan`."""
        plan = self._gate.plan(load)
        if plan.chunk_tokens and not self._rules.chunked_prefill:
            return plan._replace(chunk_tokens=NO_LIMIT)
        return plan

    def prompts_before(self, computed: Sequence[int], head: Request | None) -> int:
        """Tokens computed before of the offline prompts, the offline head's cached ones included."""
        return sum(computed) + (0 if head is None or not head.is_offline else head.cached_prompt_tokens)

    def _step_ps(self, decodes: int, context_tokens: int, prompts: int, tokens: int, before: int) -> int:
        return expected_step_ps(self._step_time, decodes, context_tokens, prompts, tokens, before)
