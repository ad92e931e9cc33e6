"""`ordering = "auto"` in the plug-in: it switches an engine's policies while requests wait, and none is lost."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from headway.domain.request import Request
from headway.scheduling.checked_policies import PolicyFault
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.look_messages import EngineFacts, Judged, LookAnswer, TwinLook
from headway.twin.traffic_window import SeenRequest
from headway.vllm_plugin.config import PluginConfig, read_config
from headway.vllm_plugin.fallback import FallbackScheduler
from headway.vllm_plugin.plugin_twin import PluginTwin
from headway.vllm_plugin.policy_guard import PolicyTimer

AUTO = read_config({"headway": {"ordering": "auto", "auto": {"begin": "configured", "look_seconds": 1}}})
OTHER = ChosenBundle("shortest-prompt-first", "overflow-probability", "least-sunk-work")


class SureLooks:
    """Every look says that another bundle is better."""

    is_busy = False
    cpu_seconds = pause_seconds = 0.0
    memory_bytes = 0

    def __init__(self) -> None:
        self.asked: list[Sequence[SeenRequest]] = []

    def ask(self, look: TwinLook, rows: Sequence[SeenRequest]) -> None:
        self.is_busy = True
        self.asked.append(rows)
        self._current = look.current

    def take(self) -> LookAnswer:
        self.is_busy = False
        judged = [Judged(self._current, 2.0, 4.0, 2.0), Judged(OTHER, 1.0, 4.4, 1.0, 2.0, True)]
        return LookAnswer(300, 300, 1.0, judged, None, (5, 4, 3, 2, 1), 0.0)

    def close(self) -> None:
        pass


def scheduler(twin: PluginTwin, config: PluginConfig = AUTO) -> tuple[FallbackScheduler, list[PolicyFault]]:
    faults: list[PolicyFault] = []
    timer = PolicyTimer(config.guard, time.perf_counter, time.thread_time)
    return FallbackScheduler(config.policies(), timer, faults.append, twin.listeners), faults


def served(policies: FallbackScheduler, number: int, at: float, tokens: int = 100) -> None:
    request = Request(number, at, tokens)
    policies.arrive(request, at)
    policies.admit(number, at + 0.1)
    policies.first_token(request, at + 0.2)
    request.produced_tokens = 7
    policies.complete(request, at + 0.5)


def test_it_watches_switches_and_loses_none() -> None:
    looks = SureLooks()
    twin = PluginTwin(AUTO, EngineFacts, lambda request: (int(request.id), 5), looks)
    policies, faults = scheduler(twin)
    for number in range(250):
        served(policies, number, float(number))
    for number, tokens in ((1_000, 9_000), (1_001, 8_000), (1_002, 10)):
        policies.arrive(Request(number, 300.0, tokens), 300.0)
    policies.set_aside(1_001)
    twin.follow(policies, 300.0)
    twin.follow(policies, 301.0)
    seen = looks.asked[0][0]
    assert (seen.prompt_tokens, seen.output_tokens, seen.prefix) == (100, 7, (0, 5))
    assert (seen.started_at, seen.first_token_at, seen.ended_at) == (0.1, 0.2, 0.5)
    assert twin.steering is not None
    assert twin.steering.rules.current == OTHER
    assert policies.holds
    assert policies.chooses_victims
    head = policies.head(301.0)
    assert head is not None
    assert head.id == 1_002
    assert not policies.may_switch, "two wait that waited then"
    policies.requeue(Request(1_001, 300.0, 8_000), resumed=False)
    order = []
    while (head := policies.head(302.0)) is not None:
        order.append(head.id)
        policies.admit(head.id, 302.0)
    assert sorted(map(int, order)) == [1_000, 1_001, 1_002]
    assert policies.may_switch
    assert not faults


def test_what_was_learned_of_lengths_goes_on() -> None:
    twin = PluginTwin(AUTO, EngineFacts, looks=SureLooks())
    policies, _ = scheduler(twin)
    for number in range(250):
        served(policies, number, float(number))
    twin.follow(policies, 300.0)
    twin.follow(policies, 301.0)
    late = Request("late", 302.0, 100)
    policies.arrive(late, 302.0)
    assert late.estimate is not None
    assert late.estimate.remaining_mean(0) < 20, "a fresh predictor would say some hundreds"


def test_while_the_guard_has_suspended_the_policies_nothing_is_switched() -> None:
    twin = PluginTwin(AUTO, EngineFacts, looks=SureLooks())
    policies, _ = scheduler(twin)
    for number in range(250):
        served(policies, number, float(number))
    policies.suspend()
    twin.follow(policies, 300.0)
    twin.follow(policies, 301.0)
    assert twin.steering is not None
    assert twin.steering.switches == 0
    policies.reinstate()
    twin.follow(policies, 302.0)
    assert twin.steering.switches == 1


def test_a_fault_of_the_twin_ends_it_and_not_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    class NoThread(SureLooks):
        is_closed = False

        def ask(self, look: TwinLook, rows: Sequence[SeenRequest]) -> None:
            raise RuntimeError("can't start new thread")

        def close(self) -> None:
            self.is_closed = True

    looks = NoThread()
    twin = PluginTwin(AUTO, EngineFacts, looks=looks)
    policies, faults = scheduler(twin)
    for number in range(250):
        served(policies, number, float(number))
    with caplog.at_level("ERROR", "headway"):
        twin.follow(policies, 300.0)
    twin.follow(policies, 301.0)
    assert twin.steering is None
    assert looks.is_closed
    assert policies.in_force
    assert not faults


def test_auto_is_the_default_order_with_a_twin() -> None:
    assert (AUTO.ordering, AUTO.auto.on) == ("highest-response-ratio", True)
    assert not PluginConfig().auto.on
    assert PluginTwin(PluginConfig(), EngineFacts).steering is None
    beside = read_config({"headway": {"ordering": "priced-work", "auto": {"on": True, "objective": "mean-ttft"}}})
    assert (beside.ordering, beside.auto.objective) == ("priced-work", "mean-ttft")
    with pytest.raises(ValueError, match="auto and live_tuning cannot both be on"):
        read_config({"headway": {"ordering": "auto", "live_tuning": {"window_seconds": 60}}})
    with pytest.raises(ValueError, match=r"auto\.objective"):
        read_config({"headway": {"ordering": "auto", "auto": {"objective": "fast"}}})
