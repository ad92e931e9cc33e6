"""What an operator may set: one TOML file, each mistake in it one sentence.

`read_settings` reads a file, `headway check-config` does nothing else. Keys are the field names of the classes below.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from headway.config.nearest_name import nearest
from headway.config.toml_file import read_toml
from headway.config.typed_values import read_table
from headway.domain.costs import ServiceCosts
from headway.gateway.wire.limits import WireLimits
from headway.policies.catalog import ALL_KINDS, build
from headway.scheduling.bundle import bundle
from headway.tuning.tuning_settings import TuningSettings

HINTS = ("priority", "deadline", "fairness-id", "session", "output-tokens")
"""What a client may say of its own request, if its key allows it. `session` is believed of everybody."""


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The bundle, by catalogue names, and how replicas are chosen; `options` as kind → option → value."""

    ordering: str = "highest-response-ratio"
    admission: str = "greedy"
    preemption: str = "latest-admitted"
    prediction: str = "histogram"
    routing: str = "least-work"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0
    prefill_seconds_per_token: float = 2e-5
    decode_seconds_per_token: float = 2e-2

    @property
    def costs(self) -> ServiceCosts:
        """Seconds of service per token, for policies that weigh work."""
        return ServiceCosts(self.prefill_seconds_per_token, self.decode_seconds_per_token)


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """One engine.

    Attributes:
        url: where it listens, http(s)://host:port.
        name: label in metrics and on the page; its host and port by default.
        max_requests: requests it may have at once; found adaptively by default.
        prefill_tokens: prompt tokens sent to it and not computed yet, at most (one may always go); two of vLLM's
            default steps, so that it never runs dry and never has a queue of prompts worth reordering.
        kv_tokens: its KV memory; read from its metrics by default, where it tells.
        priority: "lower-first" (vLLM) or "higher-first" (SGLang) if it runs a priority scheduler: then the request's
            (clamped) priority is written into the body with that sign.
        hints: "auto" writes expected length, tenant, session, deadline and rank into `vllm_xargs` if the replica's
            metrics show that Headway's plug-in schedules there; "always" and "never" do not ask.
        load_header: ask for its load in each response (`endpoint-load-metrics`), fresher than its metrics.
        learn_usage: ask it for the usage chunk of streams, and hide it from clients that did not ask.
        metrics: scrape its /metrics.
        api_key_env: environment variable with the key it wants.
    """

    url: str
    name: str = ""
    max_requests: int | None = None
    prefill_tokens: int = 16_384
    kv_tokens: int | None = None
    priority: Literal["none", "lower-first", "higher-first"] = "none"
    hints: Literal["auto", "always", "never"] = "auto"
    load_header: bool = False
    learn_usage: bool = True
    metrics: bool = True
    api_key_env: str | None = None


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Bounds of the queue. Tokens are prompt tokens as estimated, bytes those of bodies.

    Attributes:
        max_requests, max_tokens, max_bytes: of all who wait.
        tenant_max_requests, tenant_max_tokens, tenant_max_bytes: of one API key's; without keys, of one fairness id's.
            None bounds nothing.
        timeout_seconds: the longest anybody waits.
    """

    max_requests: int = 10_000
    max_tokens: int = 100_000_000
    max_bytes: int = 1 << 30
    tenant_max_requests: int | None = None
    tenant_max_tokens: int | None = None
    tenant_max_bytes: int | None = None
    timeout_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """When a replica is given up, and how it is asked whether it is back.

    Attributes:
        scrape_seconds: between two looks at a replica's metrics.
        stale_seconds: a report older than this decides nothing.
        failures_to_eject: failures in a row; a refused connection ejects at once.
        eject_seconds, eject_seconds_max: until the first probe of an ejected replica, doubled up to the most.
        connect_seconds, first_byte_seconds, silent_seconds: how long a replica may take to accept, to begin its answer
            and between two pieces of it.
        no_replica_seconds: how long those who wait are kept when no replica that could answer them is up.
        drain_seconds: how long requests may go on after SIGTERM.
    """

    scrape_seconds: float = 1.0
    stale_seconds: float = 5.0
    failures_to_eject: int = 3
    eject_seconds: float = 2.0
    eject_seconds_max: float = 60.0
    connect_seconds: float = 5.0
    first_byte_seconds: float = 600.0
    silent_seconds: float = 300.0
    no_replica_seconds: float = 10.0
    drain_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """One API key and what it may ask for; give `key_env` or `key_file`.

    Attributes:
        may: hints that are believed of this key, out of `HINTS`.
        priority_min: the most urgent priority it may ask for (lower runs sooner).
        priority_max: the least urgent.
        deadline_seconds_min: the tightest time to first token it may ask for.
    """

    name: str
    key_env: str | None = None
    key_file: str | None = None
    may: Sequence[str] = ("session",)
    priority_min: int = 0
    priority_max: int = 100
    deadline_seconds_min: float = 0.1


@dataclass(frozen=True, slots=True)
class StateSettings:
    """Where what was learned outlives a restart.

    Attributes:
        path: the file; without one nothing is kept. It names tenants, never sessions, and holds no text.
        save_seconds: between two savings; it is saved when the gateway drains, too.
    """

    path: str | None = None
    save_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """OpenTelemetry traces (the extra `otel`).

    Attributes:
        endpoint: where spans are sent, OTLP over HTTP, for example http://127.0.0.1:4318/v1/traces; None sends none.
        service_name: what we are called there.
        sample_share: of the requests that come without a decision of their caller's, so many are traced.
    """

    endpoint: str | None = None
    service_name: str = "headway"
    sample_share: float = 1.0


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """The simulated engines that stand in where there is no replica.

    Attributes:
        replicas: how many.
        hardware, model: names or files, as for `headway compare`.
        max_num_seqs, kv_tokens: seats and KV memory; the engine's own by default.
        prefix_caching: prompts that begin alike share their memory, and are not computed twice.
    """

    replicas: int = 1
    hardware: str = "h100"
    model: str = "llama-3.1-8b"
    max_num_seqs: int | None = None
    kv_tokens: int | None = None
    prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything.

    Attributes:
        listen: host:port of the public address.
        admin_listen: host:port of metrics and page; with tenants they are nowhere else.
        tls_certificate, tls_key: PEM files; both or neither.
        record: a file for lengths and times of every answered request, a trace for `headway compare`; never text.
        tokenizers: model -> its tokenizer.json, to count prompts with (the extra `tokenizer`); other models' prompts
            are estimated from bytes.
        objectives: name -> priority of the objectives that `x-llm-d-inference-objective` may name, higher sooner as in
            the InferenceObjective of Kubernetes' inference gateway; heard of keys that may set a priority.
    """

    listen: str = "127.0.0.1:8000"
    admin_listen: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    record: str | None = None
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    objectives: Mapping[str, int] = field(default_factory=dict)
    policies: PolicySettings = field(default_factory=PolicySettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    wire: WireLimits = field(default_factory=WireLimits)
    state: StateSettings = field(default_factory=StateSettings)
    tuning: TuningSettings = field(default_factory=TuningSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    embedded: EmbeddedSettings = field(default_factory=EmbeddedSettings)
    replica: Sequence[ReplicaSettings] = ()
    tenant: Sequence[TenantSettings] = ()


_MAY_BE_0 = ("seed", "on", "prefix_caching", "sample_share")


def read_settings(path: Path) -> Settings:
    """The settings of a TOML file.

    Raises:
        ValueError: one sentence that names the file, the key and the fix.
    """
    content = read_toml(path, str(path))
    try:
        settings = read_table(Settings, content)
        check(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return settings


def check(settings: Settings) -> None:
    """Raise ValueError, one sentence, if the settings cannot be carried out."""
    for key in ("listen", "admin_listen"):
        address = getattr(settings, key)
        if address is not None:
            host_and_port(address, key)
    for key in ("tls_certificate", "tls_key", "record"):
        if getattr(settings, key) == "":
            raise ValueError(f"{key} must name a file; leave it out to have none")
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise ValueError("tls_certificate and tls_key belong together: give both or neither")
    _check_policies(settings.policies)
    _check_numbers(settings)
    for number, replica in enumerate(settings.replica):
        _check_replica(f"replica[{number}]", replica)
    names = [replica.name or urlsplit(replica.url).netloc for replica in settings.replica]
    for names_of, what in ((names, "replica"), ([tenant.name for tenant in settings.tenant], "tenant")):
        twice = next((name for name in names_of if names_of.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{what}: {twice!r} is there twice; give each its own name")
    for tenant in settings.tenant:
        _check_tenant(tenant)


def host_and_port(address: str, key: str) -> tuple[str, int]:
    """Both parts of an address. Raises ValueError, one sentence."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f'{key} must be host:port, for example "127.0.0.1:8000", got {address!r}')
    return host.strip("[]"), int(port)


def tenant_key(tenant: TenantSettings) -> str:
    """The key itself, from the environment or a file. Raises ValueError, one sentence, without the key in it."""
    if tenant.key_env is not None:
        key = os.environ.get(tenant.key_env, "")
        where = f"the environment variable {tenant.key_env}"
    else:
        where = f"the file {tenant.key_file}"
        try:
            key = Path(str(tenant.key_file)).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"tenant {tenant.name!r}: {where} cannot be read: {error}") from None
    if len(key) < 8:
        raise ValueError(f"tenant {tenant.name!r}: {where} holds no key of 8 characters or more")
    return key


def replica_key(replica: ReplicaSettings) -> str:
    """The key that a replica wants, "" for none."""
    return os.environ.get(replica.api_key_env, "").strip() if replica.api_key_env is not None else ""


def _check_policies(chosen: PolicySettings) -> None:
    for kind in chosen.options:
        if kind not in ALL_KINDS:
            raise ValueError(f"policies.options: unknown kind {kind!r}{nearest(kind, ALL_KINDS)}")
    names = {kind: getattr(chosen, kind) for kind in ALL_KINDS}
    routing = names.pop("routing")
    options = {kind: table for kind, table in chosen.options.items() if kind != "routing"}
    bundle(**names, options=options, costs=chosen.costs, seed=chosen.seed)
    build("routing", routing, chosen.options.get("routing"), costs=chosen.costs, seed=chosen.seed)


def _check_numbers(settings: Settings) -> None:
    for name in ("policies", "queue", "health", "wire", "state", "tuning", "tracing", "embedded"):
        part = getattr(settings, name)
        for one in fields(part):
            value = getattr(part, one.name)
            if isinstance(value, int | float) and one.name not in _MAY_BE_0 and not value > 0:
                raise ValueError(f"{name}.{one.name} must be above 0, got {value}")
            if value == math.inf:
                raise ValueError(f"{name}.{one.name} must be a finite number, got {value}")
    for replica in settings.replica:
        for key in ("max_requests", "prefill_tokens", "kv_tokens"):
            if getattr(replica, key) is not None and getattr(replica, key) < 1:
                raise ValueError(f"replica.{key} must be at least 1, got {getattr(replica, key)}")


def _check_replica(where: str, replica: ReplicaSettings) -> None:
    url = replica.url
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")
        parts.path.encode("ascii")
    except ValueError:  # of the port, brackets, or letters that no name and no path may hold
        fits = False
    if not fits or parts.query or parts.fragment or parts.username or parts.path.rstrip("/") == "/v1":
        raise ValueError(f"{where}.url must be like http://127.0.0.1:8001 (without /v1), got {url!r}")
    if not url.isprintable() or " " in url:
        raise ValueError(f"{where}.url holds a space or a line break: {url!r}; take it out")
    _check_name(f"{where}.name", replica.name)
    key = replica_key(replica)
    if replica.api_key_env is not None and not key:
        raise ValueError(f"{where}.api_key_env: the environment variable {replica.api_key_env} is empty")
    if not key.isprintable() or not key.isascii():
        raise ValueError(f"{where}.api_key_env: {replica.api_key_env} holds what no header may hold; set the key alone")


def _check_name(where: str, name: str) -> None:
    if not name.isprintable():
        raise ValueError(f"{where} holds a line break or another unprintable character: {name!r}; take it out")


def _check_tenant(tenant: TenantSettings) -> None:
    if not tenant.name:
        raise ValueError("tenant.name is empty; give each tenant a name")
    _check_name("tenant.name", tenant.name)
    if not 0 < tenant.deadline_seconds_min < math.inf:
        seconds = f"{tenant.deadline_seconds_min:g}"
        raise ValueError(f"tenant {tenant.name!r}: deadline_seconds_min must be above 0 and finite, got {seconds}")
    if (tenant.key_env is None) == (tenant.key_file is None):
        raise ValueError(f"tenant {tenant.name!r}: give key_env or key_file, one of them")
    for hint in tenant.may:
        if hint not in HINTS:
            raise ValueError(f"tenant {tenant.name!r}: unknown hint {hint!r} in may{nearest(hint, HINTS)}")
    if tenant.priority_min > tenant.priority_max:
        raise ValueError(f"tenant {tenant.name!r}: priority_min is above priority_max; swap them")
