"""Our reference engine takes vLLM's own decisions: the real scheduler in virtual time, compared step by step."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from headway.cli.command_options import ReplicaOptions
from headway.cli.modelled_replica import modelled_replica
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.ordering.priority import Priority
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.policies.preemption.lowest_priority import LowestPriority
from headway.scheduling.scheduler import Policies
from headway.simulator.outcome import DayOutcome, StepRecord
from headway.simulator.reference import simulate_reference
from headway.simulator.rules import PluginRules
from headway.vllm_plugin.config import PluginConfig
from tests.parity import parity_days

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PYTHON = os.environ.get("HEADWAY_VLLM_PYTHON", "")
TRACES = os.environ.get("HEADWAY_TRACES", "")

GENERATED = {day.name: day for day in parity_days.generated_days()}
PLUGIN = {day.name: day for day in parity_days.plugin_days()}
RECORDED = {day.name: day for day in parity_days.recorded_days(Path(TRACES))} if PYTHON and TRACES else {}


@cache
def vllm_answers(kind: str) -> dict[str, Any]:
    """All days of one kind in one process: importing vLLM takes longer than a day."""
    return vllm_says([*{"generated": GENERATED, "recorded": RECORDED, "plugin": PLUGIN}[kind].values()])


def ask_vllm(days: Sequence[parity_days.ParityDay], *packages: Path) -> dict[str, Any]:
    """vLLM's answer to each day, by name; `packages` are folders whose vLLM goes before the interpreter's own."""
    return dict(vllm_says(days, *packages)["days"])


def vllm_says(days: Sequence[parity_days.ParityDay], *packages: Path) -> dict[str, Any]:
    """All that the driver gives out."""
    done = subprocess.run(
        [PYTHON, "-m", "tests.parity.vllm_driver"],
        input=json.dumps([day.as_json() for day in days]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*packages, SOURCE, ROOT)))},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return dict(json.loads(done.stdout))


class Recorder:
    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def on_step(self, step: StepRecord) -> None:
        self.steps.append(step)


def our_day(day: parity_days.ParityDay) -> tuple[DayOutcome, list[StepRecord]]:
    recorder = Recorder()
    ordering, preemption = (Fcfs(), LatestAdmitted()) if day.ordering == "fcfs" else (Priority(), LowestPriority())
    policies = Policies(ordering, Greedy(), preemption, RunningMean())
    if day.policy is not None:
        policies = PluginConfig(ordering=day.policy).policies()
    outcome = simulate_reference(day.trace, day.rules, day.step_time, policies, plugin=day.plugin, observer=recorder)
    return outcome, recorder.steps


def as_record(step: dict[str, Any]) -> StepRecord:
    tuples = {
        "chunks": tuple(tuple(chunk) for chunk in step["chunks"]),
        "preempted": tuple(step["preempted"]),
        "admitted": tuple(step["admitted"]),
    }
    return StepRecord(**{**step, **tuples})


def first_difference(ours: Sequence[StepRecord], theirs: Sequence[StepRecord]) -> str:
    for number, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            return f"step {number}\nours  {our}\nvLLM  {their}"
    return "" if len(ours) == len(theirs) else f"{len(ours)} steps, vLLM has {len(theirs)}"


def compare(day: parity_days.ParityDay, answer: dict[str, Any]) -> None:
    outcome, steps = our_day(day)
    assert first_difference(steps, [as_record(step) for step in answer["steps"]]) == ""
    assert not outcome.refused
    assert outcome.first_token_ps.tolist() == answer["first_token_ps"]
    assert outcome.ended_ps.tolist() == answer["ended_ps"]
    assert outcome.preemptions.tolist() == answer["preemptions"]
    assert outcome.ended_ps.min() >= 0


@pytest.mark.vllm
@pytest.mark.parametrize("name", GENERATED if PYTHON else ["all"])
def test_generated_day_equals_vllm(name: str) -> None:
    compare(GENERATED[name], vllm_answers("generated")["days"][name])


@pytest.mark.vllm
def test_what_compare_simulates_by_default_is_vllms_default() -> None:
    """Parity of the engine says nothing of a default that no vLLM has."""
    ours, theirs = asdict(modelled_replica(ReplicaOptions()).rules), vllm_answers("generated")["defaults"]
    assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.vllm
@pytest.mark.parametrize("name", RECORDED or ["all"])
@pytest.mark.skipif(not TRACES, reason="HEADWAY_TRACES does not name the folder of recorded traces")
def test_recorded_day_equals_vllm(name: str) -> None:
    compare(RECORDED[name], vllm_answers("recorded")["days"][name])


@pytest.mark.vllm
@pytest.mark.parametrize("name", PLUGIN if PYTHON else ["all"])
def test_the_plugin_in_vllm_does_what_the_simulator_says(name: str) -> None:
    compare(PLUGIN[name], vllm_answers("plugin")["days"][name])


def test_days_of_the_plugin_differ_by_what_it_does() -> None:
    for name, day in PLUGIN.items():
        _, steps = our_day(day)
        _, without = our_day(replace(day, plugin=parity_days.NO_PLUGIN))
        assert first_difference(steps, without), name
        if day.plugin.guard is not None and day.plugin.tuning != "off":
            assert first_difference(steps, our_day(replace(day, plugin=PluginRules(guard=day.plugin.guard)))[1]), name
            assert first_difference(steps, our_day(replace(day, plugin=PluginRules(day.plugin.tuning)))[1]), name


def test_generated_days_reach_the_rules_they_are_meant_for() -> None:
    """A comparison of days on which nothing happens would prove nothing."""
    for name, day in GENERATED.items():
        outcome, steps = our_day(day)
        if not name.startswith(("ample", "few-seats", "priority-ample", "watermark-alone")):
            assert outcome.preemptions.sum() >= 5, name
        if name.endswith("shared"):
            assert outcome.cached_tokens.sum() > 100, name
        if name.endswith("own"):
            found = sum(before for step in steps for row, _, before in step.chunks if row in step.admitted)
            assert found > 0 or not outcome.preemptions.any(), name
        if day.rules.chunked_prefill and day.rules.max_num_batched_tokens < 400:
            assert any(before and row not in step.admitted for step in steps for row, _, before in step.chunks), name
