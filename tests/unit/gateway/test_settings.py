"""A configuration file is read whole, or refused in one sentence that names the key and the fix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headway.config.address import nameserver_of
from headway.gateway import settings_file
from headway.gateway.settings import ReplicaSettings
from headway.gateway.settings_file import read_settings, replica_key
from tests.support.settings_mistakes import sentence_about

WHOLE = """
listen = "0.0.0.0:9000"
admin_listen = "127.0.0.1:9001"
[policies]
ordering = "fair-share/smallest-volume-first"
routing = "prefix-affinity"
options = {ordering = {output_weight = 3}, routing = {load_factor = 1.5}}
[queue]
max_requests = 5
timeout_seconds = 30
[[replica]]
url = "http://10.0.0.1:8000"
name = "a"
priority = "lower-first"
[[replica]]
url = "https://engine.example/base"
max_requests = 64
[[tenant]]
name = "team"
key_env = "TEAM_KEY"
may = ["priority", "session"]
priority_min = -2
"""


def test_everything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(WHOLE)
    settings = read_settings(path)
    assert settings.replica[0] == ReplicaSettings(url="http://10.0.0.1:8000", name="a", priority="lower-first")
    assert settings.queue.timeout_seconds == 30.0
    assert settings.tenant[0].may == ("priority", "session")
    assert settings.policies.options["routing"] == {"load_factor": 1.5}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lisen = 1", "unknown key lisen: did you mean 'listen'?"),
        ('forward = ["a/b"]', "forward must hold first names of paths, for example 'load_lora_adapter', got 'a/b'"),
        ('trusted_proxies = ["x"]', "trusted_proxies must hold addresses or networks: 'x' does not appear to be"),
        ('admin_key_env = "NONE"', "admin_key_env: the environment variable NONE holds no key of 8 characters or more"),
        (
            '[[tenant]]\nname = "a"\nkey_env = "A"\nmay = ["fairness-id"]\n[[tenant]]\nname = "a/b"\nkey_env = "B"',
            "tenant 'a/b' is also tenant 'a' with fairness id 'b'; name it without /",
        ),
        (
            "[queue]\nclass_ceilings = {slow = 0.5}",
            "a class is one of default, flex, batch, priority, or a priority like '20'",
        ),
        ("[queue]\nclass_ceilings = {flex = 1.5}", "queue.class_ceilings.flex must be from 0 to 1, got 1.5"),
        ("[queue]\nclass_ceilings = {flex = true}", "queue.class_ceilings.flex must be a number, got True"),
        ("[service_tiers]\nscale = 1", "unknown key service_tiers.scale"),
        ("[service_tiers]\nflex = 1e3", "service_tiers.flex must be a whole number, got 1000.0"),
        (
            '[[tenant]]\nname = "a"\nkey_env = "A"\npriority_default = -1',
            "tenant 'a': priority_default must lie within priority_min and priority_max, 0 and 100, got -1",
        ),
        ("[requests]\ntimeout_seconds = 0", "requests.timeout_seconds must be above 0, got 0"),
        ("[requests]\nretry_share = 2", "requests.retry_share must be from 0 to 1, got 2"),
        ("[health]\ntcp_idle_seconds = 40000", "health.tcp_idle_seconds must be at most 32,767, got 40000"),
        ('[aliases]\na = "b"\nb = "a"', "aliases.a leads in a circle: a -> b -> a; let it end at a model"),
        ('[aliases]\nx = "a"\na = "a"', "aliases.x leads in a circle: x -> a -> a; let it end at a model"),
        ('[aliases]\na = ""', "aliases: 'a' = '' lacks a name; give both"),
        ("[aliases]\na = 5", "aliases.a must be a text, got 5"),
        (
            '[aliases]\na = "m"\n[models.a]\nmax_requests = 5',
            "models.a is an alias; write the settings under its model, 'm'",
        ),
        ("[models.m]\nmax_requests = 0", "models.m.max_requests must be at least 1, got 0"),
        ('[models.m]\nordering = "fcsf"', "models.m.ordering: unknown ordering policy 'fcsf': did you mean 'fcfs'?"),
        ("[models.m]\nordering_options = {a = 1}", "ordering_options are those of its own ordering; set ordering too"),
        ('[models.m]\nfallbacks = ["m"]', "models.m.fallbacks must name other models, got ['m']"),
        (
            '[aliases]\na = "m"\n[models.m]\nfallbacks = ["n", "a"]',
            "models.m.fallbacks must name other models, got ['n', 'a']",
        ),
        ("[models.m]\nfallback_wait_seconds = 5", "models.m.fallback_wait_seconds is set without fallbacks"),
        ("listen = 8000", "listen must be a text, got 8000"),
        ('listen = "8000"', "listen must be host:port"),
        ('[policies]\nordering = "fcsf"', "did you mean 'fcfs'?"),
        ('[policies]\nrouting = "least"', "unknown routing policy 'least'"),
        ('[policies]\nprediction = "oracle"', "works in the simulator only"),
        (
            '[policies]\npreemption = "lowest-priority"',
            "policies.preemption: lowest-priority needs the choice of a victim, but a gateway never takes a "
            "running request back from a replica: leave it out, and choose victims in the engine",
        ),
        (
            '[policies]\nadmission = "backfill/peak-check"\n[[replica]]\nurl = "http://x:1"\nmetrics = false',
            "replica[0].kv_tokens: policies.admission backfill/peak-check needs the replica's KV memory, which nothing",
        ),
        ("[policies]\noptions = {routing = {load_factor = 0.5}}", "unknown option 'load_factor'"),
        ("[policies]\noptions = {rooting = {}}", "unknown kind 'rooting': did you mean 'routing'?"),
        ("[queue]\nmax_requests = 0", "queue.max_requests must be above 0, got 0"),
        ("[health]\nejected_share_max = 1.5", "health.ejected_share_max must be from 0 to 1, got 1.5"),
        ("[health]\npanic_share = -0.1", "health.panic_share must be from 0 to 1, got -0.1"),
        ("[health]\nstall_seconds = 0", "health.stall_seconds must be above 0, got 0"),
        ("[queue]\nmax_requests = true", "queue.max_requests must be a whole number, got True"),
        ("[queue]\nmax_request = 1", "unknown key queue.max_request: did you mean 'max_requests'?"),
        ("queue = 3", "queue must be a table"),
        ("replica = {}", "replica must be a list; write [[replica]]"),
        ("[[replica]]\nname = 'a'", "replica[0].url is missing"),
        ("[[replica]]\nurl = 'ftp://x'", "replica[0].url must be like http://127.0.0.1:8001"),
        ("[[replica]]\nurl = 'http://x/v1'", "(without /v1)"),
        ("[[replica]]\nurl = 'http://x:99999'", "replica[0].url must be like"),
        ("[[replica]]\nurl = 'http://x'\npriority = 'high'", "replica[0].priority must be one of"),
        ("[[replica]]\nurl = 'http://x'\n[[replica]]\nurl = 'http://x'", "the url 'http://x' is there twice"),
        ("[[replica]]\nurl = 'http://x'\nname = 'a'\n[[replica]]\nurl = 'HTTP://X:80/'", "name each engine once"),
        ("[[replica]]\nurl = 'http://x'\nname = 'y'\n[[replica]]\nurl = 'http://y'", "'y' is there twice"),
        ("[[replica_source]]", "replica_source[0] must have one of dns, srv, file, inference_pool; it has none"),
        ("[[replica_source]]\ndns = 'a:1'\nfile = 'b'", "it has dns and file"),
        ("[[replica_source]]\ndns = 'a'", "replica_source[0].dns must be host:port"),
        ("[[replica_source]]\ndns = 'a:0'", "replica_source[0].dns must be host:port"),
        ("[[replica_source]]\nfile = ''", "replica_source[0].file is empty"),
        ("[[replica_source]]\ninference_pool = 'engines'", "inference_pool must be NAMESPACE/NAME, got 'engines'"),
        ("[[replica_source]]\ninference_pool = 'a/../b'", "inference_pool must be NAMESPACE/NAME, got 'a/../b'"),
        ("[[replica_source]]\ndns = 'a:1'\nscheme = 'https'", "dns finds addresses, for which no certificate is made"),
        ("[[replica_source]]\ndns = 'a:1'\nscheme = 'ftp'", "replica_source[0].scheme must be one of"),
        ("[[replica_source]]\nfile = 'a'\nnameserver = '10.0.0.1'", "nameserver is for dns and srv; leave it out"),
        ("[[replica_source]]\ndns = 'a:1'\nnameserver = 'ns'", "[0].nameserver must be ADDRESS or ADDRESS:PORT"),
        (
            "[[replica_source]]\nsrv = '_a._tcp.b:80'",
            "replica_source[0].srv must be a name alone, for its records have",
        ),
        ("[lease]\nseconds = 6", "[lease] needs file or kubernetes: without one no gateway stands by"),
        ("[[replica_source]]\ndns = 'a:1'\nkubeconfig = 'k'", "kubeconfig is for inference_pool; leave it out"),
        ("[[replica_source]]\ndns = 'a:1'\nrefresh_seconds = 0", "refresh_seconds must be above 0, got 0"),
        ("[[replica_source]]\ndns = 'a:1'\nrefresh_seconds = inf", "refresh_seconds must be a finite number"),
        ("[[replica_source]]\ndns = 'a:1'\nreplicas_max = 501", "replicas_max must be at most 500, got 501"),
        ("[[replica_source]]\ndns = 'a:1'\nreplicas_max = 0", "replicas_max must be at least 1, got 0"),
        ("[[replica_source]]\ndns = 'a:1'\n[[replica_source]]\ndns = 'a:1'", "dns a:1 is there twice; name it once"),
        ("[[replica_source]]\ndns = 'a:1'\neach = {url = 'b'}", "each.url is what the source finds out; leave it out"),
        ("[[replica_source]]\ndns = 'a:1'\neach = {max_request = 1}", "unknown key replica_source[0].each.max_request"),
        ("[[replica_source]]\ndns = 'a:1'\neach = {max_requests = 0}", "each.max_requests must be at least 1, got 0"),
        ("[embedded]\nreplicas = 0", "embedded.replicas is 0, so replicas can only come by /admin; give it a key"),
        ("media_tokens = -1", "media_tokens must be at least 0, got -1"),
        ('[state]\npath = "a\\u0000b"', "state.path holds a NUL character: 'a\\x00b'; take it out"),
        ("[health]\nfailing_share = 0", "health.failing_share must be above 0, got 0"),
        ("[health]\nfailing_share = 2.0", "health.failing_share must be from 0 to 1, got 2.0"),
        ("[[replica]]\nurl = 'http://x:0'", "replica[0].url must be like"),
        (
            "[[replica]]\nurl = 'http://x'\nkv_events_endpoint = 'tcp://x:5557'",
            "replica[0].kv_events_endpoint is set without kv_events; set kv_events = true, or leave it out",
        ),
        (
            "[[replica]]\nurl = 'http://x'\nkv_events = true\nkv_events_replay = 'tcp://*:5558'",
            "replica[0].kv_events_replay must be like tcp://10.0.0.5:5557 or ipc:///path, got 'tcp://*:5558'",
        ),
        ("[[replica]]\nurl = 'http://x'\nkv_blocks_max = 0", "replica[0].kv_blocks_max must be at least 1, got 0"),
        ("[[replica]]\nurl = 'http://a..b:8000'", "replica[0].url must be like"),
        ("[[replica]]\nurl = 'http://[::1'", "replica[0].url must be like"),
        ("[[replica]]\nurl = 'http://x/a b'", "replica[0].url holds a space or a line break: 'http://x/a b'"),
        ('[[replica]]\nurl = "http://x/\\r\\ny: z"', "replica[0].url holds a space or a line break"),
        ('[[replica]]\nurl = "http://x"\nname = "a\\nb"', "replica[0].name holds a line break"),
        ("[queue]\ntimeout_seconds = inf", "queue.timeout_seconds must be a finite number, got inf"),
        ("[[tenant]]\nname = ''\nkey_env = 'X'", "tenant.name is empty"),
        ("[[tenant]]\nname = 'a'\nkey_env = 'X'\ndeadline_seconds_min = nan", "deadline_seconds_min must be above 0"),
        ("[[tenant]]\nname = 'a'", "tenant 'a' has no key; give key_env, key_file, key_sha256, jwt_values or cert"),
        ("[[tenant]]\nname = 'a'\nkey_sha256 = 'sk-1'", "key_sha256[0] must be the SHA-256 of a key, 64 hexadecimal"),
        ("[[tenant]]\nname = 'a'\nkey_env = 'sk-secret'", "key_env must name an environment variable, of letters"),
        ("[[replica]]\nurl = 'http://x'\napi_key_env = 'sk-secret'", "api_key_env must name an environment variable"),
        ("[[tenant]]\nname = 'a'\nkey_sha256 = {x = 'sk-secret'}", "key_sha256 must be a list of SHA-256 of keys"),
        ("[admin]\nkey_sha256 = 'sk-secret'", "admin.key_sha256 must be a table of names, each with the SHA-256"),
        (
            "[admin]\nkey_sha256 = {me = 'sk-secret'}",
            "admin.key_sha256.me must be the SHA-256 of a key, 64 ",
        ),
        ("[admin]\nkey_env = 'NONE'", "admin.key_env: the environment variable NONE holds no key of 8 characters"),
        ("[[tenant]]\nname = 'a'\nkey_env = 'X'\nmay = ['priorty']", "did you mean 'priority'?"),
        ("[[tenant]]\nname = 'a'\nkey_env = 'X'\npriority_min = 200", "priority_min is above priority_max"),
        ("tls_key = 'x'", "tls_certificate and tls_key belong together"),
        ('listen = "127.0.0.1:80"\nadmin_listen = "127.0.0.1:80"', "admin_listen must not be the address of listen"),
        ('cors_origins = ["chat.example.com"]', "cors_origins must hold origins as browsers send them"),
        ('cors_origins = ["https://chat.example.com/"]', "got 'https://chat.example.com/'"),
        ('cors_origins = ["https://Chat.example.com"]', "got 'https://Chat.example.com'"),
        ('cors_origins = ["https://chat.example.com:443"]', "no port that the scheme has anyway"),
        ('cors_origins = [""]', "cors_origins must hold origins"),
        ('hosts = ["https://gateway.example.com"]', "hosts must hold names without scheme and port"),
        ('hosts = ["gateway.example.com:8000"]', "got 'gateway.example.com:8000'"),
        ('hosts = [""]', "hosts must hold names"),
        ('forward = ["two words"]', "forward must hold first names of paths"),
        ("[tracing]\nsample_share = 1.5", "tracing.sample_share must be from 0 to 1, got 1.5"),
        ("[tracing]\nsample_share = nan", "tracing.sample_share must be from 0 to 1, got nan"),
        ("[health]\nlame_duck_seconds = -1", "health.lame_duck_seconds must be at least 0, got -1"),
        ("[health]\nlame_duck_seconds = nan", "health.lame_duck_seconds must be at least 0, got nan"),
        ("[wire]\nbuffer_bytes = 99999999999999999999", "wire.buffer_bytes must be at most 1e+15, got 1e+20"),
        ("[health]\ndrain_seconds = 1e20", "health.drain_seconds must be at most 1e+15, got 1e+20"),
        ("log_lines_max = 99999999999999999999", "log_lines_max must be at most 1e+15"),
        ("objectives = {a = -99999999999999999999}", "objectives.a must be at most 1e+15"),
        ("[embedded]\nreplicas = 1001", "embedded.replicas must be at most 1000, got 1001"),
        ("[[tenant]]\nname = 'a'\nkey_env = 'X'\npriority_max = 99999999999999999999", "priority_max must be at most"),
        (
            "[[replica]]\nurl = 'http://x'\n[[replica]]\nurl = 'http://y'\nmax_requests = 0",
            "replica[1].max_requests must be at least 1, got 0",
        ),
        ("x = ", "it is not valid TOML"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    told = sentence_about(tmp_path, text)
    assert sentence in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "https://chat.example.com", "http://localhost:3000", "http://[::1]:5173", "vscode-webview://a-b1"],
)
def test_an_origin_as_browsers_send_it_is_taken(tmp_path: Path, origin: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(
        f'cors_origins = ["{origin}"]\nhosts = ["gateway.example.com", "a_b"]\nforward = ["load_lora_adapter"]'
    )
    assert read_settings(path).cors_origins == (origin,)


def test_a_key_is_what_it_is_without_the_line_break_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("[[replica]]\nurl = 'http://x'\napi_key_env = 'ENGINE_KEY'")
    monkeypatch.setenv("ENGINE_KEY", "secret\n")
    assert replica_key(read_settings(path).replica[0]) == "secret"
    monkeypatch.setenv("ENGINE_KEY", "secret\nx-more: 1")
    with pytest.raises(ValueError, match="ENGINE_KEY holds what no header may hold; set the key alone"):
        read_settings(path)


def test_the_example_of_the_page_is_a_configuration(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "serve.md").read_text(encoding="utf-8")
    path = tmp_path / "gateway.toml"
    path.write_text(page.partition("```toml\n")[2].partition("```")[0])
    assert read_settings(path).policies.routing == "prefix-affinity"


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    root = Path(__file__).parents[3]
    asked = set(re.findall(r"headway_\w+", (root / "docs" / "grafana" / "headway.json").read_text(encoding="utf-8")))
    sources = (root / "src" / "headway" / "gateway" / "observing").glob("*.py")
    known = "".join(file.read_text(encoding="utf-8") for file in sources)
    assert asked
    assert [name for name in asked if re.sub(r"_(bucket|total)$", "", name) not in known] == []


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        ("tokens_per_minute = 0", "tenant 'a': budget.tokens_per_minute must be at least 1, got 0"),
        ("requests_per_day = -3", "tenant 'a': budget.requests_per_day must be at least 1, got -3"),
        ("concurrent_requests = 1e3", r"tenant\[0\].budget.concurrent_requests must be a whole number, got 1000.0"),
        (
            "tokens_per_day = 10000000000000000",
            "budget.tokens_per_day must be at most 1e\\+15, got 1e\\+16",
        ),
        ("over_budget = 'queue'", r"tenant\[0\].budget.over_budget must be one of 'refuse', 'wait', got 'queue'"),
        ("tokens_a_minute = 5", r"unknown key tenant\[0\].budget.tokens_a_minute"),
    ],
)
def test_a_mistake_in_a_budget_is_one_sentence(tmp_path: Path, budget: str, sentence: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f"[[tenant]]\nname = 'a'\nkey_env = 'X'\n[tenant.budget]\n{budget}\n")
    with pytest.raises(ValueError, match=sentence):
        read_settings(file)


def test_kv_events_without_their_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_file, "find_spec", lambda name: None)
    sentence = sentence_about(tmp_path, "[[replica]]\nurl = 'http://x'\nkv_events = true")
    assert sentence.endswith("replica[0].kv_events needs the package pyzmq: pip install 'headway[kv-events]'")


@pytest.mark.parametrize(
    ("package", "text"),
    [
        ("kubernetes_asyncio", "inference_pool = 'a/b'"),
        ("dns", "srv = '_a._tcp.b'"),
        ("dns", "dns = 'a:1'\nnameserver = '10.0.0.1'"),
        ("yaml", "file = 'a.yaml'"),
    ],
)
def test_a_source_whose_package_is_missing_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, text: str
) -> None:
    monkeypatch.setattr(settings_file, "find_spec", lambda name: None if name == package else object())
    told = sentence_about(tmp_path, f"[[replica_source]]\n{text}")
    assert f"needs the package {package}: pip install 'headway[" in told


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("10.0.0.2", ("10.0.0.2", 53)),
        ("10.0.0.2:8600", ("10.0.0.2", 8600)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]", ("2001:db8::1", 53)),
        ("[2001:db8::1]:8600", ("2001:db8::1", 8600)),
    ],
)
def test_a_name_server_is_an_address_with_or_without_a_port(written: str, read: tuple[str, int]) -> None:
    assert nameserver_of(written) == read


@pytest.mark.parametrize("written", ["", "ns.test", "10.0.0.2:0", "10.0.0.2:99999", "[::1", "10.0.0.2:", ":53", "[]"])
def test_what_is_no_name_server_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="nameserver must be ADDRESS"):
        nameserver_of(written)
