"""The Python API: traces from anywhere, policies as classes and instances, tables of what came out."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import headway as hw
from headway.cli.command_options import DEFAULT_SLO

ROWS = [{"timestamp": 100 * row, "input_length": 500 + 400 * (row % 7), "output_length": 20} for row in range(60)]


class LongestFirst:
    """Longest prompt first, times a factor."""

    def __init__(self, factor: int = 1) -> None:
        self.factor = factor
        self.asked = 0

    def rank(self, request: Any) -> int:
        self.asked += 1
        return -self.factor * int(request.prompt_tokens)


def compared(**options: Any) -> hw.ComparisonResult:
    return hw.compare(hw.load_trace(ROWS), progress=False, jobs=1, **options)


def test_a_class_and_instances_are_policies_and_each_run_is_a_row() -> None:
    again = LongestFirst(factor=-1)
    result = compared(orderings=["shortest-prompt-first", LongestFirst, again], loads=[0.9, 1.2])
    table = result.to_dataframe()
    assert table["policy"].tolist() == ["shortest-prompt-first", "LongestFirst", "LongestFirst 2"] * 2
    assert table["load"].tolist() == [0.9] * 3 + [1.2] * 3
    means = table["ttft_seconds.mean"].tolist()
    assert means[4] > means[3] == means[5], "an instance that ranks by length, with its option, is shortest first"
    assert again.asked == 0, "a run copies the instance, so that no run sees another's state"


def test_error_bars_come_from_seeds_of_a_named_workload_and_from_blocks_of_any_other_trace() -> None:
    options: dict[str, Any] = {"orderings": ["fcfs", LongestFirst], "repeats": 3, "progress": False, "jobs": 1}
    of_seeds = hw.compare("chat", requests=40, **options)
    of_blocks = hw.compare(hw.load_trace(ROWS), **options)
    for result, kind in ((of_seeds, "seeds"), (of_blocks, "blocks")):
        repeats = result.comparison.repeats
        assert repeats is not None
        assert repeats.kind == kind
        table = result.to_dataframe()
        low, high = (table[f"intervals.ttft_seconds.mean.{end}"] for end in ("low", "high"))
        assert (low <= table["ttft_seconds.mean"]).all()
        assert (table["ttft_seconds.mean"] <= high).all()
    assert len(of_seeds.requests()) == 2 * 40, "of the first seed"


def test_a_class_gets_what_its_constructor_asks_for() -> None:
    seen = []

    class Priced:
        """Asks for what Headway gives."""

        def __init__(self, *, costs: Any, seed: int) -> None:
            seen.append((costs, seed))

        def rank(self, request: Any) -> float:
            return float(request.prompt_tokens)

    compared(orderings=[Priced], seed=7)
    assert seen[-1][1] == 7
    assert seen[-1][0].prefill_seconds_per_token > 0


def test_other_kinds_are_given_likewise() -> None:
    class NothingLearned:
        """Every answer has 20 tokens."""

        def predict(self, request: Any) -> Any:
            from headway.domain.estimate import PointEstimate

            return PointEstimate(20, "nothing-learned")

    from headway.policies.admission.greedy import Greedy

    result = compared(orderings=["shortest-job-first"], prediction=NothingLearned, admission=Greedy())
    (row,) = result.rows()
    assert (row["bundle.prediction.name"], row["bundle.admission.name"]) == ("NothingLearned", "Greedy")


def test_a_run_has_a_row_for_each_request() -> None:
    result = compared(orderings=["fcfs", "highest-response-ratio"], loads=[1.1], replicas=2)
    table = result.requests()
    assert len(table) == 2 * len(ROWS)
    assert set(table["replica"]) == {"replica-0", "replica-1"}
    assert (table["outcome"] == "completed").all()
    of_fcfs = table[table["policy"] == "fcfs"]
    assert of_fcfs["ttft_seconds"].mean() == pytest.approx(result.rows()[0]["ttft_seconds.mean"])
    assert ((of_fcfs["ended_seconds"] - of_fcfs["arrived_seconds"]) == of_fcfs["e2e_seconds"]).all()


def test_what_did_not_happen_is_empty(tmp_path: Path) -> None:
    rows = [*ROWS, {"timestamp": 9_000, "input_length": 30_000, "output_length": 5}]
    result = hw.compare(
        hw.load_trace(rows),
        orderings=["fcfs"],
        replica=hw.Replica(kv_tokens=16_384),
        over_context="refuse",
        progress=False,
        jobs=1,
    )
    result.requests_out(tmp_path / "requests.csv")
    with (tmp_path / "requests.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    assert last["outcome"].startswith("refused: ")
    assert (last["first_token_seconds"], last["ttft_seconds"], last["replica"]) == ("", "", "")
    result.requests_out(tmp_path / "requests.parquet")
    assert len(pd.read_parquet(tmp_path / "requests.parquet")) == len(rows)


def test_a_trace_comes_from_a_file_a_table_or_rows(tmp_path: Path) -> None:
    import json

    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    table = pd.DataFrame(ROWS).assign(user_id=[None, "a"] * 30)
    of_file, of_table, of_rows = (hw.load_trace(one).trace for one in (file, table, ROWS))
    assert of_file.prompt_tokens.tolist() == of_table.prompt_tokens.tolist() == of_rows.prompt_tokens.tolist()
    assert of_file.arrived_seconds.tolist() == of_table.arrived_seconds.tolist()
    assert "a" in of_table.tenants, "a field that is NaN is absent, the others are read"
    arrays = table.assign(hash_ids=[np.array([row, row + 1]) for row in range(60)], input_length=600, priority=pd.NA)
    of_arrays = hw.load_trace(arrays).trace
    assert of_arrays.prefix_ids is not None
    assert list(of_arrays.prefix_ids[1]) == [1, 2], "as a table that pandas reads from Parquet has them"
    assert of_arrays.priority is None
    named = hw.load_trace([{"at": "2026-01-01T00:00:00Z", "n": 3, "m": 4}], columns="arrival=at,prompt=n,output=m")
    assert named.trace.output_tokens.tolist() == [4]


def test_a_result_is_shown_as_text_as_a_table_and_as_a_page(tmp_path: Path) -> None:
    result = compared(orderings=["fcfs", LongestFirst])
    assert "LongestFirst" in str(result)
    assert result._repr_html_().startswith("<div>")
    result.report(tmp_path / "report.html")
    assert "LongestFirst" in (tmp_path / "report.html").read_text(encoding="utf-8")


class Raises:
    """Fails at its first question."""

    def rank(self, request: Any) -> float:
        raise KeyError("no such thing")


class Draws:
    """Answers without sense."""

    def rank(self, request: Any) -> float:
        return float("nan")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"orderings": ["fifi"]}, "unknown ordering policy 'fifi'"),
        ({"orderings": "fcfs"}, r"write \['fcfs'\]"),
        ({"orderings": []}, "name at least one"),
        ({"orderings": [int]}, "lacks the method rank"),
        ({"orderings": [Raises]}, "'Raises' raised KeyError"),
        ({"orderings": [Draws()]}, "'Draws'"),
        ({"loads": [0]}, "0 is no share"),
        ({"loads": [0.9, 0.9]}, "each once"),
        ({"replicas": 0}, "at least 1"),
        ({"routings": ["round-robin"]}, "give replicas"),
        ({"slo": "ttft"}, "has no '='"),
        ({"repeats": 2}, "take at least 3"),
    ],
)
def test_a_mistake_is_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(hw.UserMistake, match=said) as caught:
        compared(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"hardware": "abacus"}, {"model": "llama-3.1-405b", "tp": 1}, {"kv_tokens": 3}])
def test_a_replica_that_cannot_be_is_refused_when_it_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(hw.UserMistake):
        hw.Replica(**options)


def test_a_calibration_replaces_hardware(tmp_path: Path) -> None:
    with pytest.raises(hw.UserMistake, match="leave tp out"):
        hw.Replica(calibration=tmp_path / "c.toml", tp=2)


def test_the_slo_is_that_of_the_command_line() -> None:
    assert compared(orderings=["fcfs"]).comparison.slo == compared(orderings=["fcfs"], slo=DEFAULT_SLO).comparison.slo


def test_importing_headway_loads_nothing_heavy() -> None:
    code = "import sys, headway; headway.__version__; sys.exit('numpy' in sys.modules or 'typer' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(hw.__all__) <= set(dir(hw))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hw.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(("every_ms", "said"), [(1_000, "little waits"), (5, "no order helps all")])
def test_a_trace_is_placed_by_its_own_load(every_ms: int, said: str) -> None:
    rows = [{"timestamp": every_ms * row, "input_length": 4_000, "output_length": 20} for row in range(150)]
    result = hw.compare(hw.load_trace(rows), orderings=["fcfs"], progress=False, jobs=1)
    load_1 = hw.compare(hw.load_trace(rows), orderings=["fcfs"], loads=[0.9], progress=False, jobs=1)
    rate = load_1.comparison.saturation["requests_per_second"]  # type: ignore[index]
    assert result.comparison.own_load == pytest.approx(1_000 / every_ms / rate)  # type: ignore[operator]
    assert said in str(result)
    assert load_1.comparison.own_load is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"loads": 0.9}, r"loads is a list of numbers: write \[0.9\]"),
        ({"loads": "0.9"}, "loads is a list"),
        ({"loads": ["0.9"]}, "loads: '0.9'"),
        ({"loads": [True]}, "loads: True"),
        ({"loads": [None]}, "loads: None"),
        ({"replicas": 1.5}, "replicas: 1.5"),
        ({"replicas": 10**6}, "replicas must be at most 1,024"),
        ({"replicas": 2, "routings": "least-work"}, "routings is a list"),
        ({"replicas": 2, "routings": [object]}, "routings: "),
        ({"requests": 2.5}, "requests: 2.5"),
        ({"requests": 0}, "requests must be at least 1"),
        ({"seed": "a"}, "seed: 'a'"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"slo": None}, "slo: None"),
        ({"over_context": "ignore"}, "over_context: 'ignore'"),
        ({"replica": "h100"}, "replica: 'h100'"),
        ({"orderings": 5}, "orderings is a list"),
    ],
)
def test_an_argument_of_another_kind_is_a_mistake_in_a_sentence(options: dict[str, Any], named: str) -> None:
    with pytest.raises(hw.UserMistake, match=named):
        hw.compare(hw.load_trace(ROWS), **{"progress": False, "jobs": 1, "orderings": ["fcfs"]} | options)


@pytest.mark.parametrize(
    "limits", [{"kv_tokens": 2.5}, {"max_num_seqs": "3"}, {"async_scheduling": "no"}, {"hardware": None}]
)
def test_a_limit_of_another_kind_is_a_mistake_in_a_sentence(limits: dict[str, Any]) -> None:
    with pytest.raises(hw.UserMistake, match=next(iter(limits))):
        hw.Replica(**limits)


def test_loads_may_be_an_array() -> None:
    assert [row["load"] for row in compared(orderings=["fcfs"], loads=np.array([0.5, 0.9])).rows()] == [0.5, 0.9]
