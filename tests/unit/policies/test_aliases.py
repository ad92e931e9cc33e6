"""Aliases: accepted wherever a policy is named, and written out from there on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headway.bench.experiment.bundles import Bundle, named_bundles, read_bundles
from headway.bench.user_mistake import UserMistake
from headway.cli.app import run
from headway.gateway.settings_file import read_settings
from headway.policies.catalog import find
from headway.scheduling.bundle import bundle, name_and_options
from headway.vllm_plugin.config import read_config
from tests.unit.policies.test_catalog import COSTS


def test_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace, out = tmp_path / "small.jsonl", tmp_path / "out.json"
    trace.write_text("".join(f'{{"timestamp": {at}, "input_length": 9, "output_length": 3}}\n' for at in range(20)))
    assert run(["compare", str(trace), "--policy", "svf", "--policy", "vtc/sjf", "--json", str(out)]) == 0
    text = out.read_text()
    assert '"smallest-volume-first"' in text
    assert '"fair-share/shortest-job-first"' in text
    without_command = {key: value for key, value in json.loads(text).items() if key != "command"}
    assert not any(alias in json.dumps(without_command) for alias in ("svf", "vtc", "sjf"))
    assert run(["explain", "hrrn"]) == 0
    assert "short name  hrrn" in capsys.readouterr().out


def test_in_bundles(tmp_path: Path) -> None:
    assert Bundle("label", ordering="edf").ordering == "earliest-deadline-first"
    (found,) = named_bundles(["vtc/svf"], Bundle("fcfs"))
    assert (found.label, found.ordering) == ("fair-share/smallest-volume-first",) * 2
    with pytest.raises(UserMistake, match="is there twice"):
        named_bundles(["svf", "smallest-volume-first"], Bundle("fcfs"))
    path = tmp_path / "bundles.toml"
    path.write_text('[bundle.mine]\nordering = {name = "hrrn", options = {lane_width = 1.5}}\n')
    assert read_bundles(path, Bundle("fcfs"))[0].ordering == "highest-response-ratio"


def test_in_the_gateways_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('[policies]\nordering = "vtc/spf"\nrouting = "p2c"\n[[replica]]\nurl = "http://127.0.0.1:1"\n')
    policies = read_settings(path).policies
    assert (policies.ordering, policies.routing) == ("fair-share/shortest-prompt-first", "power-of-two")


@pytest.mark.parametrize("value", ["svf", {"name": "svf", "options": {}}])
def test_in_the_plug_in(value: object) -> None:
    assert read_config({"headway": {"ordering": value}}, environ={}).ordering == "smallest-volume-first"


def test_in_code() -> None:
    policies = bundle(ordering="vtc/hrrn", costs=COSTS, seed=0)
    assert type(policies.ordering).__name__ == "FairShare"
    assert name_and_options("ordering", "lpm", "ordering") == ("longest-prefix-match", {})


@pytest.mark.parametrize("line", [["compare", "--policy", "hrnn"], ["explain", "hrnn"]])
def test_a_slip_of_an_alias_is_guessed(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line) == 2
    assert "did you mean 'hrrn'?" in capsys.readouterr().err


def test_two_letters_that_changed_places_are_guessed_before_another_letter() -> None:
    with pytest.raises(ValueError, match="'sfj': did you mean 'sjf'"):
        find("ordering", "sfj")
