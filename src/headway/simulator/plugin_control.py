"""Plug-in control: what Headway's vLLM plug-in does before a step, in both simulated engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from headway.domain.event import Listener
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.fcfs import Fcfs
from headway.scheduling.displacement import HEADS_MAX, Displacement, Room, Running, Waiting
from headway.scheduling.harm_watch import SECONDS_BETWEEN_CHECKS, HarmWatch
from headway.scheduling.prefill_budget import PrefillLoad, StepLimits, prefill_limits
from headway.scheduling.scheduler import Policies, Scheduler
from headway.scheduling.self_tuned_threshold import StepFacts, self_tuned_threshold
from headway.simulator.arrivals import FOREVER
from headway.simulator.rules import EngineRules, PluginRules
from headway.simulator.step_time import PS_PER_SECOND, SECONDS_PER_PS, StepTime, expected_step_ps


class Steering(Protocol):
    """Changes a scheduler's policies while a day goes on."""

    next_check_ps: int
    """When it is to be asked next, picoseconds."""

    def check(self, scheduler: Scheduler, now_ps: int) -> None:
        """Before a step at or after that time."""


class Inside(NamedTuple):
    """What is inside an engine as a step is composed.

    Attributes:
        running: requests that run.
        decodes: those of them that decode in this step.
        context_tokens: their KV tokens.
        prefill_left: for each prefilling request, the tokens it has left.
        prefilled_tokens: KV tokens of those.
        memory: KV blocks.
    """

    running: int
    decodes: int
    context_tokens: int
    prefill_left: Sequence[int]
    prefilled_tokens: int
    memory: MemoryView


class PluginControl:
    """Judges harm once a second, moves an engine's limits, and displaces, as far as the plug-in's rules want it.

    `steering`, if there is one, is asked at its own times.

    Attributes:
        acts: whether there is anything to do; if not, the engine's own limits hold all day.
        moves_budget: whether the token budget of a step changes.
        displaces: whether requests are displaced.
        listeners: to be told of every event.
    """

    def __init__(
        self,
        plugin: PluginRules,
        rules: EngineRules,
        policies: Policies,
        step_time: StepTime,
        steering: Steering | None = None,
    ) -> None:
        """Raises ValueError, one sentence, where the plug-in's rules do not work under the engine's or the policies."""
        guard = None if isinstance(policies.ordering, Fcfs) else plugin.guard  # first come, first served harms nothing
        self._harm = None if guard is None else HarmWatch(guard)
        self._rules = rules
        self._own = StepLimits(rules.long_prefill_token_threshold, rules.max_num_batched_tokens)
        self._tunes = plugin.tuning == "self-tuned"
        self._tpot_seconds = plugin.tpot_seconds
        self._step_ps = partial(expected_step_ps, step_time)
        self._steering = steering
        self.moves_budget = plugin.tuning == "prefill-budget"
        self._displacement = None if plugin.displace is None else Displacement(plugin.displace, self._step_ps)
        self.displaces = self._displacement is not None
        self.acts = plugin.tuning != "off" or guard is not None or steering is not None or self.displaces
        self._next_harm_ps = FOREVER if guard is None else 0
        self.listeners: list[Listener] = [one for one in (self._harm, self._displacement) if one is not None]
        if self.moves_budget and not rules.chunked_prefill:
            raise ValueError('tuning "prefill-budget" cuts prompts into pieces, so it needs chunked prefill')
        if self.displaces and not isinstance(policies.admission, Greedy):
            raise ValueError(
                "displace needs the admission policy greedy: another one may hold the request that room was made for"
            )

    @property
    def next_check_ps(self) -> int:
        """When the guard judges next, or the steering is asked."""
        return self._next_harm_ps if self._steering is None else min(self._next_harm_ps, self._steering.next_check_ps)

    def before_step(self, scheduler: Scheduler, now_ps: int, inside: Inside) -> StepLimits:
        """The limits of the step that is composed; called while a request runs or waits.

        Args:
            scheduler: its policies may be suspended or reinstated.
            now_ps: picoseconds.
            inside: the engine.
        """
        now, rules = now_ps * SECONDS_PER_PS, self._rules
        if self._steering is not None and now_ps >= self._steering.next_check_ps:
            self._steering.check(scheduler, now_ps)
        if self._harm is not None and now_ps >= self._next_harm_ps:
            self._next_harm_ps = now_ps + SECONDS_BETWEEN_CHECKS * PS_PER_SECOND
            self._harm.check(scheduler, now)
        if scheduler.suspended:
            return self._own
        if self.moves_budget:
            return self._prefill_limits(scheduler, now, inside)
        if not self._tunes or not inside.prefill_left:
            return self._own
        facts = StepFacts(
            rules.max_num_batched_tokens,
            seats_free=rules.max_num_seqs - inside.running,
            decoding=inside.running - len(inside.prefill_left),
            prefill_left=inside.prefill_left,
            head=scheduler.head(now),
            memory=inside.memory,
        )
        return self._own._replace(threshold=self_tuned_threshold(facts, rules.long_prefill_token_threshold))

    def _prefill_limits(self, scheduler: Scheduler, now: float, inside: Inside) -> StepLimits:
        """The limits of a step whose prompt tokens have a budget; the engine's own where no prompt can get any."""
        head = scheduler.head(now) if inside.running < self._rules.max_num_seqs else None
        if head is None and not inside.prefill_left:
            return self._own
        cached = 0 if head is None else head.cached_prompt_tokens
        before = inside.prefilled_tokens + cached
        decodes = inside.decodes
        load = PrefillLoad(self._own, decodes, decodes, inside.context_tokens, inside.prefill_left, before)
        return prefill_limits(load, self._tpot_seconds, self._step_ps)

    def displaced(
        self,
        scheduler: Scheduler,
        now: float,
        running: Sequence[Running],
        room: Room,
        needs: Callable[[Request], tuple[int, int]],
    ) -> list[Request]:
        """The requests that make room for waiting ones before the step that is composed.

        Args:
            scheduler: whose queue waits.
            now: seconds.
            running: all that run, in order of admission.
            room: for waiting requests.
            needs: the tokens that a waiting request has to compute, and the blocks that its admission needs.
        """
        online = scheduler.queue.online
        if self._displacement is None or scheduler.suspended or any(one.request.is_offline for one in running):
            return []
        head = online.head(now)
        if head is None:
            return []
        heads = (head, *online.following(now, HEADS_MAX - 1))
        waiting = (Waiting(one, *needs(one)) for one in heads)
        return self._displacement.plan(waiting, running, room, now, scheduler.victim)
