"""Bundle files: what they hold, what they may leave out, and each mistake in one sentence."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from headway.bench.experiment.bundles import EXAMPLE, Bundle, named_bundles, read_bundles
from headway.bench.user_mistake import UserMistake
from headway.domain.costs import ServiceCosts
from headway.policies.admission.peak_check import PeakCheck
from headway.policies.catalog import names
from headway.policies.ordering.smallest_volume_first import SmallestVolumeFirst
from headway.scheduling.displacement import DisplaceRules
from headway.scheduling.harm_judge import HarmLimits
from headway.simulator.rules import NO_PLUGIN, PluginRules

TEMPLATE = Bundle("any", prediction="declared-max")


def written(folder: Path, text: str) -> Path:
    path = folder / "bundles.toml"
    path.write_text(text)
    return path


def test_the_example_of_the_help_is_read(tmp_path: Path) -> None:
    (found,) = read_bundles(written(tmp_path, EXAMPLE), TEMPLATE)
    assert found.to_json() == {
        "ordering": {"name": "smallest-volume-first", "options": {}},
        "admission": {"name": "peak-check", "options": {"reserve": 0.1}},
        "preemption": {"name": "latest-admitted", "options": {}},
        "prediction": {"name": "running-mean", "options": {}},
        "offline_ordering": "prefix-groups",
        "tuning": "self-tuned",
        "guard": {"harm_ratio": 3.0, "harm_slack_seconds": 1.0, "harm_seconds": 60.0, "step_back_seconds": 300.0},
    }
    built = found.build(costs=ServiceCosts(1e-4, 1e-2), seed=0, truth=lambda _: 1)
    assert isinstance(built.ordering, SmallestVolumeFirst)
    assert isinstance(built.admission, PeakCheck)


def test_what_a_bundle_leaves_out_is_the_templates(tmp_path: Path) -> None:
    (found,) = read_bundles(written(tmp_path, '[bundle.x]\nordering = "random"'), TEMPLATE)
    assert (found.label, found.ordering, found.prediction) == ("x", "random", "declared-max")


def test_what_the_plugin_does_is_the_templates_or_the_bundles_own(tmp_path: Path) -> None:
    guarded = replace(TEMPLATE, plugin=PluginRules("self-tuned", HarmLimits(harm_ratio=5.0)))
    text = "[bundle.a]\ntuning = 'off'\nguard = false\n[bundle.b]\nguard = true\n[bundle.c]\nordering = 'fcfs'"
    plain, default, as_given = read_bundles(written(tmp_path, text), guarded)
    assert plain.plugin == PluginRules()
    assert default.plugin == PluginRules("self-tuned", HarmLimits())
    assert as_given.plugin == guarded.plugin
    assert read_bundles(written(tmp_path, text), TEMPLATE)[2].plugin == NO_PLUGIN


def test_a_prefill_budget_and_displacement_are_read_and_told(tmp_path: Path) -> None:
    text = "[bundle.a]\ntuning = 'prefill-budget'\ntpot_seconds = 0.08\ndisplace = {times = 3}\n"
    text += "[bundle.b]\ndisplace = true"
    template = replace(TEMPLATE, admission="greedy")
    budget, displaces = read_bundles(written(tmp_path, text), template)
    assert budget.plugin == PluginRules("prefill-budget", displace=DisplaceRules(3), tpot_seconds=0.08)
    assert budget.to_json()["tpot_seconds"] == 0.08
    assert budget.to_json()["displace"] == {"times": 3, "cooldown_seconds": 1.0}
    assert displaces.plugin == PluginRules(displace=DisplaceRules())
    assert "tpot_seconds" not in displaces.to_json()


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("tpot_seconds = 0.1", 'tpot_seconds is read under tuning = "prefill-budget" only'),
        ("tuning = 'prefill-budget'\ntpot_seconds = 0", "tpot_seconds must be a number above 0, got 0"),
        ("displace = 2", "displace must be true, false, or a table such as {times = 2}, got 2"),
        (
            "displace = true\nadmission = 'peak-check'",
            "displace needs the admission policy greedy",
        ),
    ],
)
def test_what_the_plugin_cannot_do_is_one_sentence(tmp_path: Path, table: str, sentence: str) -> None:
    with pytest.raises(UserMistake, match=re.escape(sentence)):
        read_bundles(written(tmp_path, f"[bundle.x]\n{table}"), replace(TEMPLATE, admission="greedy"))


def test_all_is_every_ordering_once() -> None:
    assert [one.label for one in named_bundles(["fcfs", "all"], TEMPLATE)] == names("ordering")


def test_each_build_is_fresh() -> None:
    found = Bundle("fcfs")
    first, second = (found.build(costs=ServiceCosts(1e-4, 1e-2), seed=0, truth=lambda _: 1) for _ in range(2))
    assert first.prediction is not second.prediction


def test_an_unknown_name_brings_the_nearest_and_the_list() -> None:
    with pytest.raises(UserMistake, match=r"'fcsf': did you mean 'fcfs'\? choose from fcfs, shortest-prompt-first"):
        named_bundles(["fcsf"], TEMPLATE)


def test_a_policy_named_twice() -> None:
    with pytest.raises(UserMistake, match="--ordering fcfs is there twice"):
        named_bundles(["fcfs", "fcfs"], TEMPLATE)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[bundle.x", "not valid TOML"),
        ("", "no table \\[bundle.NAME\\]"),
        ("[bundel.x]\nordering = 'fcfs'", "'bundel' is no key of a bundles file"),
        ("bundle = 3", "no table"),
        ("[bundle]\nx = 3", "bundle.x must be a table"),
        ("[bundle.x]\nodering = 'fcfs'", "bundle.x: unknown key 'odering': did you mean 'ordering'"),
        ("[bundle.x]\nordering = 3", "bundle.x.ordering must be a name, or"),
        ("[bundle.x]\nordering = {name = 'fcfs', option = 1}", "bundle.x.ordering must be a name, or"),
        ("[bundle.x]\nadmission = {name = 'peak-check', options = {reserv = 1}}", "did you mean 'reserve'"),
        ("[bundle.x]\nadmission = {name = 'peak-check', options = {reserve = 2.0}}", "reserve must be at least 0"),
        ("[bundle.x]\nprediction = 'oracel'", "did you mean 'oracle'"),
        (
            "[bundle.x]\ntuning = 'on'",
            "bundle.x: tuning must be one of 'off', 'self-tuned', 'prefill-budget', got 'on'",
        ),
        ("[bundle.x]\nguard = 'yes'", "bundle.x: guard must be true, false, or a table such as"),
        (
            "[bundle.x]\nguard = {harm_ratio = 0.5}",
            "bundle.x: guard.harm_ratio must be a number of at least 1, got 0.5",
        ),
        ("[bundle.x]\nguard = {ratio = 2}", "bundle.x: unknown key guard.ratio: did you mean 'harm_ratio'"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserMistake, match=sentence) as told:
        read_bundles(written(tmp_path, text), TEMPLATE)
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"none\.toml: it cannot be read: No such file"):
        read_bundles(tmp_path / "none.toml", TEMPLATE)


def test_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserMistake, match="not UTF-8"):
        read_bundles(path, TEMPLATE)
