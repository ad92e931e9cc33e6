"""Plug-in control: what Headway's vLLM plug-in does before a step, in both simulated engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from headway.domain.event import Listener
from headway.domain.replica_view import MemoryView
from headway.policies.ordering.fcfs import Fcfs
from headway.scheduling.harm_watch import SECONDS_BETWEEN_CHECKS, HarmWatch
from headway.scheduling.scheduler import Policies, Scheduler
from headway.scheduling.self_tuned_threshold import StepFacts, self_tuned_threshold
from headway.simulator.arrivals import FOREVER
from headway.simulator.rules import EngineRules, PluginRules
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS


class Steering(Protocol):
    """Changes a scheduler's policies while a day goes on."""

    next_check_ps: int
    """When it is to be asked next, picoseconds."""

    def check(self, scheduler: Scheduler, now_ps: int) -> None:
        """Before a step at or after that time."""


class PluginControl:
    """Judges harm once a second and moves the long-prefill threshold, as far as the plug-in's rules want it.

    `steering`, if there is one, is asked at its own times.

    Attributes:
        acts: whether there is anything to do; if not, the engine's own threshold holds all day.
        listeners: to be told of every event.
    """

    def __init__(
        self, plugin: PluginRules, rules: EngineRules, policies: Policies, steering: Steering | None = None
    ) -> None:
        guard = None if isinstance(policies.ordering, Fcfs) else plugin.guard  # first come, first served harms nothing
        self._harm = None if guard is None else HarmWatch(guard)
        self._rules = rules
        self._tunes = plugin.tuning == "self-tuned"
        self._steering = steering
        self.acts = self._tunes or guard is not None or steering is not None
        self._next_harm_ps = FOREVER if guard is None else 0
        self.listeners: list[Listener] = [] if self._harm is None else [self._harm]

    @property
    def next_check_ps(self) -> int:
        """When the guard judges next, or the steering is asked."""
        return self._next_harm_ps if self._steering is None else min(self._next_harm_ps, self._steering.next_check_ps)

    def before_step(
        self, scheduler: Scheduler, now_ps: int, running: int, prefill_left: Sequence[int], memory: MemoryView
    ) -> int:
        """The long-prefill threshold of the step that is composed; called while a request runs or waits.

        Args:
            scheduler: its policies may be suspended or reinstated.
            now_ps: picoseconds.
            running: requests that run.
            prefill_left: for each prefilling request, the tokens it has left.
            memory: KV blocks.
        """
        now, rules = now_ps * SECONDS_PER_PS, self._rules
        if self._steering is not None and now_ps >= self._steering.next_check_ps:
            self._steering.check(scheduler, now_ps)
        if self._harm is not None and now_ps >= self._next_harm_ps:
            self._next_harm_ps = now_ps + SECONDS_BETWEEN_CHECKS * PS_PER_SECOND
            self._harm.check(scheduler, now)
        if not self._tunes or scheduler.suspended or not prefill_left:
            return rules.long_prefill_token_threshold
        facts = StepFacts(
            rules.max_num_batched_tokens,
            seats_free=rules.max_num_seqs - running,
            decoding=running - len(prefill_left),
            prefill_left=prefill_left,
            head=scheduler.head(now),
            memory=memory,
        )
        return self_tuned_threshold(facts, rules.long_prefill_token_threshold)
