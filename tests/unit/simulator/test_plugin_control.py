"""What the plug-in does before a step: when it acts, when it judges, and which threshold it sets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headway.domain.event import Admitted, Arrived
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.admission.greedy import Greedy
from headway.policies.contracts import OrderingPolicy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.ordering.shortest_prompt_first import ShortestPromptFirst
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.harm_judge import HarmLimits
from headway.scheduling.scheduler import Policies, Scheduler
from headway.simulator.arrivals import FOREVER
from headway.simulator.plugin_control import PluginControl
from headway.simulator.rules import EngineRules, PluginRules

SECOND = 10**12
RULES = EngineRules(kv_blocks=100, max_num_batched_tokens=1_000, max_num_seqs=10)
ROOMY = MemoryView(100, 100, 16)
GUARD = HarmLimits(harm_ratio=1.0, harm_slack_seconds=0.0, harm_seconds=0.0, step_back_seconds=5.0)


def control(
    plugin: PluginRules, ordering: OrderingPolicy, rules: EngineRules = RULES
) -> tuple[PluginControl, Scheduler]:
    policies = Policies(ordering, Greedy(), LatestAdmitted(), RunningMean())
    made = PluginControl(plugin, rules, policies)
    return made, Scheduler(policies, listeners=made.listeners)


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
    made.before_step(scheduler, 0, 1, [], ROOMY)
    assert made.next_check_ps == SECOND
    made.before_step(scheduler, SECOND - 1, 1, [], ROOMY)
    assert made.next_check_ps == SECOND
    made.before_step(scheduler, SECOND, 1, [], ROOMY)
    assert made.next_check_ps == 2 * SECOND
    made.before_step(scheduler, 7 * SECOND + 5, 1, [], ROOMY)
    assert made.next_check_ps == 8 * SECOND + 5


def test_a_guard_suspends_an_order_under_which_some_wait_for_ever() -> None:
    made, scheduler = control(PluginRules(guard=GUARD), ShortestPromptFirst())
    (watch,) = made.listeners
    for row in range(100):  # admitted at once, but for the first ten
        request = Request(row, float(row), 10)
        watch.observe(Arrived(request, float(row)))
        if row >= 10:
            watch.observe(Admitted(request, float(row)))
    made.before_step(scheduler, 100 * SECOND, 1, [], ROOMY)
    made.before_step(scheduler, 101 * SECOND, 1, [], ROOMY)
    assert scheduler.suspended


def test_only_tuning_moves_the_threshold() -> None:
    rules = replace(RULES, long_prefill_token_threshold=700)
    made, scheduler = control(PluginRules(guard=GUARD), ShortestPromptFirst(), rules)
    scheduler.arrive(Request(0, 0.0, 50), 0.0)
    assert made.before_step(scheduler, 0, 3, [5_000], ROOMY) == 700
    made, scheduler = control(PluginRules("self-tuned"), ShortestPromptFirst(), rules)
    assert made.acts
    assert made.next_check_ps == FOREVER
    scheduler.arrive(Request(0, 0.0, 350), 0.0)
    # Two of three decode; of the other 998 tokens the next request needs 350.
    assert made.before_step(scheduler, 0, 3, [5_000], ROOMY) == 648


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
    assert made.before_step(scheduler, 0, running, prefill_left, memory) == threshold


def test_while_policies_are_suspended_the_threshold_stays() -> None:
    made, scheduler = control(PluginRules("self-tuned"), ShortestPromptFirst())
    scheduler.arrive(Request(0, 0.0, 50), 0.0)
    scheduler.suspend()
    assert made.before_step(scheduler, 0, 3, [5_000], ROOMY) == 0
    scheduler.reinstate()
    assert made.before_step(scheduler, 0, 3, [5_000], ROOMY) == 948
