"""Plug-in control: what Headway's vLLM plug-in does around a step, in both simulated engines."""

from __future__ import annotations

from collections.abc import Sequence

from headway.domain.event import Listener
from headway.domain.replica_view import MemoryView
from headway.policies.ordering.fcfs import Fcfs
from headway.scheduling.harm_watch import SECONDS_BETWEEN_CHECKS, HarmWatch
from headway.scheduling.scheduler import Policies, Scheduler
from headway.scheduling.self_tuned_limits import SelfTunedLimits, StepFacts, StepLimits
from headway.simulator.arrivals import FOREVER
from headway.simulator.rules import EngineRules, PluginRules
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS


class PluginControl:
    """Judges harm once a second and moves the limits before each step, as far as the plug-in's rules want it.

    Attributes:
        acts: whether there is anything to do; if not, `own_limits` hold all day.
        own_limits: the engine's own.
        next_check_ps: when the guard judges next.
        listeners: to be told of every event.
    """

    def __init__(self, plugin: PluginRules, rules: EngineRules, policies: Policies) -> None:
        guard = None if isinstance(policies.ordering, Fcfs) else plugin.guard  # first come, first served harms nothing
        self._harm = None if guard is None else HarmWatch(guard)
        self._budget = rules.max_num_batched_tokens
        self.own_limits = StepLimits(rules.long_prefill_token_threshold, rules.max_num_seqs)
        self._limits: SelfTunedLimits | None = None
        if plugin.tuning == "self-tuned":
            self._limits = SelfTunedLimits(rules.max_num_seqs, rules.long_prefill_token_threshold)
        self.acts = self._limits is not None or guard is not None
        self.next_check_ps = FOREVER if guard is None else 0
        self.listeners: list[Listener] = [] if self._harm is None else [self._harm]

    def before_step(
        self, scheduler: Scheduler, now_ps: int, running: int, prefill_left: Sequence[int], memory: MemoryView
    ) -> StepLimits:
        """The limits of the step that is composed; called while a request runs or waits.

        Args:
            scheduler: its policies may be suspended or reinstated.
            now_ps: picoseconds.
            running: requests that run.
            prefill_left: for each prefilling request, the tokens it has left.
            memory: KV blocks.
        """
        now = now_ps * SECONDS_PER_PS
        if self._harm is not None and now_ps >= self.next_check_ps:
            self.next_check_ps = now_ps + SECONDS_BETWEEN_CHECKS * PS_PER_SECOND
            self._harm.check(scheduler, now)
        if self._limits is None or scheduler.suspended:
            return self.own_limits
        head = scheduler.head(now) if prefill_left else None
        facts = StepFacts(self._budget, running, prefill_left, head, memory, len(scheduler.queue))
        return self._limits.before_step(facts)

    def preempted(self, lost_tokens: int) -> None:
        """The step that is composed preempts a request that had computed so many tokens."""
        if self._limits is not None:
            self._limits.preempted(lost_tokens)

    def after_step(self, tokens: int, steps: int = 1) -> None:
        """A step of so many tokens was composed, or several alike; 0 where no request got any."""
        if self._limits is not None:
            self._limits.after_step(tokens, steps)

    def steps_alike(self, steps: int, waiting: int) -> int:
        """How many of so many equal decode steps the limits stand for; at least 1."""
        unchanged = None if self._limits is None else self._limits.steps_unchanged(waiting)
        return steps if unchanged is None else min(steps, 1 + unchanged)
