"""`headway check-config` says what `headway serve` would stumble over, in one sentence, before it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Said

Headway = Callable[..., Said]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[queue]\nmax_request = 5", "unknown key queue.max_request: did you mean 'max_requests'?"),
        ("[queue]\ntenant_max_tokens = 0", "queue.tenant_max_tokens must be above 0, got 0"),
        ('[[replica]]\nurl = "http://a:1"\nhints = "yes"', "replica[0].hints must be"),
        ('[[replica]]\nurl = "http://a:1"\napi_key_env = "HEADWAY_TEST_NO_KEY"', "HEADWAY_TEST_NO_KEY is empty"),
        ('[[tenant]]\nname = "t"\nkey_env = "HEADWAY_TEST_NO_KEY"', "HEADWAY_TEST_NO_KEY holds no key"),
        ('policies = {ordering = "priced-wrok"}', "did you mean 'priced-work'?"),
        ('policies = {ordering = "priority-aging", options = {ordering = {seconds_per_class = 0}}}', "must be above 0"),
        ("tuning = {on = true}", "highest-response-ratio has no options that can be tuned while requests wait"),
        (
            'tokenizers = {m = "no/such/tokenizer.json"}',
            "tokenizers.m: the file 'no/such/tokenizer.json' does not exist",
        ),
        ('tracing = {endpoint = "collector:4317"}', "tracing.endpoint must be like http://127.0.0.1:4318/v1/traces"),
        ('tracing = {endpoint = "http://c", sample_share = 2}', "tracing.sample_share must be from 0 to 1"),
        ('objectives = {chat = "high"}', "objectives.chat must be"),
        ('record = ""', "record must name a file"),
        ('record = "no/such/folder/night.jsonl"', "record: there is no folder 'no/such/folder'; make it first"),
        ('state = {path = "no/such/state.json"}', "state.path: there is no folder 'no/such'"),
        ('state = {path = "/"}', "state.path: '/' is a folder; name a file in it"),
        (
            'tls_certificate = "no.pem"\ntls_key = "no.key"',
            "'no.pem' and tls_key 'no.key' cannot be used",
        ),
        ('embedded = {hardware = "h1000"}', "unknown hardware 'h1000': did you mean 'h100'?"),
        ("embedded = {kv_tokens = 5}", "kv_tokens must be at least one block of 16, got 5"),
    ],
)
def test_mistakes(headway: Headway, tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    said = headway("check-config", file)
    assert (said.status, said.out) == (2, "")
    assert sentence in said.err
    assert f"{file}: " in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "engines"),
    [
        ("", "none, so engines are simulated"),
        ('[embedded]\nreplicas = 0\n[admin]\nkey_env = "TEAM_KEY"\n', "none, they come by /admin/replicas"),
        ('[[replica]]\nurl = "http://a:1"\n[[replica_source]]\ndns = "b:1"\n', "1 and those of dns b:1"),
    ],
)
def test_it_says_where_replicas_come_from(
    headway: Headway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, engines: str
) -> None:
    monkeypatch.setenv("TEAM_KEY", "team-key-1")
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    assert f"; replicas: {engines}; tenants" in headway("check-config", file).out


def test_a_good_one_is_summed_up(headway: Headway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_KEY", "team-key-1")
    file = tmp_path / "gateway.toml"
    file.write_text(
        'policies = {ordering = "fair-share/priced-work"}\nobjectives = {chat = 2}\n'
        '[[replica]]\nurl = "http://a:1"\n[[tenant]]\nname = "t"\nkey_env = "TEAM_KEY"\n'
    )
    said = headway("check-config", file)
    assert (said.status, said.err) == (0, "")
    assert "no mistake found; replicas: 1; tenants: 1; ordering: fair-share/priced-work" in said.out


def test_a_twin_is_named_with_what_it_replaces(headway: Headway, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[policies]\nordering = "auto"\n[auto]\nobjective = "mean-ttft"\n')
    said = headway("check-config", file)
    assert said.out.rstrip().endswith("ordering: auto, for mean-ttft, in place of highest-response-ratio")


def test_sources_of_replicas_are_named(headway: Headway, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[[replica_source]]\ndns = "engines.test:8000"\n[[replica]]\nurl = "http://10.0.0.1:8000"\n')
    said = headway("check-config", file)
    assert "replicas: 1 and those of dns engines.test:8000; " in said.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--pool", "engines"), "inference_pool must be NAMESPACE/NAME, got 'engines'"),
        (("--replica-dns", "engines"), "dns must be host:port"),
        (("--pool", "a/b", "--embedded-replicas", "2"), "--embedded-replicas describes simulated engines"),
    ],
)
def test_sources_on_the_command_line_are_checked(headway: Headway, arguments: tuple[str, ...], sentence: str) -> None:
    for verb in ("serve", "epp"):
        said = headway(verb, *arguments)
        assert (said.status, said.out) == (2, "")
        assert sentence in said.err
