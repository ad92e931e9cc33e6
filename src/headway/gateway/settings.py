"""Settings of the gateway: the keys of its TOML file, which `settings_file.py` reads and checks.

Keys are the field names of the classes below. Their docstrings become docs/gateway-config.md (`settings_page.py`), in
this order. One file because they are one page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from headway.config.typed_values import Hidden
from headway.domain.costs import ServiceCosts
from headway.domain.request import RequestClass
from headway.gateway.wire.limits import WireLimits
from headway.policies.catalog import ALL_KINDS, canonical
from headway.tuning.tuning_settings import TuningSettings
from headway.twin.auto_settings import AUTO, AutoSettings

HINTS = ("priority", "deadline", "fairness-id", "session", "output-tokens", "class")
"""What a client may say of its own request, where its key allows it. `session` is allowed by default."""


KEY_CHARACTERS_MIN = 8
"""Of each key that opens something here."""


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Policies by their names in the catalogue (`headway policies` lists them), and their options.

    Attributes:
        ordering: Which queued request is next: any ordering, or `fair-share/NAME` with another ordering inside.
            `auto` begins with the default and has a twin choose, see `[auto]`.
        admission: Whether the head of the queue may be dispatched, beyond what fits.
        preemption: Part of every bundle, and `latest-admitted` here: a gateway never takes a running request
            back from a replica, so the engine chooses.
        prediction: How many output tokens a request will have.
        routing: Which of the replicas with room gets the request.
        rescheduling: Which requests go elsewhere after they were sent to a replica: `stay` for none, `take-back` for
            those that wait in an engine's own queue.
        options: Kind -> option -> value, for example `{ordering = {tenant_weights = {a = 2.0}}}`. `headway explain
            NAME` lists a policy's options.
        offline_ordering: Which offline request is next (see `[offline]`), likewise; `prefix-groups` lets those with a
            shared prefix run together. They are all behind online ones.
        seed: Random seed of the policies, and of the jitter of `Retry-After`.
        prefill_seconds_per_token: Weight of a prompt token, for orderings that weigh work. It also stands for a replica
            as long as no answer has shown what a prompt token takes there, or at another replica with its model.
        decode_seconds_per_token: Weight of an output token, likewise.
        faults_max: Faults in a row after which a policy is asked no more until a reload: it raised, or its answer made
            no sense. Each time a simple rule decides instead: the mean length, "admit", the replica with most room. An
            ordering is replaced by arrival order at its first fault, because its ranks stand beside others.
    """

    ordering: str = "highest-response-ratio"
    admission: str = "greedy"
    preemption: str = "latest-admitted"
    prediction: str = "histogram"
    routing: str = "least-work"
    rescheduling: str = "stay"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    offline_ordering: str = "fcfs"
    seed: int = 0
    prefill_seconds_per_token: float = 2e-5
    decode_seconds_per_token: float = 2e-2
    faults_max: int = 10

    @staticmethod
    def ordering_default() -> str:
        """The order unless another is named."""
        return str(next(one.default for one in fields(PolicySettings) if one.name == "ordering"))

    @property
    def costs(self) -> ServiceCosts:
        """Seconds of service per token, for policies that weigh work."""
        return ServiceCosts(self.prefill_seconds_per_token, self.decode_seconds_per_token)

    def __post_init__(self) -> None:
        for kind in ALL_KINDS:  # short names are written out
            object.__setattr__(self, kind, canonical(kind, getattr(self, kind)))


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """One engine with an OpenAI-compatible API.

    Attributes:
        url: Its address, http(s)://host:port, without `/v1`.
        name: Its label in metrics and on the live page; host and port by default. Clients see it too
            (`x-headway-replica`); without a name they see `replica-0`, `replica-1`, … and no address.
        max_requests: Concurrent requests, at most; found adaptively by default.
        prefill_tokens: Prompt tokens sent to it and not computed yet, at most; one request may always go. The default
            is two of vLLM's default steps: enough work, and too little to be worth reordering.
        kv_tokens: Its KV memory in tokens; read from its metrics by default, where it reports it.
        priority: Set it if the engine runs a priority scheduler: "lower-first" for vLLM, "higher-first" for SGLang. The
            request's clamped priority is then written into the body with that sign.
        hints: Whether expected length, tenant, session, deadline and rank are written into `vllm_xargs`. "auto": if the
            replica's metrics show Headway's vLLM plug-in. "always" and "never" decide it by hand.
        load_header: Ask for its load in each response (`endpoint-load-metrics`), which is fresher than its metrics.
        learn_usage: Ask for the usage chunk of streams; it is hidden from clients that did not ask for it.
        metrics: Scrape its `/metrics`.
        api_key_env: Environment variable with the API key that the replica wants.
        kv_events: Read its KV events (vLLM's `--kv-events-config`; extra `kv-events`), so that it is known which blocks
            its prefix cache holds.
        kv_events_endpoint: ZeroMQ address of its events, for example "tcp://10.0.0.5:5557". By default its engine is
            asked for it (`/kv_event_sources`, vLLM 0.32 and later), and where it does not say, port 5557 of the host
            of `url` is taken.
        kv_events_replay: ZeroMQ address where missed events are asked for. By default what its engine says; else none.
        kv_blocks_max: Blocks of its cache that are kept in mind, at most.
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
    kv_events: bool = False
    kv_events_endpoint: str | None = None
    kv_events_replay: str | None = None
    kv_blocks_max: int = 1_000_000


@dataclass(frozen=True, slots=True)
class ReplicaSourceSettings:
    """Where replicas are found while the gateway runs. Give it one of `dns`, `srv`, `file` and `inference_pool`.

    Attributes:
        dns: HOST:PORT. Each address of the name (A and AAAA) is a replica at that port.
        srv: Name of SRV records (extra `dns`), for example "_http._tcp.engines.example.com". Each address of each
            target is a replica at the record's port; priorities and weights are not used.
        file: Path of a file with targets, as Prometheus' `file_sd` has them: `[{"targets": ["10.0.0.5:8000"]}]`, JSON,
            or YAML where its name ends so and PyYAML is there.
        inference_pool: NAMESPACE/NAME of a Kubernetes `InferencePool` (extra `kubernetes`). Each of its pods that is
            ready is a replica, at each of its target ports.
        scheme: "http" or "https", for all that it finds; of a file the label `__scheme__` goes first.
        refresh_seconds: Time between two lookups of names, and between two looks whether a file has changed. An
            `InferencePool` is watched, and needs none.
        nameserver: ADDRESS or ADDRESS:PORT of the name server to ask (extra `dns`); by default this machine's.
        kubeconfig: Path of a kubeconfig; by default the service account of the pod that this process runs in, and
            outside of a cluster `KUBECONFIG` or `~/.kube/config`.
        replicas_max: Replicas found by it, at most; of more, the first ones by address are taken. No more than 500.
        each: Keys of `[[replica]]` but `url` and `name`, which hold for each that it finds.
    """

    dns: str | None = None
    srv: str | None = None
    file: str | None = None
    inference_pool: str | None = None
    scheme: Literal["http", "https"] = "http"
    refresh_seconds: float = 5.0
    nameserver: str | None = None
    kubeconfig: str | None = None
    replicas_max: int = 256
    each: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What it is called in logs, metrics and sentences."""
        for key in ("dns", "srv", "file", "inference_pool"):
            if getattr(self, key) is not None:
                return f"{key} {getattr(self, key)}"
        return "no source"


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Limits of the queue. A request beyond one is answered with 429. Tokens are prompt tokens as estimated.

    Attributes:
        max_requests: Queued requests, at most.
        max_tokens: Their prompt tokens, at most.
        max_bytes: The bytes of their bodies, at most.
        tenant_max_requests: Queued requests per API key (without keys: per fairness id). Unset: no limit.
        tenant_max_tokens: Their prompt tokens, likewise.
        tenant_max_bytes: The bytes of their bodies, likewise.
        class_ceilings: Class -> share of the three bounds above, from 0 to 1, that its requests and all less urgent
            ones may fill together; for example `{flex = 0.5}`. A class is a service tier or a priority (`"20" = 0.2`).
            So the less urgent are refused first as the queue fills. Unset: every class may fill the queue.
        no_replica_max_requests: Requests that came while no healthy replica could serve them, and wait for one, at
            most (`health.no_replica_seconds`). Those beyond get 503 at once. 0: all do.
        no_replica_max_bytes: The bytes of their bodies, at most.
        timeout_seconds: Longest time in the queue; then the request is answered with 429.
        stored_objects: Responses, files and batches whose replica is remembered, since requests about them go there.
        idle_seconds: A model's queue without a request for so long is forgotten. What its policies learned is kept.
        keep_alive_seconds: While a stream waits for its first token, it is sent a keep-alive every so many seconds,
            from 1 to 300: an SSE comment, or Anthropic's `ping`. 0 is off. The first one commits the answer to status
            200: a refusal or failure after it is an event of the stream.
    """

    max_requests: int = 10_000
    max_tokens: int = 100_000_000
    max_bytes: int = 1 << 30
    tenant_max_requests: int | None = None
    tenant_max_tokens: int | None = None
    tenant_max_bytes: int | None = None
    class_ceilings: Mapping[str, float] = field(default_factory=dict)
    no_replica_max_requests: int = 1_000
    no_replica_max_bytes: int = 1 << 28
    timeout_seconds: float = 600.0
    stored_objects: int = 100_000
    idle_seconds: float = 600.0
    keep_alive_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ServiceTierSettings:
    """Priorities that OpenAI's `service_tier` asks for, lower is sooner, within the bounds of the key.

    It counts for keys with `priority` among their hints (`may`). `auto`, like no tier, is the key's `priority_default`.
    A priority that the request names itself goes first.

    Attributes:
        default: Priority of `default`, and of Anthropic's `standard_only`.
        flex: Priority of `flex`.
        batch: Priority of `batch`.
        priority: Priority of `priority`; a key needs a `priority_min` as low as this.
    """

    default: int = 0
    flex: int = 10
    batch: int = 20
    priority: int = -10


@dataclass(frozen=True, slots=True)
class OfflineSettings:
    """Requests of class offline: they run in what online requests leave. A request is offline if it says so
    (`x-headway-class: offline`), if its `service_tier` is one of `tiers`, or by its key's `class_default`.

    Attributes:
        tiers: Values of `service_tier` that make a request offline. Any key may name them: they take nothing from
            others. `[]`: a tier is a priority alone.
        use_max: Share of a replica's limit of requests, and of its KV memory, that may be in use with an offline
            request sent there, its online requests included; from 0 to 1. An empty replica takes any. A gateway cannot
            take a request back from an engine, so the rest is kept for online requests that come.
        share: By how much offline requests may lengthen a replica's decode steps, as measured by the tokens of
            streams; 0.1 is a tenth. Not measured where the engine has Headway's plug-in, which keeps its own share.
        timeout_seconds: Longest time of an offline request in the queue, in place of `queue.timeout_seconds`; then it
            is answered with 429.
    """

    tiers: Sequence[Literal["flex", "batch"]] = ("flex", "batch")
    use_max: float = 0.5
    share: float = 0.1
    timeout_seconds: float = 86_400.0


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """How long a request may take, and when it is tried again.

    Attributes:
        timeout_seconds: Longest time from a request's arrival (its body is whole) to the end of its answer; then it
            ends with 504, or a stream with an error event. A client may ask for less (`x-headway-timeout-seconds`).
            Unset: no bound but those of the queue and of the replica's silence.
        backoff_seconds: Mean time before a second try; it is drawn between half and one and a half of it.
        retry_share: Second tries that are under way at once, of requests that a replica answered with 500, 502 or 504,
            at most, as a share of all requests inside, from 0 to 1 (as Envoy's retry budget). Beyond it a second try
            waits for another to end, for `health.no_replica_seconds` at most. What a replica refused, broke off or kept
            silent about is moved without this bound.
        retries_min: So many such second tries are always allowed. If both are 0 there are none.
    """

    timeout_seconds: float | None = None
    backoff_seconds: float = 0.025
    retry_share: float = 0.2
    retries_min: int = 3


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Settings of one model or LoRA adapter, by its name: `[models."NAME"]`. What is left out is as for all models.

    Attributes:
        ordering: The order of its queue, in which its adapters wait too. An adapter with an order of its own has a
            queue of its own.
        ordering_options: Options of that ordering.
        max_requests: Its queued requests, at most, those of its adapters not counted.
        max_tokens: Their prompt tokens, at most.
        max_bytes: The bytes of their bodies, at most.
        fallbacks: Models that are asked instead, the first that can be, while no healthy replica serves this one, or
            its queue is too long (`fallback_wait_seconds`). Decided once, when the request arrives.
        fallback_wait_seconds: Forecast of the wait in its queue above which a fallback with a shorter one is asked.
            Unset: only where no healthy replica serves it.
    """

    ordering: str | None = None
    ordering_options: Mapping[str, Any] = field(default_factory=dict)
    max_requests: int | None = None
    max_tokens: int | None = None
    max_bytes: int | None = None
    fallbacks: Sequence[str] = ()
    fallback_wait_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """When a replica is ejected, that is, sent no more requests, and when it is probed again.

    Attributes:
        scrape_seconds: Time between two scrapes of a replica's metrics.
        stale_seconds: A report older than this is ignored.
        models_seconds: Time between two looks at the models that a healthy replica lists. A model that no list has is
            looked for again at once, at most once a second, before it is answered with 404.
        failures_to_eject: Failures in a row until it is ejected, of requests and probes; a refused connection ejects it
            at once. An answer with status 5xx counts where another replica does not fail at the same request.
        ejected_share_max: Share of the replicas of a model, from 0 to 1, that failures of requests may eject; one may
            always go. Requests that no engine can bear then leave replicas for the others (Envoy's
            `max_ejection_percent`). Replicas that refuse connections or fail their probes are ejected beyond it.
        panic_share: Failures of requests eject no replica where less than this share of its model's replicas would be
            up (Envoy's panic threshold); those ejected for such failures are then probed at once.
        failing_share: Share of its latest answers (some twenty), above 0, from which a replica is ejected, within those
            bounds, if the other replicas of its models fail at most half as often: one that breaks every second
            stream does not fail five times in a row.
        stall_seconds: A replica is ejected, within those bounds, if for so long no byte of any answer came although one
            is due, and its metrics, which were read before, hang too. A stream is due at once, a whole answer after
            twice its expected time, or once a probe has failed.
        eject_seconds: Time until the first probe of an ejected replica; doubled at each ejection in a row.
        eject_seconds_max: Upper bound of that doubling.
        tcp_idle_seconds: Whole seconds without a packet after which a connection to a replica is probed (TCP
            keep-alive), three times, a third of it apart. One whose peer is gone then breaks, within twice this time;
            so does one whose bytes are not acknowledged for so long, where the system can (Linux). After a reload it
            applies to new replicas only.
        connect_seconds: Longest time to connect. After a reload it applies to new replicas only.
        answer_head_bytes: Headers of an answer, at most, and its trailers; more is a failure of the replica. After a
            reload it applies to new replicas only.
        first_byte_seconds: Longest time from dispatch to the first byte of the answer; of a stream to its first event,
            for which comments do not count.
        silent_seconds: Longest time between two pieces of an answer.
        no_replica_seconds: How long a request waits while no healthy replica could answer it: one that was queued, from
            the loss of the last replica; one that comes later, from its arrival. Then it gets 503. To scale from zero,
            let it be longer than a replica takes to start.
        ready_without_replica: `/ready`, and `readiness` of `headway epp`, ask for no replica that is up. Set it to
            scale from zero behind a balancer, which sends requests only to what is ready.
        lame_duck_seconds: After SIGTERM, how long `/ready` says 503 while requests are still taken, so that balancers
            learn of the end before the address closes. SIGINT skips it.
        drain_seconds: How long requests may go on after that.
    """

    scrape_seconds: float = 1.0
    stale_seconds: float = 5.0
    models_seconds: float = 30.0
    failures_to_eject: int = 5
    ejected_share_max: float = 0.1
    panic_share: float = 0.5
    failing_share: float = 0.5
    stall_seconds: float = 15.0
    eject_seconds: float = 2.0
    eject_seconds_max: float = 60.0
    tcp_idle_seconds: int = 30
    connect_seconds: float = 5.0
    answer_head_bytes: int = 131_072
    first_byte_seconds: float = 600.0
    silent_seconds: float = 300.0
    no_replica_seconds: float = 10.0
    ready_without_replica: bool = False
    lame_duck_seconds: float = 3.0
    drain_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """What a tenant's requests may use, all its keys and fairness ids together; stands below its `[[tenant]]`.

    Tokens are those of prompts and of outputs: debited as predicted when a request comes in, corrected by its usage.
    What a limit allows comes back evenly over its minute or day; a tenant that used nothing may use all of it at once.

    Attributes:
        requests_per_minute: Requests that may come in. Unset: no limit, here and below.
        requests_per_day: Likewise, in 24 hours.
        tokens_per_minute: Their tokens. A request whose prompt alone has more is refused.
        tokens_per_day: Likewise, in 24 hours.
        concurrent_requests: Requests inside the gateway at once, waiting or at a replica.
        over_budget: "refuse": a request beyond a limit gets 429. "wait": it waits until it is within, behind all
            requests that are, and may use what room those leave; that is not debited. Such requests may fill half of
            the queue.
    """

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent_requests: int | None = None
    over_budget: Literal["refuse", "wait"] = "refuse"


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """Who has some of the API keys, and what requests with them may ask for. Give it a key, of `key_…`, or another way
    to be known, `jwt_values` or `certificate_names`.

    Attributes:
        name: Its name in metrics, fair shares and logs.
        key_env: Environment variable with an API key.
        key_file: File with API keys, one a line; read again on SIGHUP. With two keys both are valid, so that a key is
            changed without a gap: add the new one, reload, change the clients, remove the old one, reload.
        key_sha256: SHA-256 of API keys, one or a list, each as 64 hexadecimal digits, as `sha256sum` prints it of a key
            without a line break. The keys themselves are then on no disk of the gateway. Let them be random: a short
            one can be guessed from its hash.
        jwt_values: Values of the claim `jwt.tenant_claim` whose tokens belong to it, compared letter by letter.
        certificate_names: Names in client certificates that belong to it, as `CN:…`, `DNS:…`, `URI:…` or `email:…`
            (`[tls] client_certificates`). A certificate that names a tenant decides before any key.
        may: Hints accepted of this key: `priority`, `deadline`, `fairness-id`, `session`, `output-tokens`,
            `class`. Others are ignored. `class` lets requests of an offline key be online; any request may be offline.
        priority_min: The most urgent priority it may ask for; lower is sooner.
        priority_max: The least urgent priority it may ask for.
        priority_default: Priority of requests that ask for none, also of keys that may not ask for one. Unset: 0, or
            what is nearest to it within the two bounds for keys that may ask for a priority.
        class_default: Class of requests that name none, "online" or "offline" (see `[offline]`).
        deadline_seconds_min: The shortest deadline that it may ask for, of the first token, the last one, or a program.
    """

    name: str
    key_env: str | None = None
    key_file: str | None = None
    key_sha256: Annotated[str | Sequence[str], Hidden("a list of SHA-256 of keys")] = ()
    jwt_values: Sequence[str] = ()
    certificate_names: Sequence[str] = ()
    may: Sequence[str] = ("session",)
    priority_min: int = 0
    priority_max: int = 100
    priority_default: int | None = None
    class_default: RequestClass = "online"
    deadline_seconds_min: float = 0.1
    budget: BudgetSettings = field(default_factory=BudgetSettings)


@dataclass(frozen=True, slots=True)
class JwtSettings:
    """JSON Web Tokens as keys (extra `jwt`), sent where a key is sent. They need a `[[tenant]]` with `jwt_values`. Of a
    token `exp`, `iss` and `aud` must be there and right, and `nbf` where it is there.

    Attributes:
        issuer: What `iss` has to be.
        audience: What `aud` has to be, or to hold.
        jwks_url: Address of the issuer's key set, https. While it cannot be read the latest good one counts.
        jwks_file: The key set in a file instead; read again on SIGHUP.
        algorithms: `RS256`, `ES256` or both. Others, `none` among them, are never taken.
        tenant_claim: The claim that says whose token it is; a text.
        leeway_seconds: By how much the clocks of issuer and gateway may differ.
        refresh_seconds: Time between two looks at `jwks_url`.
        unknown_key_seconds: A token of a key that the set lacks has it asked for at once, but no sooner after the last
            time than this. A failed look is repeated after it.
        tokens_remembered: Valid tokens that are not verified again until they expire; of more, the oldest go.
        faults_per_second: Tokens that are not valid, each of which takes some 0.3 ms, in one second. Beyond it tokens
            that were not seen before get 429; those known to be valid go on.
        address_faults_per_second: The same of one client's address, a proxy's where there is one.
    """

    issuer: str | None = None
    audience: str | None = None
    jwks_url: str | None = None
    jwks_file: str | None = None
    algorithms: Sequence[Literal["RS256", "ES256"]] = ("RS256", "ES256")
    tenant_claim: str = "sub"
    leeway_seconds: float = 30.0
    refresh_seconds: float = 300.0
    unknown_key_seconds: float = 30.0
    tokens_remembered: int = 10_000
    faults_per_second: int = 100
    address_faults_per_second: int = 20


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS of the public address, beside `tls_certificate` and `tls_key`. Needs a restart. Files that were renewed under
    their names are read again on SIGHUP.

    Attributes:
        client_certificates: "required": a connection without a certificate of `client_authorities` does not come
            about. "optional": a client may show one. "none": none is asked for.
        client_authorities: PEM file of the authorities whose client certificates are valid. Revocation is not checked.
        minimum: The oldest version of TLS that is taken, "1.2" or "1.3".
        ciphers: Cipher suites of TLS 1.2, in OpenSSL's words; those of the library by default. 1.3 has its own.
    """

    client_certificates: Literal["none", "optional", "required"] = "none"
    client_authorities: str | None = None
    minimum: Literal["1.2", "1.3"] = "1.2"
    ciphers: str | None = None


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """Keys of `/admin`, which changes things while the gateway runs. Without any it is not served. It is on the admin
    address if there is one, else on the public address.

    Attributes:
        key_env: Environment variable with a key, sent as a bearer token. It opens all of the admin address.
        key_sha256: Name -> SHA-256 of a key, as for a tenant. The log names who changed something by this name.
    """

    key_env: str | None = None
    key_sha256: Annotated[Mapping[str, str], Hidden("a table of names, each with the SHA-256 of a key")] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """How many replicas `headway_replicas_wanted` asks for (docs/scale-out.md).

    Attributes:
        target_load: Share of its stable rate that each replica is to get, above 0, at most 1.
        window_seconds: The traffic of so many seconds counts. Needs a restart.
        replica_requests_per_second: Requests a second up to which one replica is stable, where that was measured. By
            default it is estimated from lengths, memory, limits and times, which needs answers that the gateway sees.
    """

    target_load: float = 0.8
    window_seconds: float = 300.0
    replica_requests_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """Several gateways of one pool, of which the holder of a lease serves and the others stand by
    (docs/high-availability.md). Needs a restart.

    Attributes:
        file: File of the lease, on a disk that all of them have.
        kubernetes: Lease of the API server, NAMESPACE/NAME (extra `kubernetes`), which is made if it is not there.
        seconds: After so many seconds without a renewal another gateway takes over; the same in all of them. It is
            renewed four times in that time, and a holder that cannot is passive after two thirds of it.
    """

    file: str | None = None
    kubernetes: str | None = None
    seconds: int = 6


@dataclass(frozen=True, slots=True)
class StateSettings:
    """What is learned and kept over a restart: EWSJF's lanes and costs, lengths seen, tuned values, bytes per token,
    and what is used of budgets.

    Attributes:
        path: The file; unset: nothing is kept. It names tenants, but no sessions, and no text. Needs a restart.
        save_seconds: Time between two writes. The file is also written when the gateway drains.
    """

    path: str | None = None
    save_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """The Batch API of the gateway itself: `/v1/files` and `/v1/batches`, kept over a restart. Needs a restart.

    Attributes:
        folder: Folder where files and batches are kept, of one gateway alone. Unset: the gateway has no Batch API, and
            both paths are forwarded to replicas.
        bytes_max: Bytes of all files and results there, at most. Beyond it uploads get 507, and batches wait.
        free_bytes_min: Bytes of the disk that are left free, likewise.
        tenant_bytes_max: Bytes of one tenant's files and results, at most; beyond it its uploads get 413, and its
            batches wait. Unset: no limit of its own.
        tenant_files_max: Files of one tenant, at most.
        tenant_open_max: Batches of one tenant that have not ended, at most.
        file_bytes_max: One uploaded file, at most.
        file_lines_max: Requests in one file, at most.
        line_bytes_max: One request in a file, at most.
        answer_bytes_max: Answer to one request, at most; a longer one is an error of this request.
        uploads_max: Uploads at once, at most. A tenant may have at most as many as are left free.
        upload_seconds: Longest time of an upload.
        waiting_max: Requests of batches in the gateway's queue at once, at most; the others wait in their files.
        waiting_bytes_max: Bytes of their bodies, at most; one request may always wait.
        tries_max: How often a request is sent that a replica does not answer, or answers with a status of 500 and more.
        keep_seconds: How long files are kept without an `expires_after` of their own, and batches that have ended.
    """

    folder: str | None = None
    bytes_max: int = 20 << 30
    free_bytes_min: int = 1 << 30
    tenant_bytes_max: int | None = None
    tenant_files_max: int = 10_000
    tenant_open_max: int = 100
    file_bytes_max: int = 200 << 20
    file_lines_max: int = 50_000
    line_bytes_max: int = 16 << 20
    answer_bytes_max: int = 16 << 20
    uploads_max: int = 16
    upload_seconds: float = 600.0
    waiting_max: int = 64
    waiting_bytes_max: int = 64 << 20
    tries_max: int = 3
    keep_seconds: float = 2_592_000.0


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """OpenTelemetry traces (extra `otel`). Needs a restart.

    Attributes:
        endpoint: Where spans are sent, OTLP over HTTP, for example http://127.0.0.1:4318/v1/traces. Unset: no traces.
        service_name: OpenTelemetry's `service.name` of this gateway.
        sample_share: Share of requests to trace, from 0 to 1; a caller's `traceparent` decides for its own request.
    """

    endpoint: str | None = None
    service_name: str = "headway"
    sample_share: float = 1.0


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """Simulated engines that answer where no replica is configured. Needs a restart.

    Attributes:
        replicas: Number of engines; 0 for none, where replicas come by `/admin/replicas` alone.
        hardware: Name or file of the hardware, as for `headway compare`.
        model: Name or file of the model, as for `headway compare`.
        max_num_seqs: Concurrent requests of one engine; its own default if unset.
        kv_tokens: KV memory of one engine in tokens; its own default if unset.
        prefix_caching: Prompts with the same beginning share KV blocks and are not computed twice.
    """

    replicas: int = 1
    hardware: str = "h100"
    model: str = "llama-3.1-8b"
    max_num_seqs: int | None = None
    kv_tokens: int | None = None
    prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """Addresses, files and names.

    Attributes:
        listen: host:port of the public address. Needs a restart.
        admin_listen: host:port of metrics and the live page. With tenants they are served nowhere else. Needs a
            restart.
        admin_key_env: Environment variable with a key that the admin address asks for, as a bearer token or as the
            password of any user; `/health` and `/ready` need none. It opens what can be read, and nothing under
            `/admin`, which has keys of its own (`[admin]`).
        hosts: Names in the `Host` header that lead here, besides addresses and names without a dot. Checked only where
            nothing but a loopback address keeps strangers out (no tenant, no admin key), against DNS rebinding.
        trusted_proxies: Addresses or networks (`10.0.0.0/8`) of proxies whose `X-Forwarded-For`, `Forwarded` and the
            like are passed on to replicas; from other clients they are dropped.
        tls_certificate: PEM file of the certificate chain of the public address; needs `tls_key` too. The admin address
            is plain HTTP. Needs a restart. Files that were renewed under their names are read again on SIGHUP.
        tls_key: PEM file of the private key. Needs a restart.
        record: New file for lengths and times of each request on a path that generates, never text: a trace for
            `headway compare` and `headway calibrate`, in order of arrival, a line for each sequence of `n` (128 at
            most), with TTFT of streams, end-to-end time, cached tokens, model, tenant, class and outcome. Of requests
            without a whole answer stands only that they arrived. Lines are written within a minute of the answer. One
            that belongs before a line already written goes into a second file of the same name and `.late`, and into
            its place when the gateway stops. The gateway does not start if the file exists; `night-%Y%m%d-%H%M%S.jsonl`
            names one per start. Needs a restart.
        tokenizers: Model -> its tokenizer.json, to count prompt tokens (extra `tokenizer`). Prompts of other models are
            estimated from bytes. Needs a restart.
        media_tokens: Prompt tokens of an image, audio, video or file, where no rule of the model's family gives them by
            an image's size. 1,000 lies between models with a fixed number (256, 576) and a photo at full size (2,000
            and more). Needs a restart.
        objectives: Name -> priority of the objectives that `x-llm-d-inference-objective` may name; higher is sooner, as
            in the InferenceObjective of Kubernetes' inference gateway. Ignored for keys that may not set a priority.
        aliases: Name -> the model that it stands for, or another alias. The replica gets its model's own name, and its
            answer keeps that; `x-headway-model` tells it. `/v1/models` lists aliases too.
        forward: First names of paths under `/v1` that are forwarded besides those of the usual APIs, with any method;
            for example `load_lora_adapter`. Each client that may use the gateway may then call them.
        cors_origins: Origins of web pages that may call the API, for example `https://chat.example.com`. Engines have
            no say in it: preflights are answered here, and `access-control-*` headers of engines' answers are removed.
            `*` means any page that has a key, and nothing where no tenant is configured.
        metrics_series_max: Pairs of a model and a fairness id that metrics keep apart, and values of a label. The pairs
            used least lately are added up as `other`. Needs a restart.
        log_lines_max: Lines of the log that wait for a slow reader of stderr; later ones are dropped and counted. Needs
            a restart.
    """

    listen: str = "127.0.0.1:8000"
    admin_listen: str | None = None
    admin_key_env: str | None = None
    hosts: Sequence[str] = ()
    trusted_proxies: Sequence[str] = ()
    tls_certificate: str | None = None
    tls_key: str | None = None
    record: str | None = None
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    media_tokens: int = 1_000
    objectives: Mapping[str, int] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    forward: Sequence[str] = ()
    cors_origins: Sequence[str] = ("*",)
    metrics_series_max: int = 1_000
    log_lines_max: int = 10_000
    policies: PolicySettings = field(default_factory=PolicySettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    service_tiers: ServiceTierSettings = field(default_factory=ServiceTierSettings)
    offline: OfflineSettings = field(default_factory=OfflineSettings)
    requests: RequestSettings = field(default_factory=RequestSettings)
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    health: HealthSettings = field(default_factory=HealthSettings)
    replica: Sequence[ReplicaSettings] = ()
    replica_source: Sequence[ReplicaSourceSettings] = ()
    tenant: Sequence[TenantSettings] = ()
    jwt: JwtSettings = field(default_factory=JwtSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    admin: AdminSettings = field(default_factory=AdminSettings)
    scaling: ScalingSettings = field(default_factory=ScalingSettings)
    lease: LeaseSettings = field(default_factory=LeaseSettings)
    state: StateSettings = field(default_factory=StateSettings)
    batches: BatchSettings = field(default_factory=BatchSettings)
    tuning: TuningSettings = field(default_factory=TuningSettings)
    auto: AutoSettings = field(default_factory=AutoSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    embedded: EmbeddedSettings = field(default_factory=EmbeddedSettings)
    wire: WireLimits = field(default_factory=WireLimits)

    def __post_init__(self) -> None:
        if self.policies.ordering == AUTO:
            default = replace(self.policies, ordering=PolicySettings.ordering_default())
            object.__setattr__(self, "policies", default)
            object.__setattr__(self, "auto", replace(self.auto, on=True))

    def model_of(self, name: str) -> str:
        """The model that a name stands for: itself where it is no alias."""
        while name in self.aliases:
            name = self.aliases[name]
        return name

    def policies_of(self, model: str) -> PolicySettings:
        """The policies of a model's queue."""
        own = self.models.get(model)
        if own is None or own.ordering is None:
            return self.policies
        options = {**self.policies.options, "ordering": own.ordering_options}
        return replace(self.policies, ordering=own.ordering, options=options)


SERVICE_TIERS = tuple(tier.name for tier in fields(ServiceTierSettings))


def class_priority(name: str, tiers: ServiceTierSettings) -> int:
    """The priority of a class: of a service tier, or a number itself. Raises ValueError if it is neither."""
    return int(getattr(tiers, name)) if name in SERVICE_TIERS else int(name)
