"""What the plug-in does before a step: when it acts, when it judges, and which threshold it sets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headway.domain.estimate import PointEstimate
from headway.domain.event import Admitted, Arrived
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.admission.greedy import Greedy
from headway.policies.admission.peak_check import PeakCheck
from headway.policies.contracts import OrderingPolicy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.ordering.shortest_prompt_first import ShortestPromptFirst
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.displacement import DisplaceRules, Room, Running
from headway.scheduling.harm_judge import HarmLimits
from headway.scheduling.prefill_budget import StepLimits
from headway.scheduling.scheduler import Policies, Scheduler
from headway.simulator.arrivals import FOREVER
from headway.simulator.plugin_control import Inside, PluginControl
from headway.simulator.rules import EngineRules, PluginRules
from headway.simulator.step_time import LinearStepTime

SECOND = 10**12
RULES = EngineRules(kv_blocks=100, max_num_batched_tokens=1_000, max_num_seqs=10)
ROOMY = MemoryView(100, 100, 16)
GUARD = HarmLimits(harm_ratio=1.0, harm_slack_seconds=0.0, harm_seconds=0.0, step_back_seconds=5.0)


def control(
    plugin: PluginRules, ordering: OrderingPolicy, rules: EngineRules = RULES
) -> tuple[PluginControl, Scheduler]:
    policies = Policies(ordering, Greedy(), LatestAdmitted(), RunningMean())
    made = PluginControl(plugin, rules, policies, LinearStepTime(10**10, 6 * 10**7, 0))
    return made, Scheduler(policies, listeners=made.listeners)


def inside(running: int, prefill_left: list[int], memory: MemoryView = ROOMY) -> Inside:
    return Inside(running, running - len(prefill_left), 0, prefill_left, 0, memory)


def test_with_nothing_to_do_it_does_not_act() -> None:
    made, _ = control(PluginRules(), ShortestPromptFirst())
    assert not made.acts
    assert made.next_check_ps == FOREVER
    assert made.listeners == []


def test_first_come_first_served_needs_no_guard() -> None:
    made, _ = control(PluginRules(guard=GUARD), Fcfs())
    assert not made.acts
    assert made.next_check_ps == FOREVER
    assert made.listeners == []


def test_a_guard_judges_at_once_and_then_every_second() -> None:
    made, scheduler = control(PluginRules(guard=GUARD), ShortestPromptFirst())
    assert made.acts
    assert made.next_check_ps == 0
    assert len(made.listeners) == 1
    made.before_step(scheduler, 0, inside(1, [], ROOMY))
    assert made.next_check_ps == SECOND
    made.before_step(scheduler, SECOND - 1, inside(1, [], ROOMY))
    assert made.next_check_ps == SECOND
    made.before_step(scheduler, SECOND, inside(1, [], ROOMY))
    assert made.next_check_ps == 2 * SECOND
    made.before_step(scheduler, 7 * SECOND + 5, inside(1, [], ROOMY))
    assert made.next_check_ps == 8 * SECOND + 5


def test_a_guard_suspends_an_order_under_which_some_wait_for_ever() -> None:
    made, scheduler = control(PluginRules(guard=GUARD), ShortestPromptFirst())
    (watch,) = made.listeners
    for row in range(100):  # admitted at once, but for the first ten
        request = Request(row, float(row), 10)
        watch.observe(Arrived(request, float(row)))
        if row >= 10:
            watch.observe(Admitted(request, float(row)))
    made.before_step(scheduler, 100 * SECOND, inside(1, [], ROOMY))
    made.before_step(scheduler, 101 * SECOND, inside(1, [], ROOMY))
    assert scheduler.suspended


def test_only_tuning_moves_the_threshold() -> None:
    rules = replace(RULES, long_prefill_token_threshold=700)
    made, scheduler = control(PluginRules(guard=GUARD), ShortestPromptFirst(), rules)
    scheduler.arrive(Request(0, 0.0, 50), 0.0)
    assert made.before_step(scheduler, 0, inside(3, [5_000], ROOMY)).threshold == 700
    made, scheduler = control(PluginRules("self-tuned"), ShortestPromptFirst(), rules)
    assert made.acts
    assert made.next_check_ps == FOREVER
    scheduler.arrive(Request(0, 0.0, 350), 0.0)
    # Two of three decode; of the other 998 tokens the next request needs 350.
    assert made.before_step(scheduler, 0, inside(3, [5_000], ROOMY)).threshold == 648


@pytest.mark.parametrize(
    ("running", "prefill_left", "memory", "threshold"),
    [
        (3, [5_000], ROOMY, 948),  # two decode, the next request needs 50 tokens
        (3, [5_000, 400], ROOMY, 549),  # one decodes: 949 are left, 400 of them for the shorter prompt
        (3, [5_000], MemoryView(3, 100, 16), 0),  # the next one needs four blocks
        (10, [5_000], ROOMY, 0),  # no seat is free
        (9, [5_000], ROOMY, 942),
        (3, [], ROOMY, 0),  # no prompt to keep short
    ],
)
def test_a_threshold_leaves_the_next_request_its_tokens(
    running: int, prefill_left: list[int], memory: MemoryView, threshold: int
) -> None:
    made, scheduler = control(PluginRules("self-tuned"), ShortestPromptFirst())
    scheduler.arrive(Request(0, 0.0, 50), 0.0)
    assert made.before_step(scheduler, 0, inside(running, prefill_left, memory)).threshold == threshold


def test_while_policies_are_suspended_the_threshold_stays() -> None:
    made, scheduler = control(PluginRules("self-tuned"), ShortestPromptFirst())
    scheduler.arrive(Request(0, 0.0, 50), 0.0)
    scheduler.suspend()
    assert made.before_step(scheduler, 0, inside(3, [5_000], ROOMY)).threshold == 0
    scheduler.reinstate()
    assert made.before_step(scheduler, 0, inside(3, [5_000], ROOMY)).threshold == 948


def test_a_prefill_budget_is_for_steps_in_which_a_prompt_may_get_tokens() -> None:
    """A step takes 10 ms, and 60 µs a token."""
    plugin = PluginRules("prefill-budget", tpot_seconds=0.06)
    made, scheduler = control(plugin, ShortestPromptFirst())
    own = StepLimits(0, 1_000)
    assert made.before_step(scheduler, 0, inside(3, [])) == own, "no prompt runs or waits"
    assert made.before_step(scheduler, 0, inside(3, [5_000])) == StepLimits(831, 833)
    scheduler.arrive(Request(0, 0.0, 50), 0.0)
    assert made.before_step(scheduler, 0, inside(3, [])) == StepLimits(0, 833)
    assert made.before_step(scheduler, 0, inside(10, [])) == own, "no seat is free"
    scheduler.suspend()
    assert made.before_step(scheduler, 0, inside(3, [5_000])) == own


def test_what_cannot_work_is_refused() -> None:
    whole = replace(RULES, chunked_prefill=False, max_model_tokens=1_000)
    with pytest.raises(ValueError, match="so it needs chunked prefill"):
        control(PluginRules("prefill-budget"), Fcfs(), whole)
    policies = Policies(Fcfs(), PeakCheck(), LatestAdmitted(), RunningMean())
    with pytest.raises(ValueError, match="displace needs the admission policy greedy"):
        PluginControl(PluginRules(displace=DisplaceRules()), RULES, policies, LinearStepTime(1, 1, 1))
    with pytest.raises(ValueError, match="tpot_seconds must be above 0, got 0"):
        PluginRules(tpot_seconds=0)


def test_nobody_is_displaced_beside_an_offline_request_or_while_policies_are_suspended() -> None:
    made, scheduler = control(PluginRules(displace=DisplaceRules(cooldown_seconds=0)), ShortestPromptFirst())
    (displacement,) = made.listeners
    low, offline = Request(1, 0.0, 10, priority=5), Request(2, 0.0, 10, is_offline=True)
    low.estimate = PointEstimate(100, "test")
    displacement.observe(Admitted(low, 0.0))
    scheduler.arrive(Request(0, 0.0, 10), 0.0)
    room = Room(0, 100, 100, 1_000, 1, 10)

    def displaced(*running: Request) -> list[Request]:
        views = [Running(one, 10, 1, 1) for one in running]
        return made.displaced(scheduler, 1.0, views, room, lambda request: (10, 1))

    assert displaced(low, offline) == []
    scheduler.suspend()
    assert displaced(low) == []
    scheduler.reinstate()
    assert displaced(low) == [low]
