"""What an operator may say, and the one sentence for what they may not."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from headway.policies.ordering.highest_response_ratio import HighestResponseRatio
from headway.vllm_plugin.config import PluginConfig, read_config


def test_nothing_said_is_the_safe_default() -> None:
    for nothing in ({}, None, {"other": 1}):
        config = read_config(nothing, {})
        assert config == PluginConfig()
    assert isinstance(config.policies().ordering, HighestResponseRatio)


def test_names_options_and_settings() -> None:
    given = {
        "ordering": {"name": "highest-response-ratio", "options": {"lane_width": 1.5}},
        "admission": "peak-check",
        "tuning": "self-tuned",
        "guard": {"budget_ms": 5, "strikes": 1},
        "costs": {"prefill_seconds_per_token": 1e-5, "decode_seconds_per_token": 0.01},
        "length_class_tokens": [100, 200],
        "metrics_seconds": 2,
        "why_listen": "[::1]:9901",
    }
    config = read_config({"headway": given}, {})
    assert (config.admission, config.tuning, config.guard.budget_ms, config.guard.strikes) == (
        "peak-check",
        "self-tuned",
        5.0,
        1,
    )
    assert config.options["ordering"] == {"lane_width": 1.5}
    assert config.length_class_tokens == (100, 200)
    assert config.why_listen == ("::1", 9901)
    assert config.costs.decode_seconds_per_token == 0.01


def test_a_file_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "headway.toml"
    file.write_text('ordering = "fair-share"\n[guard]\nstrikes = 7\n')
    config = read_config({}, {"HEADWAY_CONFIG": str(file)})
    assert (config.ordering, config.guard.strikes) == ("fair-share", 7)


MISTAKES = {
    "a name that is not there": ({"ordering": "shortest-first"}, "unknown ordering policy 'shortest-first'"),
    "a key that is not there": ({"order": "fcfs"}, "unknown key order: did you mean 'ordering'?"),
    "an option that is not there": (
        {"ordering": {"name": "fcfs", "options": {"x": 1}}},
        "unknown option 'x': the ordering policy fcfs has no options",
    ),
    "an oracle": ({"prediction": "oracle"}, "the oracle predictor works in the simulator only"),
    "a number that no float holds": ({"explain_above_seconds": 10**400}, "explain_above_seconds must be a number"),
    "an option that no float holds": (
        {"ordering": {"name": "ewsjf", "options": {"b_u": 10**400}}},
        "ewsjf: b_u must be a number of at most 1,000,000,000,000,000",
    ),
    "options beside the policies": ({"options": {}}, "options stand beside a name"),
    "no price": (
        {"costs": {"prefill_seconds_per_token": 0, "decode_seconds_per_token": 1}},
        "costs: prefill_seconds_per_token must be a number above 0, got 0",
    ),
    "not a name": ({"ordering": 3}, "ordering must be a name, or"),
    "too much beside the name": ({"ordering": {"name": "fcfs", "more": 1}}, "ordering must be a name, or"),
    "bound that nothing reads": ({"tpot_seconds": 0.1}, 'tpot_seconds is read under tuning = "prefill-budget" only'),
    "bound": (
        {"tuning": "prefill-budget", "tpot_seconds": 0},
        "tpot_seconds must be a number of seconds above 0",
    ),
    "displace": ({"displace": True}, 'displace must be "off", or a table such as'),
    "displace times": ({"displace": {"times": 0}}, "displace times must be at least 1, got 0"),
    "displace key": ({"displace": {"time": 1}}, "unknown key displace.time"),
    "displace beside a hold": ({"displace": {}, "admission": "peak-check"}, 'displace needs admission = "greedy"'),
    "tuning": ({"tuning": "yes"}, "tuning must be one of 'off', 'self-tuned', 'prefill-budget', got 'yes'"),
    "truth": ({"hints": 1}, "hints must be true or false, got 1"),
    "seed": ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    "seconds": ({"metrics_seconds": 0}, "metrics_seconds must be a number of seconds of at least 0.05, got 0"),
    "never": ({"explain_above_seconds": float("inf")}, "explain_above_seconds must be a number of seconds"),
    "text": ({"metrics_dir": 5}, "metrics_dir must be a path"),
    "an address": (
        {"why_listen": 9901},
        'why_listen must be host:port, for example "127.0.0.1:8000", or an empty',
    ),
    "a port": ({"why_listen": "localhost:70000"}, "why_listen must be"),
    "guard": ({"guard": {"budget": 5}}, "unknown key guard.budget: did you mean 'budget_ms'?"),
    "guard number": ({"guard": {"harm_ratio": 0.5}}, "guard.harm_ratio must be a number of at least 1, got 0.5"),
    "guard strikes": ({"guard": {"strikes": 1.5}}, "guard.strikes must be a whole number of at least 1, got 1.5"),
    "guard kind": ({"guard": 5}, "guard must be a table of harm_ratio"),
    "half the costs": ({"costs": {"prefill_seconds_per_token": 1}}, "costs: decode_seconds_per_token is missing"),
    "classes": ({"length_class_tokens": [5, 5]}, "length_class_tokens must rise, such as [512, 4096], got [5, 5]"),
    "tuner": ({"live_tuning": 5}, 'live_tuning must be "off", or a table such as {"window_seconds": 600}, got 5'),
    "fusion": ({"fusion": True}, 'fusion must be "off", or a table such as {"bound": 0.95}, got True'),
    "fusion's bound": (
        {"fusion": {"bound": "high"}},
        "fusion.bound must be a number above 0 and at most 1, got 'high'",
    ),
    "fusion's keys": ({"fusion": {"bounds": 0.9}}, "bounds"),
    "costs kind": ({"costs": 5}, "costs must be a table of prefill_seconds_per_token, decode_seconds_per_token, got 5"),
    "classes kind": ({"length_class_tokens": 5}, "length_class_tokens must be two prompt lengths"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_place(mistake: str) -> None:
    given, sentence = MISTAKES[mistake]
    with pytest.raises(ValueError, match=re.escape(sentence)) as raised:
        read_config({"headway": given}, {})
    assert str(raised.value).startswith('additional_config["headway"]')
    assert "\n" not in str(raised.value)


def test_a_table_is_wanted() -> None:
    with pytest.raises(ValueError, match="must be a table such as"):
        read_config({"headway": "fcfs"}, {})


def test_the_two_ways_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep one of them"):
        read_config({"headway": {}}, {"HEADWAY_CONFIG": str(tmp_path)})


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it cannot be read: .*; check the path"):
        read_config({}, {"HEADWAY_CONFIG": str(tmp_path / "missing.toml")})
    broken = tmp_path / "broken.toml"
    broken.write_text("ordering = ")
    with pytest.raises(ValueError, match="it is not valid TOML"):
        read_config({}, {"HEADWAY_CONFIG": str(broken)})


def test_the_table_of_the_page_has_every_key() -> None:
    page = (Path(__file__).parents[3] / "docs" / "vllm.md").read_text(encoding="utf-8")
    table = page.partition("## Configuration")[2].partition("\n\n```toml")[0]
    rows = {key for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}
    assert rows == {field.name for field in fields(PluginConfig)} - {"options"}  # which stand beside each name


def test_the_defaults_are_those_of_the_page() -> None:
    """docs/vllm.md states them; a slip here would change every engine."""
    config = PluginConfig()
    guard = config.guard
    assert (guard.budget_ms, guard.strikes, guard.strike_seconds) == (20.0, 3, 60.0)
    assert (guard.harm_ratio, guard.harm_slack_seconds, guard.harm_seconds, guard.step_back_seconds) == (2, 1, 60, 300)
    assert (config.admission, config.preemption, config.prediction) == ("greedy", "latest-admitted", "running-mean")
    assert (config.tuning, config.state_file, config.decision_log, config.why_listen) == ("off", "", "", None)
    assert (config.prefix_hits, config.hints, config.seed, config.metrics_dir) == (True, True, 0, None)
    assert (config.metrics_seconds, config.explain_above_seconds, config.length_class_tokens) == (
        1.0,
        10.0,
        (512, 4096),
    )
    assert config.costs == (1e-4, 2e-2)
    assert (config.fusion.on, config.fusion.bound, config.fusion.blocks_per_step) == (False, 0.95, 256)


@pytest.mark.parametrize(
    ("key", "taken", "refused"),
    [
        ("length_class_tokens", [1, 2], [2, 2]),
        ("length_class_tokens", [1, 2], [1]),
        ("length_class_tokens", [1, 2], [0, 2]),
        ("metrics_seconds", 0.05, 0.04),
        ("seed", 0, -1),
        ("explain_above_seconds", 0, -1),
        ("guard", {"strikes": 1}, {"strikes": 0}),
        ("guard", {"budget_ms": 0.01}, {"budget_ms": 0.0}),
        ("live_tuning", {"window_seconds": 1}, {"window_seconds": 0.9}),
        ("live_tuning", {"harm": 1}, {"harm": 0.9}),
        ("fusion", {"bound": 1}, {"bound": 1.01}),
        ("fusion", {"bound": 0.01}, {"bound": 0}),
        ("fusion", {"blocks_per_step": 1}, {"blocks_per_step": 0}),
        ("fusion", "off", "on"),
    ],
)
def test_a_key_at_its_bounds(key: str, taken: object, refused: object) -> None:
    read_config({"headway": {key: taken, "ordering": "ewsjf"}}, {})
    with pytest.raises(ValueError, match=key):
        read_config({"headway": {key: refused, "ordering": "ewsjf"}}, {})
