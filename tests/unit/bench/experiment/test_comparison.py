"""The comparison as JSON: its keys, its baseline, and the facts of its trace."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.comparison import Comparison, json_text, trace_facts
from headway.bench.experiment.fleets import Fleet
from headway.bench.experiment.repeats import Repeats
from headway.bench.experiment.simulated_runs import Experiment, compare
from headway.bench.metrics.recording import Recording
from headway.simulator.replica import replica
from headway.simulator.rules import EngineRules
from tests.support.handmade_days import demo_comparison, demo_run, demo_trace

DOCS = Path(__file__).parents[4] / "docs" / "json.md"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return demo_comparison()


def test_the_docs_name_every_key() -> None:
    experiment = Experiment(demo_trace(20), replica("l4", "llama-3.1-8b"), [Bundle("fcfs")], loads=(1.0,))
    comparison = compare(experiment, jobs=1)
    documented = set(re.findall(r"`(\w+)`", DOCS.read_text(encoding="utf-8")))
    data = json.loads(json_text(comparison))
    run = data["runs"][0]
    keys = {*data, *data["trace"], *data["replica"], *data["slo"], *data["trace"]["prompt_tokens"], *run}
    keys |= {*data["saturation"], *data["replica"]["profile"]}
    assert set(data["replica"]["rules"]) == {field.name for field in dataclasses.fields(EngineRules)}
    keys |= {*run["ttft_seconds"], *run["bundle"], *run["bundle"]["ordering"]}
    keys |= {*run["prediction_calibration"], *run["prediction_calibration"]["coverage"]}
    assert keys <= documented, f"docs/json.md lacks {sorted(keys - documented)}"


def test_the_docs_name_no_key_that_is_gone() -> None:
    one, trace = replica("l4", "llama-3.1-8b"), demo_trace(20)
    fleet = Fleet({"a": one, "b": one}, reschedulings=("take-back",))
    measured = Recording(trace, np.full(20, 0.5), np.full(20, 5.0), "day").as_trace()
    of_a_fleet = compare(Experiment(trace, one, [Bundle("fcfs")], loads=(1.0,), fleet=fleet), jobs=1)
    recorded = compare(Experiment(measured, one, [Bundle("fcfs")]), jobs=1)
    repeated = compare(Experiment(trace, one, [Bundle("fcfs")], repeats=Repeats(3)), jobs=1)
    steered = dataclasses.replace(recorded.runs[0], looks=("kept",)).to_json()
    known = _keys(of_a_fleet.to_json()) | _keys(recorded.to_json()) | _keys(repeated.to_json()) | _keys(steered)
    rows = re.findall(r"^\| (`.*?) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    named = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert named <= known, f"docs/json.md names {sorted(named - known)}, which nothing writes"


def _keys(value: object) -> set[str]:
    """Of all objects in a JSON value."""
    if isinstance(value, Mapping):
        return {*value, *(key for below in value.values() for key in _keys(below))}
    return {key for below in value for key in _keys(below)} if isinstance(value, list) else set()


def test_the_text_is_deterministic_but_for_wall_seconds(comparison: Comparison) -> None:
    again = demo_comparison()
    slower = dataclasses.replace(
        again, runs=tuple(dataclasses.replace(run, wall_seconds=run.wall_seconds + 1) for run in again.runs)
    )
    differing = [
        (a, b)
        for a, b in zip(json_text(comparison).splitlines(), json_text(slower).splitlines(), strict=True)
        if a != b
    ]
    assert len(differing) == len(comparison.runs)
    assert all('"wall_seconds"' in a and '"wall_seconds"' in b for a, b in differing)
    assert json_text(comparison) == json_text(again)


def test_the_outer_contract(comparison: Comparison) -> None:
    data = json.loads(json_text(comparison))
    assert data["schema"] == 1
    assert data["trace"]["requests"] == 400
    first = data["runs"][0]
    assert (first["policy"], first["load"], first["requests"], first["completed"]) == ("fcfs", 1.1, 400, 400)
    assert [*first][:: len(first) - 1] == ["policy", "wall_seconds"]


def test_the_baseline_is_fcfs_at_the_same_load_or_else_the_first_run() -> None:
    two_loads = demo_comparison(("random", "fcfs"), (0.7, 1.1))
    assert two_loads.baseline_label() == "fcfs"
    assert two_loads.baseline_of(two_loads.runs[0]) is two_loads.runs[1]
    assert two_loads.baseline_of(two_loads.runs[2]) is two_loads.runs[3]
    without = demo_comparison(("random", "shortest-prompt-first"))
    assert without.baseline_label() == "random"
    lone = dataclasses.replace(without, runs=(demo_run("random", 0.5), demo_run("shortest-prompt-first", 0.6)))
    assert lone.baseline_of(lone.runs[1]) is None


def test_trace_facts_count_sessions_and_tenants() -> None:
    import numpy as np

    trace = dataclasses.replace(demo_trace(4), session=np.array([-1, 3, 3, 5]))
    facts = trace_facts(trace)
    assert (facts["sessions"], facts["tenants"], facts["requests"]) == (2, 2, 4)
    assert facts["span_seconds"] == pytest.approx(trace.arrived_seconds[3] - trace.arrived_seconds[0])
