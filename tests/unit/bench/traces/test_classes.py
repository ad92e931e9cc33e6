"""The column `class` of a trace: read, written, merged, replayed, and kept apart in the figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headway.bench.experiment.bundles import Bundle
from headway.bench.metrics.run_metrics import Slo, summarise
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import merge
from headway.bench.traces.writing import write_jsonl
from headway.bench.user_mistake import UserMistake
from headway.simulator.replica import replica
from headway.simulator.skipping import simulate

ROWS = [
    {"timestamp": 0, "input_length": 100, "output_length": 5, "class": "offline"},
    {"timestamp": 1, "input_length": 90, "output_length": 4, "class": "online"},
    {"timestamp": 2, "input_length": 80, "output_length": 3},
]


def written(folder: Path, rows: list[dict[str, object]], name: str = "day.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_class_is_read_and_written(tmp_path: Path) -> None:
    trace = load_trace(str(written(tmp_path, ROWS))).trace
    assert trace.offline is not None
    assert trace.offline.tolist() == [True, False, False]
    write_jsonl(trace, tmp_path / "again.jsonl")
    again = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert [row.get("class") for row in again] == ["offline", None, None]


def test_a_trace_without_classes_is_online_beside_one_with(tmp_path: Path) -> None:
    some = load_trace(str(written(tmp_path, ROWS))).trace
    none = load_trace(str(written(tmp_path, ROWS[2:], "plain.jsonl"))).trace
    assert none.offline is None
    both = merge([some, none]).offline
    assert both is not None
    assert both.dtype == bool
    assert sorted(both.tolist()) == [False, False, False, True]


def test_another_class_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="line 1: `class` must be online or offline"):
        load_trace(str(written(tmp_path, [{**ROWS[0], "class": "batch"}])))


def test_latencies_are_those_of_online_requests(tmp_path: Path) -> None:
    trace = load_trace(str(written(tmp_path, ROWS))).trace
    server = replica("h100", "llama-3.1-8b")
    policies = Bundle("fcfs", "fcfs").build(costs=server.costs, seed=0, truth=trace.output_tokens.tolist().__getitem__)
    outcome = simulate(trace, server.rules, server.step_time, policies)
    metrics = summarise(trace, outcome, Slo(), None, kv_blocks=server.rules.kv_blocks, lower_bound_seconds=1.0)
    assert (metrics.requests, metrics.completed, metrics.goodput, metrics.times_lower_bound) == (3, 3, 1.0, None)
    online = (outcome.first_token_ps - outcome.arrived_ps)[1:] / 1e12
    assert metrics.longest_ttft_seconds == pytest.approx(online.max())
    assert metrics.offline_tokens_per_second == pytest.approx(105 / metrics.makespan_seconds)
