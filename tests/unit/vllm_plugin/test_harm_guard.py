"""The guard suspends an order that has long been worse than first come, first served, and tries it again later."""

from __future__ import annotations

import logging

import pytest

from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.shortest_prompt_first import ShortestPromptFirst
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.checked_policies import PolicyFault
from headway.scheduling.scheduler import Policies
from headway.vllm_plugin.config import GuardLimits, PluginConfig
from headway.vllm_plugin.fallback import FallbackScheduler
from headway.vllm_plugin.harm_guard import HarmGuard
from headway.vllm_plugin.plugin_metrics import PluginMetrics
from headway.vllm_plugin.policy_guard import PolicyTimer


def harming(ordering: str = "shortest-prompt-first") -> tuple[HarmGuard, FallbackScheduler, PluginMetrics]:
    """Sixty requests by the 60th second: the first still waits, each of the others was admitted as it came."""
    config = PluginConfig(ordering=ordering, guard=GuardLimits(harm_seconds=5, step_back_seconds=10))
    policies = Policies(ShortestPromptFirst(), Greedy(), LatestAdmitted(), RunningMean())
    fallback = FallbackScheduler(policies, PolicyTimer(config.guard, float, float), lambda fault: None)
    metrics = PluginMetrics(ordering, "0")
    guard = HarmGuard(config, fallback, metrics)
    guard.comparison.arrive(0, 0.0, 1)
    for arrival in range(1, 60):
        guard.comparison.arrive(arrival, float(arrival), 1)
        guard.comparison.admit(arrival, float(arrival), float(arrival), 1)
    return guard, fallback, metrics


def test_harm_that_lasts_suspends_the_policies_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    guard, policies, metrics = harming()
    with caplog.at_level(logging.WARNING, "vllm.headway"):
        for now in (60.0, 64.9):
            guard.check(now)
            assert policies.in_force
        guard.check(65.0)
        assert policies.suspended
        assert metrics.counters["step_backs", ""] == 1
        assert metrics.gauges["p99_wait_seconds", 'of="ours"'] == 65.0
        fcfs = metrics.gauges["p99_wait_seconds", 'of="fcfs-estimate"']
        assert fcfs == 1.0
        (record,) = caplog.records
        assert record.getMessage() == (
            "headway: for 5 s the p99 wait under shortest-prompt-first was above its limit (now 65.00 s, estimated "
            "1.00 s first come, first served); waiting requests are served first come, first served for 10 s"
        )
        guard.check(74.9)
        assert policies.suspended
        guard.check(75.0)
    assert policies.in_force
    assert caplog.messages[1:] == ["headway: waiting requests are ordered by shortest-prompt-first again"]
    assert metrics.counters["step_backs", ""] == 1
    assert guard.comparison.waits(75.0).requests == 1, "the comparison begins afresh with whoever waits"


def test_an_order_that_is_fcfs_already_is_never_suspended() -> None:
    guard, policies, metrics = harming("fcfs")
    for now in (60.0, 65.0, 70.0):
        guard.check(now)
    assert policies.in_force
    assert metrics.counters["step_backs", ""] == 0
    assert metrics.gauges["p99_wait_seconds", 'of="ours"'] == 70.0, "but it is measured"


def test_policies_that_a_fault_disabled_are_not_suspended_too() -> None:
    guard, policies, metrics = harming()
    policies._fail(PolicyFault("ordering", "raised", "failed"))
    for now in (60.0, 65.0, 75.0):
        guard.check(now)
    assert policies.disabled
    assert not policies.suspended
    assert metrics.counters["step_backs", ""] == 0
