"""`headway recommend`: the documented JSON, verdicts, bounds, and configurations that gateway and plug-in take."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headway.policies import catalog
from headway.policies.ordering.fcfs import Fcfs
from headway.vllm_plugin.config import read_config

Headway = Callable[..., Any]
SMALL = ("chat-and-documents", "--load", "1.0", "--requests", 300)


_once: dict[str, Any] = {}


@pytest.fixture
def recommended(headway: Headway, tmp_path: Path) -> dict[str, Any]:
    """The object of one run, which all tests here read."""
    if not _once:
        said = headway("recommend", *SMALL, "--objective", "mean-ttft", "--json", tmp_path / "out.json")
        assert said.status == 0, said.err
        _once.update(json.loads((tmp_path / "out.json").read_text()), said=said.out)
    return _once


def test_the_documented_object(recommended: dict[str, Any]) -> None:
    assert (recommended["schema"], recommended["objective"], recommended["load"]) == (1, "mean-ttft", 1.0)
    verdict = recommended["verdict"]
    assert {"ordering", "admission", "preemption", "prediction"} <= verdict.keys()
    labels = [one["label"] for one in recommended["candidates"]]
    assert len(set(labels)) == len(labels)
    assert {"fcfs", "highest-response-ratio", verdict["label"]} <= set(labels)
    assert set(recommended["alike"]) <= set(labels) - {verdict["label"]}
    for one in recommended["candidates"]:
        assert isinstance(one["dominated"], bool)
        assert one["ttft_seconds"]["mean"] == pytest.approx(one["measures"]["mean-ttft"])


def test_the_page_has_every_key(recommended: dict[str, Any]) -> None:
    docs = Path(__file__).parents[3] / "docs"
    table = (docs / "recommend.md").read_text(encoding="utf-8").partition("## The JSON")[2]
    of_a_run = (docs / "json.md").read_text(encoding="utf-8").partition("## An entry of `runs`")[2]
    keys = recommended.keys() - {"said"} | recommended["verdict"].keys() | recommended["config"].keys()
    assert {key for key in keys if f"`{key}`" not in table} == set()
    assert {key for key in recommended["candidates"][0] if f"`{key}`" not in table + of_a_run} == set()


def test_what_did_better_than_the_verdict_is_alike_to_it(recommended: dict[str, Any]) -> None:
    mean = {one["label"]: one["measures"]["mean-ttft"] for one in recommended["candidates"]}
    verdict = recommended["verdict"]["label"]
    assert mean[verdict] < mean["fcfs"]
    better = [label for label, seconds in mean.items() if seconds < mean[verdict]]
    assert all(label in recommended["alike"] for label in better)
    assert recommended["incumbent"] == "gittins"
    times = {one["label"]: one["times_incumbent"] for one in recommended["candidates"]}
    assert verdict == "gittins" or times[verdict] < 1


def test_a_dominated_one_has_a_better_one_in_both(recommended: dict[str, Any]) -> None:
    points = {
        one["label"]: (one["measures"]["mean-ttft"], one["measures"]["p99-ttft"]) for one in recommended["candidates"]
    }
    for one in recommended["candidates"]:
        mean, p99 = points[one["label"]]
        better = [other for other in points.values() if other != (mean, p99) and other[0] <= mean and other[1] <= p99]
        assert one["dominated"] == bool(better)


def test_the_configurations_are_taken_by_gateway_and_plugin(
    headway: Headway, recommended: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(recommended["config"]["gateway"])
    checked = headway("check-config", file)
    assert checked.status == 0, checked.err
    assert checked.out.rstrip().endswith(f"ordering: {recommended['verdict']['ordering']}")
    settings = read_config({"headway": tomllib.loads(recommended["config"]["vllm"])}, environ={})
    assert settings.ordering == recommended["verdict"]["ordering"]


BUNDLES = """
[bundle.mine]
ordering = {name = "boost", options = {decay_factor = 0.3}}
prediction = {name = "histogram", options = {}}
offline_ordering = "prefix-groups"
tuning = "self-tuned"
guard = {harm_ratio = 3.0}
"""


def test_what_a_bundle_has_beside_its_policies_is_in_the_configurations(headway: Headway, tmp_path: Path) -> None:
    bundles, out, file = tmp_path / "mine.toml", tmp_path / "out.json", tmp_path / "gateway.toml"
    bundles.write_text(BUNDLES)
    said = headway("recommend", *SMALL, "--bundles", bundles, "--json", out)
    assert said.status == 0, said.err
    config = json.loads(out.read_text())["config"]
    file.write_text(config["gateway"])
    checked = headway("check-config", file)
    assert checked.status == 0, checked.err
    assert tomllib.loads(config["gateway"])["policies"]["offline_ordering"] == "prefix-groups"
    settings = read_config({"headway": tomllib.loads(config["vllm"])}, environ={})
    assert (settings.offline_ordering, settings.tuning, settings.guard.harm_ratio) == ("prefix-groups", "self-tuned", 3)


def test_the_table_and_the_sentences_are_printed(recommended: dict[str, Any]) -> None:
    said = recommended["said"]
    for sentence in recommended["sentences"]:
        assert sentence in said
    assert "recommended" in said
    assert "[policies]" in said


def test_the_report_draws_all_candidates_and_marks_the_verdict(headway: Headway, tmp_path: Path) -> None:
    page, out = tmp_path / "report.html", tmp_path / "out.json"
    orders = ("--ordering", "shortest-uncached-prefill-first", "--ordering", "fcfs")
    said = headway("recommend", *SMALL, *orders, "--report", page, "--json", out)
    assert said.status == 0, said.err
    text, found = page.read_text(), json.loads(out.read_text())
    assert all(sentence in text for sentence in found["sentences"])
    assert text.count('class="ring"') == 2
    assert "lower bound" in text
    assert found["lower_bounds"]["mean_ttft_seconds"] < min(one["measures"]["mean-ttft"] for one in found["candidates"])


def test_chosen_orders_compete_alone_and_bounds_exclude(headway: Headway, tmp_path: Path) -> None:
    objective, out = tmp_path / "mine.toml", tmp_path / "out.json"
    objective.write_text('weights = {"mean-ttft" = 1}\nat_most = {"longest-ttft" = {times_fcfs = 1.05}}\n')
    orders = ("--ordering", "shortest-uncached-prefill-first", "--ordering", "fcfs")
    said = headway("recommend", *SMALL[:3], "--requests", 800, *orders, "--objective", objective, "--json", out)
    assert said.status == 0, said.err
    found = json.loads(out.read_text())
    assert [one["label"] for one in found["candidates"]] == ["shortest-uncached-prefill-first", "fcfs"]
    assert found["candidates"][0]["breaks"] == ["longest-ttft"]
    assert found["candidates"][0]["behind_best"] == {"low": None, "high": None}
    assert found["verdict"]["label"] == "fcfs"
    assert "objective  " in said.out
    assert "longest-ttft at most 1.05 times that of fcfs" in said.out
    assert any(sentence.startswith("Within your bounds: longest-ttft ") for sentence in found["sentences"])
    assert [one["dominated"] for one in found["candidates"]] == [False, False]  # what breaks a bound dominates none


def test_an_order_without_a_bound_on_waits_is_warned_of_where_a_tail_is_bounded(
    headway: Headway, tmp_path: Path
) -> None:
    objective = tmp_path / "mine.toml"
    objective.write_text('weights = {"mean-ttft" = 1}\nat_most = {"longest-ttft" = {value = 1000000.0}}\n')
    orders = ("--ordering", "gittins", "--ordering", "fcfs", "--preemption", "least-sunk-work")
    said = headway("recommend", *SMALL, *orders, "--objective", objective)
    assert said.status == 0, said.err
    assert "gittins sets no bound on a wait: on a heavier day it may break longest-ttft." in said.out
    assert "# Not here: preemption = least-sunk-work." in said.out


def test_where_nothing_keeps_the_bounds_it_says_so(headway: Headway, tmp_path: Path) -> None:
    objective = tmp_path / "mine.toml"
    objective.write_text('weights = {"mean-ttft" = 1}\nat_most = {"longest-ttft" = {value = 0.001}}\n')
    said = headway("recommend", *SMALL, "--ordering", "fcfs", "--objective", objective)
    assert said.status == 0, said.err
    assert "No candidate keeps every bound" in said.out


class RanksNan(Fcfs):
    """As of another package, for this module is none of Headway's."""

    def rank(self, request: object) -> float:
        return math.nan


def test_an_order_of_another_package_that_makes_no_sense_is_named(
    headway: Headway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(catalog.ORDERING, "theirs", RanksNan)
    said = headway("recommend", *SMALL, "--ordering", "theirs", "--jobs", 1)
    assert said.status == 2, said.err
    assert said.err.count("\n") == 1
    assert "theirs" in said.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--objective", "fastest"), "--objective 'fastest' is unknown"),
        (("--requests", 50), "50 requests cannot tell policies apart; give 100 or more"),
        (("--ordering", "fifoo"), "unknown"),
        (("--objective", "missing.toml"), "missing.toml"),
        (("--prediction", "oracle"), "--prediction: oracle needs"),
    ],
)
def test_a_mistake_is_one_sentence(headway: Headway, arguments: tuple[object, ...], sentence: str) -> None:
    said = headway("recommend", "chat-and-documents", "--load", "1.0", *arguments)
    assert said.status == 2
    assert sentence in said.err
    assert said.err.count("\n") == 1
