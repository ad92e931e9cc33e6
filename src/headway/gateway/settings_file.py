"""Reading of the gateway's settings: one TOML file, each mistake in it one sentence.

`read_settings` reads a file; `headway check-config` does nothing else. The keys are declared in `settings.py`.
One file because `check` and what it calls are one list.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from headway.config.address import host_and_port, nameserver_of
from headway.config.atomic_file import check_folder
from headway.config.nearest_name import nearest
from headway.config.toml_file import read_toml
from headway.config.typed_values import read_table
from headway.gateway.settings import (
    HINTS,
    KEY_CHARACTERS_MIN,
    SERVICE_TIERS,
    BudgetSettings,
    JwtSettings,
    LeaseSettings,
    ModelSettings,
    PolicySettings,
    ReplicaSettings,
    ReplicaSourceSettings,
    Settings,
    TenantSettings,
    TlsSettings,
    class_priority,
)
from headway.gateway.trusted_sources import TrustedProxies, is_loopback
from headway.policies.catalog import ALL_KINDS, KINDS, build
from headway.policies.contracts import Need
from headway.policies.places import DecisionPlace, check_place, needs_of
from headway.scheduling.bundle import bundle

_MAY_BE_0 = (
    *(
        "seed",
        "lame_duck_seconds",
        "on",
        "prefix_caching",
        "replicas",
        "sample_share",
        "ejected_share_max",
        "panic_share",
        "share",
        "use_max",
    ),
    *("leeway_seconds", "backoff_seconds", "retry_share", "retries_min", "keep_alive_seconds"),
    *("ready_without_replica", "no_replica_max_requests", "free_bytes_min"),
)
_SHARES = (
    ("health", "ejected_share_max"),
    ("health", "panic_share"),
    ("health", "failing_share"),
    ("tracing", "sample_share"),
    ("requests", "retry_share"),
    ("scaling", "target_load"),
    ("offline", "use_max"),
    ("offline", "share"),
)
_WITH_NUMBERS = (
    *("policies", "queue", "offline", "requests", "health", "wire", "jwt"),
    *("scaling", "lease", "state", "batches", "tuning", "auto", "tracing", "embedded"),
)
_NUMBER_MAX = 10**15  # timers, sockets and engines take any whole number up to it; nothing here needs a larger one
_TCP_IDLE_SECONDS_MAX = 32_767  # Linux
_KEEP_ALIVE_SECONDS_MAX = 300
_LEASE_SECONDS_MAX = 300
_ENGINES_MAX = 1_000  # simulated ones, all in this process

_SOURCES = ("dns", "srv", "file", "inference_pool")
YAML_ENDINGS = (".yaml", ".yml")
_FOUND_MAX = 500  # replicas of one source: to take in so many takes some 40 ms of the event loop
_NO_URL = "http://127.0.0.1:1"

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_OF_NO_KEY = (sha256(b"").digest(), sha256(b"\n").digest())
_CERTIFICATE_NAME = re.compile(r"(CN|DNS|URI|email):.+")
_LEASE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-.a-z0-9]*[a-z0-9])?")  # RFC 1123
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH_NAME = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:@-]+")  # RFC 3986, segment-nz
_HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_ZMQ_ADDRESS = re.compile(r"tcp://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([1-9][0-9]{0,4})|ipc://\S+")
_POOL_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?/[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_ORIGIN = re.compile(
    r"(?!http://[^:]+:80$|https://[^:]+:443$)[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]+)?"
)


def read_settings(path: Path) -> Settings:
    """The settings of a TOML file.

    Raises:
        ValueError: one sentence that names the file, the key and the fix.
    """
    content = read_toml(path, str(path))
    try:
        settings = read_table(Settings, content)
        check(settings)
        if "lease" in content and settings.lease.file is None and settings.lease.kubernetes is None:
            raise ValueError("[lease] needs file or kubernetes: without one no gateway stands by; or leave [lease] out")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return settings


def check(settings: Settings) -> None:
    """Raise ValueError, one sentence, if the settings cannot be carried out."""
    _check_addresses(settings)
    if settings.batches.folder == "":
        raise ValueError("batches.folder must name a folder; leave it out to have no Batch API")
    for key in ("tls_certificate", "tls_key", "record"):
        if getattr(settings, key) == "":
            raise ValueError(f"{key} must name a file; leave it out to have none")
    _check_rights(settings)
    _check_jwt(settings)
    _check_tls(settings)
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise ValueError("tls_certificate and tls_key belong together: give both or neither")
    _check_lease(settings.lease)
    check_policies(settings.policies)
    _check_numbers(settings)
    if not (settings.replica or settings.replica_source or settings.embedded.replicas or admin_has_keys(settings)):
        raise ValueError("embedded.replicas is 0, so replicas can only come by /admin; give it a key in [admin]")
    _check_classes(settings)
    _check_aliases(settings)
    for name, own in settings.models.items():
        _check_model(name, own, settings)
    _check_replicas(settings)
    names_with_parts = {tenant.name for tenant in settings.tenant if "fairness-id" in tenant.may}
    for tenant in settings.tenant:
        _check_tenant(tenant)
        _check_unlike_parts(tenant.name, names_with_parts)


def _check_replicas(settings: Settings) -> None:
    admission = settings.policies.admission
    needs_memory = Need.MEMORY in needs_of("admission", admission)
    for number, source in enumerate(settings.replica_source):
        _check_source(f"replica_source[{number}]", source)
        if source in settings.replica_source[:number]:
            raise ValueError(f"replica_source[{number}]: {source.label} is there twice; name it once")
    templates = {
        f"replica_source[{number}].each": template_of(f"replica_source[{number}]", source)
        for number, source in enumerate(settings.replica_source)
    }
    configured = {f"replica[{number}]": replica for number, replica in enumerate(settings.replica)}
    for where, replica in (configured | templates).items():
        check_replica(where, replica)
        if needs_memory and replica.kv_tokens is None and not replica.metrics:
            raise ValueError(
                f"{where}.kv_tokens: policies.admission {admission} needs the replica's KV memory, which "
                "nothing tells: set kv_tokens, or metrics = true where its engine reports it"
            )
    addresses = Counter(address_of(replica.url) for replica in settings.replica)
    for replica in settings.replica:
        if addresses[address_of(replica.url)] > 1:
            raise ValueError(f"replica: the url {replica.url!r} is there twice; name each engine once")
    names = [replica_name(replica) for replica in settings.replica]
    for names_of, what in ((names, "replica"), ([tenant.name for tenant in settings.tenant], "tenant")):
        twice = next((name for name, number in Counter(names_of).items() if number > 1), None)
        if twice is not None:
            raise ValueError(f"{what}: {twice!r} is there twice; give each its own name")


def _check_addresses(settings: Settings) -> None:
    _, port = host_and_port(settings.listen, "listen")
    if settings.admin_listen is None:
        return
    host_and_port(settings.admin_listen, "admin_listen")
    if settings.admin_listen == settings.listen and port:
        raise ValueError(f"admin_listen must not be the address of listen, {settings.listen}; give it another port")


def _check_rights(settings: Settings) -> None:
    for where, variable in (("admin_key_env", settings.admin_key_env), ("admin.key_env", settings.admin.key_env)):
        _check_variable(where, variable)
        if variable is not None:
            key_of_environment(where, variable)
    for name, digest in settings.admin.key_sha256.items():
        _check_name("admin.key_sha256: a name", name)
        key_digest(f"admin.key_sha256.{name}", digest)
    try:
        TrustedProxies(settings.trusted_proxies)
    except ValueError as error:
        raise ValueError(f"trusted_proxies must hold addresses or networks: {error}") from None
    for name in settings.forward:
        if not _PATH_NAME.fullmatch(name):
            raise ValueError(f"forward must hold first names of paths, for example 'load_lora_adapter', got {name!r}")
    for name in settings.hosts:
        if not _HOST_NAME.fullmatch(name):
            raise ValueError(
                f"hosts must hold names without scheme and port, for example 'gateway.local', got {name!r}"
            )
    for origin in settings.cors_origins:
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                "cors_origins must hold origins as browsers send them, for example 'https://chat.example.com': scheme "
                f"and name in small letters, no path, and no port that the scheme has anyway; got {origin!r}"
            )


def key_digest(where: str, written: str) -> bytes:
    """The SHA-256 of a key, as its setting gives it.

    Raises ValueError, one sentence that does not show what was written: it might be the key itself.
    """
    if not _SHA256.fullmatch(written):
        raise ValueError(f"{where} must be the SHA-256 of a key, 64 hexadecimal digits; got {len(written)} characters")
    digest = bytes.fromhex(written)
    if digest in _OF_NO_KEY:
        raise ValueError(f'{where} is the SHA-256 of nothing; make it with: printf %s "$KEY" | sha256sum')
    return digest


def listed(written: str | Sequence[str]) -> Sequence[str]:
    """A setting that may be one text or a list, as a list."""
    return [written] if isinstance(written, str) else written


def key_of_environment(where: str, variable: str) -> bytes:
    """The key in an environment variable. Raises ValueError, one sentence without the key."""
    key = os.environ.get(variable, "").strip()
    if len(key) < KEY_CHARACTERS_MIN:
        least = f"no key of {KEY_CHARACTERS_MIN} characters or more"
        raise ValueError(f"{where}: the environment variable {variable} holds {least}")
    return os.fsencode(key)


def replica_key(replica: ReplicaSettings) -> str:
    """The key that a replica wants, "" for none."""
    return os.environ.get(replica.api_key_env, "").strip() if replica.api_key_env is not None else ""


def _check_jwt(settings: Settings) -> None:
    chosen = settings.jwt
    for tenant in settings.tenant:
        if tenant.jwt_values and chosen.jwks_url is None and chosen.jwks_file is None:
            raise ValueError(f"tenant {tenant.name!r}: jwt_values needs jwt.jwks_url or jwt.jwks_file")
    if chosen == JwtSettings():
        return
    if (chosen.jwks_url is None) == (chosen.jwks_file is None):
        raise ValueError("jwt: give jwks_url or jwks_file, one of them")
    for key in ("issuer", "audience", "tenant_claim"):
        if not getattr(chosen, key):
            raise ValueError(f"jwt.{key} is missing; tokens cannot be checked without it")
    if not chosen.algorithms:
        raise ValueError("jwt.algorithms is empty; give RS256, ES256 or both")
    if chosen.jwks_url is not None:
        _check_url("jwt.jwks_url", chosen.jwks_url, "https://login.example.com/keys")
        parts = urlsplit(chosen.jwks_url)
        if parts.scheme != "https" and not is_loopback(f"{parts.hostname}:{parts.port}"):
            raise ValueError(
                f"jwt.jwks_url must be https: over http its keys can be replaced; got {shown_url(chosen.jwks_url)!r}"
            )
    if not any(tenant.jwt_values for tenant in settings.tenant):
        raise ValueError("jwt: no tenant has jwt_values, so every token would be refused; give them to a [[tenant]]")


def _check_tls(settings: Settings) -> None:
    chosen = settings.tls
    if chosen != TlsSettings() and settings.tls_certificate is None:
        raise ValueError("[tls] needs tls_certificate and tls_key; without them the address is plain HTTP")
    if (chosen.client_certificates == "none") != (chosen.client_authorities is None):
        raise ValueError('tls: client_certificates = "optional" or "required" and client_authorities belong together')
    for tenant in settings.tenant:
        if tenant.certificate_names and chosen.client_certificates == "none":
            raise ValueError(
                f"tenant {tenant.name!r}: certificate_names needs tls.client_certificates, optional or required"
            )


def _check_lease(chosen: LeaseSettings) -> None:
    if chosen.file is not None and chosen.kubernetes is not None:
        raise ValueError("lease: file and kubernetes exclude each other; leave one out")
    if chosen.file == "":
        raise ValueError("lease.file must name a file; leave it out to have none")
    check_folder("lease.file", chosen.file)
    if chosen.kubernetes is not None and not _LEASE_NAME.fullmatch(chosen.kubernetes):
        raise ValueError(f"lease.kubernetes must be NAMESPACE/NAME, in small letters, got {chosen.kubernetes!r}")
    if chosen.kubernetes is not None and find_spec("kubernetes_asyncio") is None:
        raise ValueError("lease.kubernetes needs the extra: pip install 'headway[kubernetes]'")
    if not 3 <= chosen.seconds <= _LEASE_SECONDS_MAX:
        raise ValueError(f"lease.seconds must be from 3 to {_LEASE_SECONDS_MAX}, got {chosen.seconds}")


def check_policies(chosen: PolicySettings) -> None:
    """Raise ValueError, one sentence, if policies with these options cannot be built, or not in a gateway."""
    for kind in chosen.options:
        if kind not in ALL_KINDS:
            raise ValueError(f"policies.options: unknown kind {kind!r}{nearest(kind, ALL_KINDS)}")
    names = {kind: getattr(chosen, kind) for kind in KINDS}
    options: dict[str, Mapping[str, Any]] = {kind: chosen.options[kind] for kind in KINDS if kind in chosen.options}
    offline = chosen.offline_ordering
    check_place("ordering", offline, DecisionPlace.GATEWAY, "policies.offline_ordering")
    bundle(**names, options=options, offline_ordering=offline, costs=chosen.costs, seed=chosen.seed)
    build("routing", chosen.routing, chosen.options.get("routing"), costs=chosen.costs, seed=chosen.seed)
    moving = chosen.options.get("rescheduling")
    build("rescheduling", chosen.rescheduling, moving, costs=chosen.costs, seed=chosen.seed)
    for kind in ALL_KINDS:
        check_place(kind, getattr(chosen, kind), DecisionPlace.GATEWAY, f"policies.{kind}")


def _check_numbers(settings: Settings) -> None:
    for key, least in (("media_tokens", 0), ("metrics_series_max", 1), ("log_lines_max", 1)):
        _check_count(key, getattr(settings, key), least)
    for name, key in _SHARES:
        share = getattr(getattr(settings, name), key)
        if not 0 <= share <= 1:
            raise ValueError(f"{name}.{key} must be from 0 to 1, got {share}")
    if settings.health.tcp_idle_seconds > _TCP_IDLE_SECONDS_MAX:
        most, got = f"{_TCP_IDLE_SECONDS_MAX:,}", settings.health.tcp_idle_seconds
        raise ValueError(f"health.tcp_idle_seconds must be at most {most}, got {got}")
    for name in _WITH_NUMBERS:
        part = getattr(settings, name)
        for one in fields(part):
            value = getattr(part, one.name)
            if isinstance(value, int | float):
                _check_number(f"{name}.{one.name}", value, may_be_0=one.name in _MAY_BE_0)
    seconds = settings.queue.keep_alive_seconds
    if seconds and not 1 <= seconds <= _KEEP_ALIVE_SECONDS_MAX:
        bounds = f"0 (off) or from 1 to {_KEEP_ALIVE_SECONDS_MAX}"
        raise ValueError(f"queue.keep_alive_seconds must be {bounds}, got {seconds:g}")
    if settings.embedded.replicas > _ENGINES_MAX:
        raise ValueError(f"embedded.replicas must be at most {_ENGINES_MAX}, got {settings.embedded.replicas}")
    for objective, priority in settings.objectives.items():
        _check_not_huge(f"objectives.{objective}", priority)


def _check_classes(settings: Settings) -> None:
    for tier in fields(settings.service_tiers):
        _check_not_huge(f"service_tiers.{tier.name}", getattr(settings.service_tiers, tier.name))
    for name, share in settings.queue.class_ceilings.items():
        where = f"queue.class_ceilings.{name}"
        try:
            priority = class_priority(name, settings.service_tiers)
        except ValueError:
            tiers = ", ".join(SERVICE_TIERS)
            raise ValueError(f"{where}: a class is one of {tiers}, or a priority like '20'; rename it") from None
        _check_not_huge(where, priority)
        if not 0 <= share <= 1:
            raise ValueError(f"{where} must be from 0 to 1, got {share}")


def _check_aliases(settings: Settings) -> None:
    """Each leads to a model in the end."""
    for name, target in settings.aliases.items():
        if not name or not target:
            raise ValueError(f"aliases: {name!r} = {target!r} lacks a name; give both")
        passed = [name]
        while (target := settings.aliases.get(passed[-1], "")) not in ("", *passed):
            passed.append(target)
        if target:
            circle = " -> ".join([*passed, target])
            raise ValueError(f"aliases.{name} leads in a circle: {circle}; let it end at a model")


def _check_model(name: str, own: ModelSettings, settings: Settings) -> None:
    where = f"models.{name}"
    if name in settings.aliases:
        raise ValueError(f"{where} is an alias; write the settings under its model, {settings.model_of(name)!r}")
    for key in ("max_requests", "max_tokens", "max_bytes"):
        _check_count(f"{where}.{key}", getattr(own, key), 1)
    if own.fallback_wait_seconds is not None:
        _check_number(f"{where}.fallback_wait_seconds", own.fallback_wait_seconds, may_be_0=True)
        if not own.fallbacks:
            raise ValueError(f"{where}.fallback_wait_seconds is set without fallbacks; name some, or leave it out")
    if "" in own.fallbacks or name in map(settings.model_of, own.fallbacks):
        raise ValueError(f"{where}.fallbacks must name other models, got {list(own.fallbacks)!r}")
    if own.ordering is None and own.ordering_options:
        raise ValueError(f"{where}.ordering_options are those of its own ordering; set ordering too")
    if own.ordering is not None:
        try:
            check_policies(settings.policies_of(name))
        except ValueError as error:
            raise ValueError(f"{where}.ordering: {error}") from None


def _check_count(where: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if value < least:
        raise ValueError(f"{where} must be at least {least}, got {value}")
    _check_not_huge(where, value)


def _check_number(where: str, value: float, *, may_be_0: bool) -> None:
    if may_be_0 and not value >= 0:
        raise ValueError(f"{where} must be at least 0, got {value}")
    if not may_be_0 and not value > 0:
        raise ValueError(f"{where} must be above 0, got {value}")
    if value == math.inf:
        raise ValueError(f"{where} must be a finite number, got {value}")
    _check_not_huge(where, value)


def _check_not_huge(where: str, value: float) -> None:
    if abs(value) > _NUMBER_MAX:
        raise ValueError(f"{where} must be at most {_NUMBER_MAX:g}, got {value:g}")


def admin_has_keys(settings: Settings) -> bool:
    """Whether something may be changed by `/admin`."""
    return settings.admin.key_env is not None or bool(settings.admin.key_sha256)


def replica_name(replica: ReplicaSettings) -> str:
    """What a replica is called in logs, metrics and under `/admin`."""
    return replica.name or urlsplit(replica.url).netloc


def template_of(where: str, source: ReplicaSourceSettings) -> ReplicaSettings:
    """What holds for each replica that a source finds, at an address that is none. Raises ValueError, one sentence."""
    for key in ("url", "name"):
        if key in source.each:
            raise ValueError(f"{where}.each.{key} is what the source finds out; leave it out")
    return read_table(ReplicaSettings, {**source.each, "url": _NO_URL}, f"{where}.each.")


def _check_source(where: str, source: ReplicaSourceSettings) -> None:
    given = [key for key in _SOURCES if getattr(source, key) is not None]
    if len(given) != 1:
        raise ValueError(f"{where} must have one of {', '.join(_SOURCES)}; it has {' and '.join(given) or 'none'}")
    kind = given[0]
    if not getattr(source, kind).isprintable() or not getattr(source, kind):
        raise ValueError(f"{where}.{kind} is empty, or holds a line break: {getattr(source, kind)!r}; correct it")
    _check_number(f"{where}.refresh_seconds", source.refresh_seconds, may_be_0=False)
    _check_count(f"{where}.replicas_max", source.replicas_max, 1)
    if source.replicas_max > _FOUND_MAX:
        raise ValueError(f"{where}.replicas_max must be at most {_FOUND_MAX}, got {source.replicas_max}")
    if source.dns is not None:
        host_and_port(source.dns, f"{where}.dns", port_min=1)
    if source.srv is not None and ":" in source.srv:
        raise ValueError(f"{where}.srv must be a name alone, for its records have the port; got {source.srv!r}")
    if source.inference_pool is not None and not _POOL_NAME.fullmatch(source.inference_pool):
        raise ValueError(f"{where}.inference_pool must be NAMESPACE/NAME, got {source.inference_pool!r}")
    if source.scheme == "https" and kind in ("dns", "inference_pool"):
        raise ValueError(f"{where}.scheme: {kind} finds addresses, for which no certificate is made; use srv or file")
    if source.nameserver is not None:
        if kind not in ("dns", "srv"):
            raise ValueError(f"{where}.nameserver is for dns and srv; leave it out")
        nameserver_of(source.nameserver, f"{where}.nameserver")
    if source.kubeconfig is not None and kind != "inference_pool":
        raise ValueError(f"{where}.kubeconfig is for inference_pool; leave it out")
    needs_yaml = kind == "file" and (source.file or "").endswith(YAML_ENDINGS)
    for package, extra, is_needed in (
        ("kubernetes_asyncio", "kubernetes", kind == "inference_pool"),
        ("dns", "dns", kind == "srv" or source.nameserver is not None),
        ("yaml", "kubernetes", needs_yaml),
    ):
        if is_needed and find_spec(package) is None:
            raise ValueError(f"{where}.{kind} needs the package {package}: pip install 'headway[{extra}]'")


def check_replica(where: str, replica: ReplicaSettings) -> None:
    """Raise ValueError, one sentence, if a replica cannot be one."""
    for key in ("max_requests", "prefill_tokens", "kv_tokens", "kv_blocks_max"):
        _check_count(f"{where}.{key}", getattr(replica, key), 1)
    _check_url(f"{where}.url", replica.url, "http://127.0.0.1:8001 (without /v1)", is_base=True)
    _check_name(f"{where}.name", replica.name)
    _check_variable(f"{where}.api_key_env", replica.api_key_env)
    _check_kv_events(where, replica)
    key = replica_key(replica)
    if replica.api_key_env is not None and not key:
        raise ValueError(f"{where}.api_key_env: the environment variable {replica.api_key_env} is empty")
    if not key.isprintable() or not key.isascii():
        raise ValueError(f"{where}.api_key_env: {replica.api_key_env} holds what no header may hold; set the key alone")


def _check_kv_events(where: str, replica: ReplicaSettings) -> None:
    for key in ("kv_events_endpoint", "kv_events_replay"):
        endpoint = getattr(replica, key)
        if endpoint is None:
            continue
        if not replica.kv_events:
            raise ValueError(f"{where}.{key} is set without kv_events; set kv_events = true, or leave it out")
        if not _ZMQ_ADDRESS.fullmatch(endpoint):
            raise ValueError(f"{where}.{key} must be like tcp://10.0.0.5:5557 or ipc:///path, got {endpoint!r}")
    if replica.kv_events and find_spec("zmq") is None:
        raise ValueError(f"{where}.kv_events needs the package pyzmq: pip install 'headway[kv-events]'")


def shown_url(url: str) -> str:
    """A URL for a sentence or a log: without the password or the query, which may hold a key."""
    return re.sub(r"\?.*", "?…", re.sub("//[^/]*@", "//…@", url), flags=re.DOTALL)


def _check_url(where: str, url: str, example: str, *, is_base: bool = False) -> None:
    """`is_base`: more of a path follows, so it has no query and does not end in `/v1`."""
    shown = repr(shown_url(url))
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")
        (parts.path + parts.query).encode("ascii")
    except ValueError:  # of the port, brackets, or letters that no name and no path may hold
        fits = False
    if not fits or parts.fragment or parts.username or (is_base and (parts.query or parts.path.rstrip("/") == "/v1")):
        raise ValueError(f"{where} must be like {example}, got {shown}")
    if not url.isprintable() or " " in url:
        raise ValueError(f"{where} holds a space or a line break: {shown}; take it out")


def address_of(url: str) -> tuple[str, int | None, str]:
    """What a URL leads to, however it is spelled."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.hostname or "", port, parts.path.rstrip("/")


