"""`headway tune` and `headway explain --state`: a search, its files, and sentences for what users mistype."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="tuning needs the extra 'tune'")

Headway = Callable[..., Any]
SMALL = ("chat-and-documents", "--requests", 400, "--load", "1.0", "--trials", 3)


def test_a_search_writes_a_bundle_that_compare_reads_and_a_state_that_explain_draws(
    headway: Headway, tmp_path: Path
) -> None:
    bundle, state = tmp_path / "tuned.toml", tmp_path / "ewsjf.state"
    said = headway("tune", *SMALL, "--out", bundle, "--state", state, "--set", "lanes_max=12", "--range", "b_u=0.5:2")
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["trial", "0", "1", "2"]
    assert "the defaults" in lines[1]
    assert "outside the search" in lines[-1]
    text = bundle.read_text()
    assert "lanes_max = 12" in text
    compared = headway("compare", "chat-and-documents", "--requests", 100, "--bundles", bundle, "--policy", "ewsjf")
    assert compared.status == 0, compared.err
    assert "ewsjf-tuned" in compared.out
    drawn = headway("explain", "ewsjf", "--state", state)
    assert drawn.status == 0, drawn.err
    assert "280 requests by uncached tokens, log scale" in drawn.out
    assert "prefill cost: exponent" in drawn.out
    assert "tuning: 3 trials" in drawn.out


@pytest.mark.slow
def test_the_same_seed_is_the_same_search_and_a_state_goes_on(headway: Headway, tmp_path: Path) -> None:
    state = tmp_path / "s"
    first, second = headway("tune", *SMALL), headway("tune", *SMALL, "--state", state)
    assert first.out == second.out
    more = headway("tune", *SMALL, "--state", state)
    assert "going on from 3 trials" in more.err
    assert more.out.splitlines()[:4] == first.out.splitlines()[:4]
    assert more.out.splitlines()[6].split()[0] == "5"
    other = headway("tune", *SMALL, "--state", state, "--slo", "ttft=1s")
    assert "are of another problem" in other.err
    state.write_text("half a fi")
    fresh = headway("tune", *SMALL, "--state", state)
    assert fresh.status == 0
    assert "it cannot be read" in fresh.err
    assert fresh.err.count("starting afresh") == 1
    assert fresh.out == first.out


@pytest.mark.parametrize(
    "changed", [("--max-num-seqs", 8), ("--sync",), ("--hardware", "a100"), ("--prefix-caching", "off")]
)
def test_trials_on_another_replica_do_not_count(
    headway: Headway, small_trace: Path, tmp_path: Path, changed: tuple[object, ...]
) -> None:
    lines = [json.loads(line) | {"hash_ids": [1]} for line in small_trace.read_text().splitlines()]
    trace, state = tmp_path / "shared.jsonl", tmp_path / "s"
    trace.write_text("".join(json.dumps(line | {"input_length": 400}) + "\n" for line in lines))
    line = ("tune", trace, "--trials", 1, "--kv-tokens", 200_000)
    assert headway(*line, "--state", state).status == 0
    assert "going on from 1 trials" in headway(*line, "--state", state).err
    assert "of another problem" in headway(*line, *changed, "--state", state).err


def test_a_calibrated_engine_is_tuned_and_is_another_problem(
    headway: Headway, small_trace: Path, tmp_path: Path
) -> None:
    calibration = tmp_path / "mine.toml"
    calibration.write_text(
        'name = "mine"\nsource = "by hand"\nerror = "unknown"\n'
        "[linear]\nfixed_us = 5600.0\ntoken_us = 76.0\ncontext_token_us = 0.13\nrequest_us = 500.0\npair_us = 0.13\n"
        "[engine]\nkv_blocks = 6300\n"
    )
    line = ("tune", small_trace, "--trials", 1, "--state", tmp_path / "s")
    assert headway(*line).status == 0
    calibrated = headway(*line, "--calibration", calibration)
    assert calibrated.status == 0, calibrated.err
    assert "of another problem" in calibrated.err
    assert "6300 KV blocks" in headway(*line).err


def test_trials_on_other_traffic_of_the_same_name_do_not_count(
    headway: Headway, small_trace: Path, tmp_path: Path
) -> None:
    line = ("tune", small_trace, "--trials", 1, "--state", tmp_path / "s")
    assert headway(*line).status == 0
    small_trace.write_text(small_trace.read_text().replace('"input_length": 6000', '"input_length": 9000'))
    assert "of another problem" in headway(*line).err


def test_the_bundle_can_be_read_whatever_was_typed(
    headway: Headway, small_trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, bundle = small_trace.rename(small_trace.parent / "one\ntwo.jsonl"), small_trace.parent / "tuned.toml"
    line = ("tune", str(odd), "--trials", "1", "--out", str(bundle))
    monkeypatch.setattr("sys.argv", ["headway", *line])
    assert headway(*line).status == 0
    assert "ewsjf-tuned" in tomllib.loads(bundle.read_text())["bundle"]


def test_what_is_set_is_not_searched(headway: Headway, small_trace: Path) -> None:
    said = headway("tune", small_trace, "--trials", 3, "--set", "b_u=3", "--set", "lanes_max=5")
    assert said.status == 0, said.err
    values = [line for line in said.out.splitlines() if line.startswith(("    1", "    2", "best:"))]
    assert len(values) == 3
    assert not any("b_u" in line for line in values)
    assert all("a_u" in line for line in values)
    only = ("tune", small_trace, "--policy", "shortest-job-first-aging", "--trials", 1)
    all_set = headway(*only, "--set", "service_seconds_per_second_waited=0.2")
    assert all_set.status == 2
    assert "nothing is left to search" in all_set.err


def test_a_search_that_goes_on_does_not_try_the_same_points_again(headway: Headway, tmp_path: Path) -> None:
    state = tmp_path / "s"
    headway("tune", *SMALL, "--state", state)
    more = headway("tune", *SMALL, "--state", state).out.splitlines()[2:7]
    values = [line.split("s  ", 1)[1] for line in more]
    assert len(set(values)) == len(values) == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--policy", "fcfs"), "fcfs declares no tunable options"),
        (("--policy", "ewsf"), "did you mean 'ewsjf'"),
        (("--range", "b_u"), "write OPTION=LOW:HIGH"),
        (("--range", "nope=1:2"), "no tunable option 'nope'"),
        (("--range", "b_u=2:1"), "must rise"),
        (("--set", "b_u=1", "--range", "b_u=0.5:2"), "b_u is kept by --set and searched by --range"),
        (("--set", "lanes_max"), "write OPTION=VALUE"),
        (("--set", "lanes_max=many"), "must be a whole number"),
        (("--set", "feature=colour"), "must be one of"),
        (("--reward", "best"), "choose from plain, published"),
        (("--slo", "e2e=3s"), "tuning needs a bound on ttft"),
        (("--out", "/nowhere/there.toml"), "does not exist"),
        (("--requests", 40), "at least 72"),
        (("--policy", "shortest-job-first-aging", "--reward", "published"), "use plain"),
    ],
)
def test_mistakes_are_one_sentence(headway: Headway, arguments: tuple[object, ...], said: str) -> None:
    found = headway("tune", "chat", "--requests", 100, "--trials", 1, *arguments)
    assert found.status == 2
    assert said in found.err
    assert "Traceback" not in found.err
    assert len([line for line in found.err.splitlines() if line.startswith("headway: ")]) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file"),
        ("{}", "is not a state file"),
        (
            '{"format": "headway-state", "version": 1, "policy": "ewsjf", "problem": "", "learned": {}, "trials": []}',
            "it holds no learned lanes",
        ),
    ],
)
def test_a_state_that_cannot_be_drawn_is_told(headway: Headway, tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "state"
    if content is not None:
        path.write_text(content)
    found = headway("explain", "ewsjf", "--state", path)
    assert found.status == 2
    assert said in found.err
