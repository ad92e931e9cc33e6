"""`headway compare`: what it prints, what it writes, and what repeats by seed."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import Said

Headway = Callable[..., Said]

SPREADS = (
    "ttft_seconds",
    "ttft_short_half_seconds",
    "ttft_longest_5pct_seconds",
    "tpot_seconds",
    "e2e_seconds",
    "normalised_latency_seconds_per_token",
)
NUMBERS = (
    "goodput",
    "throughput_tokens_per_second",
    "preemptions",
    "recomputed_tokens",
    "makespan_seconds",
    "wall_seconds",
)


def without_wall_times(text: str) -> Any:
    content = json.loads(text)
    for run in content["runs"]:
        del run["wall_seconds"]
    return content


def test_the_contract_for_scripts(headway: Headway, small_trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    policies = ("--policy", "fcfs", "--policy", "smallest-volume-first")
    options = ("--load", "1.1", "--requests", "150", "--seed", "0", "--json", out)
    said = headway("compare", small_trace, *policies, *options)
    assert said.status == 0, said.err
    content = json.loads(out.read_text())
    assert content["schema"] == 1
    assert content["trace"]["name"] == "small"
    assert content["replica"]["model"] == "llama-3.1-8b"
    assert [run["policy"] for run in content["runs"]] == ["fcfs", "smallest-volume-first"]
    for run in content["runs"]:
        assert (run["load"], run["requests"], run["completed"]) == (1.1, 150, 150)
        for name in SPREADS:
            assert set(run[name]) == {"mean", "p50", "p90", "p99"}
            assert all(value > 0 and math.isfinite(value) for value in run[name].values())
        for name in NUMBERS:
            assert isinstance(run[name], int | float)
        assert run["times_lower_bound"] >= 1
    assert "fcfs" in said.out
    assert "TTFT" in said.out


@pytest.mark.slow
def test_stdout_and_numbers_are_the_same_for_the_same_seed(headway: Headway, small_trace: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    line = ("compare", small_trace, "--load", "0.9", "--policy", "all", "--prediction", "oracle-noisy")
    one = headway(*line, "--json", first, "--jobs", "1")
    numbers = without_wall_times(first.read_text())
    other = headway(*line, "--json", second, "--jobs", "2")
    assert one.status == other.status == 0, one.err
    assert one.out == other.out
    again = without_wall_times(second.read_text())
    again["command"] = numbers["command"]
    assert numbers == again


def test_repeats_are_seeds_of_a_workload_and_blocks_of_a_file(headway: Headway, small_trace: Path) -> None:
    line = ("--requests", "100", "--policy", "fcfs", "--policy", "random", "--repeats", "3", "--json", "-")
    of_seeds = json.loads(headway("compare", "chat", "--seed", "4", *line).out)
    assert (of_seeds["repeats"]["kind"], of_seeds["repeats"]["seeds"]) == ("seeds", [4, 5, 6])
    assert of_seeds["runs"][0]["requests"] == 300
    of_blocks = json.loads(headway("compare", small_trace, *line).out)
    assert (of_blocks["repeats"]["kind"], of_blocks["runs"][0]["requests"]) == ("blocks", 100)
    assert headway("compare", "chat", *line[:-3], "2").err.startswith("headway: 2 repeats are too few")


def test_another_seed_draws_another_workload(headway: Headway) -> None:
    line = ("compare", "chat", "--requests", "100", "--policy", "fcfs")
    assert headway(*line, "--seed", "1").out != headway(*line, "--seed", "2").out


def test_a_workload_runs_at_nine_tenths_unless_told(headway: Headway) -> None:
    line = ("compare", "chat", "--requests", "100", "--policy", "fcfs", "--json", "-")
    assert json.loads(headway(*line).out)["runs"][0]["load"] == 0.9
    assert json.loads(headway(*line, "--load", "0.5").out)["runs"][0]["load"] == 0.5


def test_json_on_stdout_comes_alone(headway: Headway, small_trace: Path) -> None:
    said = headway("compare", small_trace, "--policy", "fcfs", "--json", "-")
    assert json.loads(said.out)["runs"][0]["load"] is None


def test_several_traces_are_a_list(headway: Headway, small_trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    said = headway("compare", small_trace, "chat", "--requests", "50", "--policy", "fcfs", "--json", out)
    assert said.status == 0, said.err
    content = json.loads(out.read_text())
    assert content["schema"] == 1
    assert [one["trace"]["name"] for one in content["comparisons"]] == ["small", "chat"]


def test_a_sweep_holds_every_load(headway: Headway, small_trace: Path) -> None:
    said = headway("compare", small_trace, "--loads", "0.5,1.2", "--policy", "fcfs", "--json", "-")
    content = json.loads(said.out)
    assert [run["load"] for run in content["runs"]] == [0.5, 1.2]
    assert content["saturation"]["requests_per_second"] > 0


def test_the_saturation_is_printed_with_its_definition(headway: Headway, small_trace: Path) -> None:
    said = headway("compare", small_trace, "--load", "0.5", "--policy", "fcfs")
    assert "requests/s" in said.out
    text = " ".join(said.out.split())
    assert "while requests always wait" in text
    assert "over the quarters of these requests)" in text


def test_the_copies_of_sessions_and_the_busy_share_are_printed(headway: Headway, tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    calls = [
        {"timestamp": 4000 * session + turn, "input_length": 100, "output_length": 20, "session_id": f"s{session}"}
        | ({"think_time_ms": 20_000} if turn else {})
        for session in range(5)
        for turn in range(3)
    ]
    path.write_text("".join(json.dumps(call) + "\n" for call in calls))
    line = ("compare", path, "--load", "0.9", "--policy", "fcfs", "--max-num-seqs", "1")
    text = " ".join(headway(*line).out.split())
    copies = int(text.partition("(sessions in ")[2].split()[0])
    assert copies > 1
    assert "copies, replica busy " in text
    content = json.loads(headway(*line, "--json", "-").out)
    assert content["saturation"]["copies"] == copies
    assert content["runs"][0]["requests"] == copies * content["trace"]["requests"] == copies * 15


def test_bundles_from_a_file_stand_beside_policies(headway: Headway, small_trace: Path, tmp_path: Path) -> None:
    bundles = tmp_path / "mine.toml"
    bundles.write_text('[bundle.mine]\nordering = "shortest-job-first"\nprediction = "oracle"\n')
    said = headway("compare", small_trace, "--bundles", bundles, "--policy", "fcfs", "--json", "-")
    runs = json.loads(said.out)["runs"]
    assert [run["policy"] for run in runs] == ["fcfs", "mine"]
    assert runs[1]["bundle"]["prediction"] == {"name": "oracle", "options": {}}
    assert runs[0]["bundle"]["prediction"] == {"name": "running-mean", "options": {}}


def test_what_never_fits_is_refused_and_counted(headway: Headway, small_trace: Path) -> None:
    line = ("compare", small_trace, "--policy", "fcfs", "--kv-tokens", "4096", "--over-context", "refuse")
    said = headway(*line, "--json", "-")
    (run,) = json.loads(said.out)["runs"]
    assert (run["completed"], run["refused"]) == (180, 20)
    assert sum(run["refused_reasons"].values()) == 20
    assert run["goodput"] <= 0.9


def test_a_preempted_request_finds_its_own_blocks_unless_told(headway: Headway, small_trace: Path) -> None:
    line = ("compare", small_trace, "--policy", "fcfs", "--kv-tokens", "8000", "--load", "1.1", "--json", "-")

    def recomputed(*options: str) -> tuple[bool, int]:
        content = json.loads(headway(*line, *options).out)
        return content["replica"]["rules"]["prefix_caching"], content["runs"][0]["recomputed_tokens"]

    (_, plain), cached = recomputed("--prefix-caching", "off"), recomputed()
    assert cached == recomputed("--prefix-caching", "on")
    assert 0 < 2 * cached[1] < plain


def test_over_context_is_refused_or_cut_when_asked(headway: Headway, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    lengths = (100, 200_000, 100)
    path.write_text(
        "".join(f'{{"timestamp": {i}, "input_length": {n}, "output_length": 5}}\n' for i, n in enumerate(lengths))
    )
    line = ("compare", path, "--policy", "fcfs", "--json", "-", "--over-context")
    assert json.loads(headway(*line, "refuse").out)["runs"][0]["refused"] == 1
    assert json.loads(headway(*line, "cut").out)["runs"][0]["completed"] == 3
    told = headway(*line, "error")
    assert told.status == 2
    assert "line 2" in told.err
    assert "--over-context" in told.err


def test_kv_memory_too_small_for_a_request_is_past_the_context_too(headway: Headway, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(
        "".join(f'{{"timestamp": {n}, "input_length": {n}, "output_length": 5}}\n' for n in (100, 2_000, 3_000))
    )
    line = ("compare", path, "--policy", "fcfs", "--json", "-", "--kv-tokens")
    told = headway(*line, "1600")
    assert told.status == 2
    assert "line 2 (and 1 more)" in told.err
    assert "past the replica's KV memory of 1,601" in told.err
    assert json.loads(headway(*line, "1600", "--over-context", "refuse").out)["runs"][0]["refused"] == 2
    assert json.loads(headway(*line, "1600", "--over-context", "cut").out)["runs"][0]["completed"] == 3
    told = headway(*line, "48", "--over-context", "refuse")
    assert told.status == 2
    assert "every request is past the replica's KV memory of 49 tokens, the shortest with 105" in told.err


def test_sessions_run_in_a_closed_loop_unless_told(headway: Headway, tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    calls = [
        {"timestamp": 10 * turn, "input_length": 100, "output_length": 20, "session_id": "a", "turn": turn}
        | ({"think_time_ms": 5000} if turn else {})
        for turn in range(4)
    ]
    path.write_text("".join(json.dumps(call) + "\n" for call in calls))
    line = ("compare", path, "--policy", "fcfs", "--json", "-")
    closed, opened = (json.loads(headway(*line, *more).out) for more in ((), ("--open-loop",)))
    assert (closed["trace"]["closed_loop"], opened["trace"]["closed_loop"]) == (True, False)
    assert closed["runs"][0]["makespan_seconds"] > 15 > opened["runs"][0]["makespan_seconds"]


def test_the_later_turns_of_a_refused_one_are_refused_too(headway: Headway, tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    calls = [
        {"timestamp": 10 * turn, "input_length": 200_000 if turn == 1 else 100, "output_length": 20, "session_id": "a"}
        | ({"think_time_ms": 5000} if turn else {})
        for turn in range(4)
    ]
    path.write_text("".join(json.dumps(call) + "\n" for call in calls))
    said = headway("compare", path, "--policy", "fcfs", "--over-context", "refuse", "--json", "-")
    (run,) = json.loads(said.out)["runs"]
    assert (run["completed"], run["refused"], run["unfinished"]) == (1, 3, 0)


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system there has no names that are not UTF-8")
def test_a_trace_whose_name_is_not_utf8_has_numbers_and_a_report(
    headway: Headway, small_trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = small_trace.rename(small_trace.parent / os.fsdecode(b"day-\xff.jsonl"))
    numbers, page = odd.parent / "n.json", odd.parent / "r.html"
    line = ("compare", str(odd), "--policy", "fcfs", "--json", str(numbers), "--report", str(page))
    monkeypatch.setattr("sys.argv", ["headway", *line])
    said = headway(*line)
    assert said.status == 0, said.err
    assert json.loads(numbers.read_text(encoding="utf-8"))["trace"]["name"] == "day-?"
    assert "day-?" in page.read_text(encoding="utf-8")


def test_earliest_deadline_first_has_deadlines_to_read(headway: Headway, small_trace: Path) -> None:
    """Everybody has the same allowance, the TTFT SLO, so the order is that of arrival."""
    said = headway(
        "compare",
        small_trace,
        "--policy",
        "fcfs",
        "--policy",
        "earliest-deadline-first",
        "--load",
        "1.2",
        "--json",
        "-",
    )
    fcfs, edf = json.loads(said.out)["runs"]
    assert fcfs["ttft_seconds"] == edf["ttft_seconds"]


def test_a_report_is_written_whole(headway: Headway, small_trace: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    said = headway("compare", small_trace, "--policy", "fcfs", "--policy", "random", "--report", report)
    assert said.status == 0, said.err
    text = report.read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>")
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert str(report) in said.err


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_a_folder_that_is_missing_is_told_before_the_work(
    headway: Headway, small_trace: Path, tmp_path: Path, option: str
) -> None:
    said = headway("compare", small_trace, option, tmp_path / "none" / "out")
    assert said.status == 2
    assert "does not exist" in said.err
    assert said.out == ""


def test_what_the_plugin_and_the_operator_set_is_simulated_and_named(
    headway: Headway, small_trace: Path, tmp_path: Path
) -> None:
    line = ("compare", small_trace, "--requests", 60, "--policy", "fcfs", "--policy", "priced-work")
    limits = ("--block-tokens", 32, "--watermark", 0.25, "--kv-precision", "fp8", "--long-prefill-token-threshold", 64)
    plugin = ("--tuning", "self-tuned", "--guard", "--long-prefill-token-threshold-adaptive")
    out = tmp_path / "out.json"
    said = headway(*line, *limits, *plugin, "--json", out)
    assert said.status == 0, said.err
    shown = " ".join(said.out.split())
    rules = "block_tokens 32, long_prefill_token_threshold 64, long_prefill_token_threshold_adaptive on, watermark 0.25"
    assert f"engine {rules}, KV cache fp8 " in shown
    assert "self-tuned threshold: fcfs, priced-work; do-no-harm guard: fcfs, priced-work " in shown
    content = json.loads(out.read_text())
    assert content["replica"]["profile"]["kv_precision"] == "fp8"
    assert content["replica"]["rules"]["watermark"] == 0.25
    assert content["replica"]["rules"]["block_tokens"] == 32
    for run in content["runs"]:
        assert run["bundle"]["tuning"] == "self-tuned"
        assert run["bundle"]["guard"]["harm_ratio"] == 2.0
    plain = headway(*line)
    assert "engine" not in plain.out.split("policy")[0]
    assert "plug-in" not in plain.out


def test_a_prefill_budget_and_displacement_are_simulated_and_named(
    headway: Headway, small_trace: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    plugin = ("--tuning", "prefill-budget", "--tpot-bound", 0.03, "--displace")
    said = headway("compare", small_trace, "--requests", 60, "--policy", "priority", *plugin, "--json", out)
    assert said.status == 0, said.err
    assert "prefill budget: priority; displacement: priority " in " ".join(said.out.split())
    bundle = json.loads(out.read_text())["runs"][0]["bundle"]
    assert bundle["tuning"] == "prefill-budget"
    assert bundle["tpot_seconds"] == 0.03
    assert bundle["displace"] == {"times": 2, "cooldown_seconds": 1.0}


def test_several_replicas_are_compared_by_routing_and_order(
    headway: Headway, small_trace: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    routings = ("--routing", "round-robin", "--routing", "cached-prefix")
    options = ("--load", "0.9", "--requests", "150", "--seed", "0", "--json", out)
    said = headway("compare", small_trace, "--replicas", "4", *routings, "--ordering", "fcfs", *options)
    assert said.status == 0, said.err
    content = json.loads(out.read_text())
    assert [replica["id"] for replica in content["fleet"]] == [f"replica-{number}" for number in range(4)]
    assert [(run["routing"], run["ordering"]) for run in content["runs"]] == [
        ("round-robin", "fcfs"),
        ("cached-prefix", "fcfs"),
    ]
    for run in content["runs"]:
        assert (run["queue"], run["load"], run["completed"]) == ("gateway", 0.9, 150)
        assert 1 <= run["load_imbalance"] <= 4
        assert 0 <= run["prefix_hit_share"] < 1
        assert sum(replica["completed"] for replica in run["replicas"]) == 150
        for replica in run["replicas"]:
            assert replica["requests"] == replica["completed"]
            assert 0 <= replica["busy_share"] <= 1
    assert "round-robin, fcfs" in said.out
    assert "imbalance" in said.out
    assert "4 equal replicas; requests wait in one queue in front of the replicas" in said.out


def test_rescheduling_is_compared_where_it_is_asked_for(headway: Headway, small_trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    fleet = ("--replicas", "3", "--queue", "replicas", "--routing", "round-robin", "--ordering", "fcfs")
    options = ("--load", "0.9", "--requests", "150", "--seed", "0", "--json", out)
    plain = headway("compare", small_trace, *fleet, *options)
    (before,) = json.loads(out.read_text())["runs"]
    assert "rescheduling" not in before
    assert "moves" not in plain.out
    chosen = ("--rescheduling", "stay", "--rescheduling", "take-back", "--rescheduling", "migrate")
    said = headway("compare", small_trace, *fleet, *chosen, "--migration-gib", "1", *options)
    assert said.status == 0, said.err
    runs = json.loads(out.read_text())["runs"]
    assert [run["rescheduling"] for run in runs] == ["stay", "take-back", "migrate"]
    assert [run["completed"] for run in runs] == [150] * 3
    assert runs[0]["moves"] == 0 < runs[1]["moves"]
    same = {"policy", "rescheduling", "moves", "wall_seconds"}
    assert {key: value for key, value in runs[0].items() if key not in same} == {
        key: value for key, value in before.items() if key not in same
    }
    assert "take-back, fcfs" in said.out
    assert "rescheduling stay, take-back, migrate" in " ".join(said.out.split())


def test_a_fleet_file_names_unequal_replicas(headway: Headway, small_trace: Path, tmp_path: Path) -> None:
    fleet, out = tmp_path / "fleet.toml", tmp_path / "out.json"
    fleet.write_text(
        '[[replica]]\nname = "big"\ncount = 2\n[[replica]]\nname = "small"\nhardware = "l40s"\nprecision = "fp8"\n'
    )
    options = ("--queue", "replicas", "--signal-age", "500ms", "--ordering", "fcfs", "--json", out)
    said = headway("compare", small_trace, "--fleet", fleet, "--requests", "60", "--load", "0.5", *options)
    assert said.status == 0, said.err
    content = json.loads(out.read_text())
    assert [(replica["id"], replica["hardware"]) for replica in content["fleet"]] == [
        ("big-0", "h100"),
        ("big-1", "h100"),
        ("small-0", "l40s"),
    ]
    assert content["signal_seconds"] == 0.5
    (run,) = content["runs"]
    assert (run["queue"], run["completed"], run["times_lower_bound"]) == ("replicas", 60, None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--routing", "least-work"], "--routing is for several replicas: give --replicas N or --fleet FILE.toml too"),
        (["--replicas", "0"], "--replicas: a fleet has from 1 to 1024 replicas, got 0"),
        (["--replicas", "2", "--routing", "nearest"], "unknown routing policy 'nearest'"),
        (["--replicas", "2", "--routing", "rr", "--routing", "round-robin"], "round-robin is there twice"),
        (["--rescheduling", "stay"], "--rescheduling is for several replicas: give --replicas N or --fleet FILE.toml"),
        (["--replicas", "2", "--rescheduling", "take"], "unknown rescheduling policy 'take'"),
        (
            ["--replicas", "2", "--migration-gib", "0"],
            "--migration-gib: a link copies from 0.001 to 10000 GiB/s, got 0",
        ),
        (["--replicas", "2", "--signal-age", "soon"], "write it like 1s or 500ms"),
        (["--replicas", "2", "--admission", "peak-check"], "admission is decided in the engines"),
        (["--replicas", "2", "--model", "llama-3.1-70b"], "does not fit on"),
    ],
)
def test_a_wrong_fleet_is_one_sentence(headway: Headway, small_trace: Path, options: list[str], sentence: str) -> None:
    said = headway("compare", small_trace, *options, *(["--tp", "1"] if "--model" in options else []))
    assert said.status == 2
    assert sentence in " ".join(said.err.split())
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it names no replica; write a table [[replica]]"),
        ("[[replica]]\ncount = 0\n", "replica[0]: count: a fleet has from 1 to 1024 replicas, got 0"),
        ("[[replica]]\nhardwear = 'h100'\n", "replica[0]: unknown key hardwear"),
        (
            "[[replica]]\nmodel = 'llama-3.1-70b'\nhardware = 'l40s'\ntp = 1\n",
            "replica[0]: llama-3.1-70b in bf16 does not fit",
        ),
        ("[[replica]]\nname = 'a b'\n", "replica[0]: name must be of letters"),
        (
            "[[replica]]\nfailures = [{at_seconds = 5, drain_seconds = 9}]\n",
            "replica[0]: replica-0 drains before time 0, or before it serves again, to fail at 5 s",
        ),
        (
            "[[replica]]\nfailures = [{at_seconds = -1}]\n",
            "replica[0]: failures[0].at_seconds must be from 0 to 8,640,000, got -1",
        ),
        (
            "[[replica]]\nfailures = [{at_seconds = 1, replica = 1}]\n",
            "replica[0]: failures[0].replica must be one of 0 to 0",
        ),
        (
            "[[replica]]\nfailures = [{at_seconds = 5, down_seconds = 9}, {at_seconds = 7}]\n",
            "replica[0]: replica-0 fails at 7 s, before it serves again",
        ),
        ("[[replica]]\nadapters = {resident_max = 0}\n", "replica[0]: adapters.resident_max must be at least 1, got 0"),
        (
            "[[replica]]\nadapters = {paging = 'none'}\n",
            "replica[0]: adapters.paging must be one of 'slots'",
        ),
        ("[[replica]]\nadapters = 8\n", "replica[0]: adapters must be a table of resident_max, rank"),
        ("[replicas]\n", "'replicas' is no key of a fleet file"),
    ],
)
def test_a_wrong_fleet_file_is_one_sentence(
    headway: Headway, small_trace: Path, tmp_path: Path, text: str, sentence: str
) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(text)
    said = headway("compare", small_trace, "--fleet", fleet)
    assert said.status == 2
    assert f"--fleet {fleet}: {sentence}" in " ".join(said.err.split())


def test_adapters_of_a_fleet_are_drawn_and_refused_where_none_has_them(
    headway: Headway, small_trace: Path, tmp_path: Path
) -> None:
    fleet, out = tmp_path / "fleet.toml", tmp_path / "out.json"
    served = ", ".join(f"'adapter-{rank}'" for rank in range(4))
    fleet.write_text(f"[[replica]]\nadapters = {{resident_max = 2, rank = 64, names = [{served}]}}\n")
    options = ("--adapters", "5", "--ordering", "adapter-clusters", "--json", out)
    said = headway("compare", small_trace, "--fleet", fleet, "--requests", "60", *options)
    assert said.status == 0, said.err
    assert "adapters 2 in slots, each of 52 KV blocks and loaded in 6.3 ms" in " ".join(said.out.split())
    (run,) = json.loads(out.read_text())["runs"]
    assert run["refused_reasons"] == {"no replica has the adapter 'adapter-4'": run["refused"]}
    assert run["completed"] + run["refused"] == 60
    assert 0 < run["refused"] < 20


def test_load_one_counts_a_request_at_the_replicas_that_serve_it(
    headway: Headway, small_trace: Path, tmp_path: Path
) -> None:
    """Each of two replicas serves one of two adapters, and a third one none: together they serve what two do."""
    fleet, out = tmp_path / "fleet.toml", tmp_path / "out.json"
    options = ("--adapters", "2", "--ordering", "fcfs", "--load", "0.9", "--json", out)

    def load_one(*served: str) -> float:
        fleet.write_text("".join(f"[[replica]]\nadapters = {{names = [{names}]}}\n" for names in served))
        said = headway("compare", small_trace, "--fleet", fleet, *options)
        assert said.status == 0, said.err
        return float(json.loads(out.read_text())["saturation"]["requests_per_second"])

    both = "'adapter-0', 'adapter-1'"
    together = load_one(both, both)
    assert load_one("'adapter-0'", "'adapter-1'") == pytest.approx(together, rel=0.25)
    assert load_one(both, both, "'adapter-9'") == together
    fleet.write_text("[[replica]]\nadapters = {names = ['adapter-9']}\n")
    said = headway("compare", small_trace, "--fleet", fleet, *options)
    assert said.status == 2
    assert "are refused because no replica has the adapter 'adapter-" in " ".join(said.err.split())


def test_a_fleet_of_one_is_as_far_from_the_bound_as_one_replica(
    headway: Headway, small_trace: Path, tmp_path: Path
) -> None:
    out, found = tmp_path / "out.json", []
    for fleet in ((), ("--replicas", "1", "--queue", "replicas")):
        said = headway("compare", small_trace, *fleet, "--ordering", "fcfs", "--load", "0.9", "--json", out)
        assert said.status == 0, said.err
        found.append(json.loads(out.read_text())["runs"][0]["times_lower_bound"])
    assert found[0] == found[1] >= 1


def test_a_fleet_that_is_never_up_completes_nothing(headway: Headway, small_trace: Path, tmp_path: Path) -> None:
    fleet, out = tmp_path / "fleet.toml", tmp_path / "out.json"
    fleet.write_text("[[replica]]\nfailures = [{at_seconds = 0}]\n")
    said = headway("compare", small_trace, "--fleet", fleet, "--ordering", "fcfs", "--load", "0.9", "--json", out)
    assert said.status == 0, said.err
    (run,) = json.loads(out.read_text())["runs"]
    assert (run["completed"], run["times_lower_bound"]) == (0, None)


def test_a_replica_that_fails_loses_requests_and_comes_back(
    headway: Headway, small_trace: Path, tmp_path: Path
) -> None:
    fleet, out = tmp_path / "fleet.toml", tmp_path / "out.json"
    failures = "failures = [{at_seconds = 4, down_seconds = 1, replica = 1}]"
    fleet.write_text(f"[[replica]]\ncount = 2\nhardware = 'l4'\nstart_seconds = 2\n{failures}\n")
    options = ("--ordering", "fcfs", "--requests", "150", "--json", out)
    said = headway("compare", small_trace, "--fleet", fleet, *options)
    assert said.status == 0, said.err
    (run,) = json.loads(out.read_text())["runs"]
    assert run["failed"] > 0
    assert run["completed"] + run["failed"] == 150
    assert run["times_lower_bound"] is None, "what fails is in no mean, so completed requests may be below the bound"
    assert run["failed_reasons"] == {"replica-1 failed after its first token": run["failed"]}
    assert run["replicas"][1]["completed"] > 0


def test_a_twin_is_a_row_that_says_what_it_chose(headway: Headway, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    given = ("chat-and-documents", "--requests", "300", "--load", "1.2", "--ordering", "fcfs", "--ordering", "auto")
    said = headway("compare", *given, "--objective", "goodput(ttft=1s)", "--json", out)
    assert said.status == 0, said.err
    assert "auto: 0 s: begins with gittins" in said.err
    fcfs, auto = json.loads(out.read_text())["runs"]
    assert "looks" not in fcfs
    assert auto["looks"][0].startswith("0 s: begins with gittins: on other traffic it did best by goodput(ttft=1s)")
    assert auto["bundle"]["auto"] == {"objective": "goodput(ttft=1s)", "slo": {"ttft": 1.0}}
    assert auto["ordering"] == "highest-response-ratio", "what it returns to"
    assert auto["ttft_seconds"]["mean"] < fcfs["ttft_seconds"]["mean"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--ordering", "fcfs", "--objective", "mean-ttft"), "--objective is for the twin of --ordering auto"),
        (("--ordering", "auto", "--objective", "fast"), "--objective 'fast' is unknown"),
        (("--ordering", "auto", "--ordering", "auto"), "--ordering auto is there twice"),
        (("--ordering", "auto", "--replicas", "2"), "auto: a twin is simulated on one replica"),
    ],
)
def test_a_twin_that_cannot_be_simulated_is_one_sentence(
    headway: Headway, options: tuple[str, ...], sentence: str
) -> None:
    said = headway("compare", "chat-and-documents", "--requests", "50", *options)
    assert said.status == 2
    assert sentence in said.err
    assert "Traceback" not in said.err