def _check_name(where: str, name: str) -> None:
    if not name.isprintable():
        raise ValueError(f"{where} holds a line break or another unprintable character: {name!r}; take it out")


def _check_variable(where: str, variable: str | None) -> None:
    """The sentence does not show what was written: it might be the key itself."""
    if variable is not None and not _VARIABLE.fullmatch(variable):
        raise ValueError(
            f"{where} must name an environment variable, of letters, digits and _; it does not hold the key"
        )


def _check_unlike_parts(name: str, names_with_parts: Set[str]) -> None:
    """Tenant `a` with fairness id `b` counts as `a/b`, so no other tenant may have that name."""
    for end, character in enumerate(name):
        if character == "/" and name[:end] in names_with_parts:
            raise ValueError(
                f"tenant {name!r} is also tenant {name[:end]!r} with fairness id {name[end + 1 :]!r}; name it without /"
            )


def _check_tenant(tenant: TenantSettings) -> None:
    if not tenant.name:
        raise ValueError("tenant.name is empty; give each tenant a name")
    _check_name("tenant.name", tenant.name)
    if not 0 < tenant.deadline_seconds_min < math.inf:
        seconds = f"{tenant.deadline_seconds_min:g}"
        raise ValueError(f"tenant {tenant.name!r}: deadline_seconds_min must be above 0 and finite, got {seconds}")
    keys = (tenant.key_env, tenant.key_file, tenant.key_sha256, tenant.jwt_values, tenant.certificate_names)
    if not any(keys):
        raise ValueError(
            f"tenant {tenant.name!r} has no key; give key_env, key_file, key_sha256, jwt_values or certificate_names"
        )
    for name in tenant.certificate_names:
        if not _CERTIFICATE_NAME.fullmatch(name):
            raise ValueError(
                f"tenant {tenant.name!r}: certificate_names must hold names like 'CN:team-a', 'DNS:a.example.com', "
                f"'URI:spiffe://…' or 'email:…', got {name!r}"
            )
    _check_variable(f"tenant {tenant.name!r}: key_env", tenant.key_env)
    for number, digest in enumerate(listed(tenant.key_sha256)):
        key_digest(f"tenant {tenant.name!r}: key_sha256[{number}]", digest)
    for hint in tenant.may:
        if hint not in HINTS:
            raise ValueError(f"tenant {tenant.name!r}: unknown hint {hint!r} in may{nearest(hint, HINTS)}")
    for key in ("priority_min", "priority_max", "deadline_seconds_min"):
        _check_not_huge(f"tenant {tenant.name!r}: {key}", getattr(tenant, key))
    check_budget(f"tenant {tenant.name!r}: budget", tenant.budget)
    if tenant.priority_min > tenant.priority_max:
        raise ValueError(f"tenant {tenant.name!r}: priority_min is above priority_max; swap them")
    least, most, default = tenant.priority_min, tenant.priority_max, tenant.priority_default
    if default is not None and not least <= default <= most:
        bounds = f"priority_min and priority_max, {least} and {most}"
        raise ValueError(f"tenant {tenant.name!r}: priority_default must lie within {bounds}, got {default}")


def check_budget(where: str, budget: BudgetSettings) -> None:
    """Raise ValueError, one sentence, if a limit makes no sense."""
    for one in fields(budget):
        if one.name != "over_budget":
            _check_count(f"{where}.{one.name}", getattr(budget, one.name), 1)
