"""`headway bound`: its figures, its JSON, and its mistakes in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Said

Headway = Callable[..., Said]


def test_no_policy_of_a_comparison_is_below_what_bound_prints(
    headway: Headway, small_trace: Path, tmp_path: Path
) -> None:
    bounds, runs = tmp_path / "bounds.json", tmp_path / "runs.json"
    options = ("--loads", "0.5,1.2", "--requests", "120")
    said = headway("bound", small_trace, *options, "--json", bounds)
    assert said.status == 0, said.err
    assert "the largest of these" in said.out
    assert "no policy's mean TTFT is below" in said.out
    compared = headway("compare", small_trace, *options, "--policy", "fcfs", "--policy", "random", "--json", runs)
    assert compared.status == 0, compared.err
    assert "× lower bound" in compared.out
    found = {entry["load"]: entry for entry in json.loads(bounds.read_text())["bounds"]}
    for run in json.loads(runs.read_text())["runs"]:
        bound = found[run["load"]]
        assert bound["requests"] == run["completed"]
        assert run["times_lower_bound"] == pytest.approx(run["e2e_seconds"]["mean"] / bound["mean_e2e_seconds"])
        assert run["times_lower_bound"] >= 1
        assert run["ttft_seconds"]["mean"] >= bound["mean_ttft_seconds"] > 0
    for bound in found.values():
        assert bound["mean_e2e_seconds"] == max(part["mean_e2e_seconds"] for part in bound["parts"])


def test_several_traces_and_stdout(headway: Headway, small_trace: Path) -> None:
    said = headway("bound", small_trace, small_trace, "--requests", "20", "--json", "-")
    assert said.status == 0, said.err
    content = json.loads(said.out)
    assert len(content["traces"]) == 2
    assert content["traces"][0]["bounds"][0]["load"] is None


def test_the_docs_name_every_key(headway: Headway, small_trace: Path) -> None:
    told = json.loads(headway("bound", small_trace, "--requests", "5", "--json", "-").out)
    docs = (Path(__file__).parents[3] / "docs" / "bounds.md").read_text(encoding="utf-8")
    keys = {*told, *told["bounds"][0], *told["bounds"][0]["parts"][0]}
    assert {key for key in keys if f"`{key}`" not in docs} == set()


def test_a_trace_that_the_replica_cannot_serve(headway: Headway, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 5000, "output_length": 5}\n')
    for over_context in ("error", "refuse"):
        said = headway("bound", path, "--kv-tokens", "1600", "--over-context", over_context)
        assert said.status == 2
        assert "past the replica's KV memory of 1,601" in said.err
        assert "more --kv-tokens" in said.err


def test_a_file_that_cannot_be_written_is_found_out_before_the_work(headway: Headway, small_trace: Path) -> None:
    said = headway("bound", small_trace, "--json", "/nowhere/at/all.json")
    assert said.status == 2
    assert "--json" in said.err
    assert said.out == ""


def test_the_optimum_of_a_small_trace(headway: Headway, tmp_path: Path) -> None:
    pytest.importorskip("highspy", reason="the optimum needs highspy: pip install headway[opt]")
    path = tmp_path / "tiny.jsonl"
    rows = [(8, 4), (20, 2), (3, 9), (12, 6)]
    path.write_text("".join(f'{{"timestamp": 0, "input_length": {s}, "output_length": {o}}}\n' for s, o in rows))
    options = ("bound", path, "--kv-tokens", "32", "--optimum")
    said = headway(*options)
    assert said.status == 0, said.err
    assert "proven" in said.out
    told = json.loads(headway(*options, "--json", "-").out)["optimum"]
    assert told["gap"] == 0
    assert told["bound_steps"] == told["mean_latency_steps"] >= sum(o for _, o in rows) / len(rows)
    docs = (Path(__file__).parents[3] / "docs" / "bounds.md").read_text(encoding="utf-8")
    assert {key for key in told if f"`{key}`" not in docs} == set()


def test_a_trace_too_large_for_the_optimum(headway: Headway, tmp_path: Path) -> None:
    path = tmp_path / "burst.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 6000, "output_length": 100}\n' * 200)
    said = headway("bound", path, "--kv-tokens", "8000", "--optimum")
    assert said.status == 2
    assert "--optimum" in said.err
    assert "--requests" in said.err
