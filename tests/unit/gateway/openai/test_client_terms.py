"""Terms of a client: tiers, refusal instead of waiting and total times, each malformed one with its sentence."""

from __future__ import annotations

import json

import pytest

from headway.domain.request import RequestClass
from headway.gateway.openai.client_hints import read_hints
from headway.gateway.openai.client_terms import ClientTerms, class_used, read_terms, tier_priority, tier_used
from headway.gateway.openai.endpoints import endpoint_of
from headway.gateway.openai.request_body import read_body
from headway.gateway.openai.withheld_hints import withhold
from headway.gateway.settings import OfflineSettings, ServiceTierSettings, TenantSettings
from headway.gateway.wire.messages import HttpRequest

TIERS = ServiceTierSettings()
FREE = TenantSettings("a", "KEY", may=("priority",), priority_min=-20)


def http(body: dict[str, object], path: str = "/v1/chat/completions", **headers: str) -> HttpRequest:
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return HttpRequest(b"POST", path.encode(), given, json.dumps(body).encode())


def terms_of(request: HttpRequest) -> ClientTerms:
    return read_terms(request, read_body(request.body, endpoint_of(request.path)))


def asked(tier: str, tenant: TenantSettings = FREE, **body: object) -> tuple[int, str | None]:
    """The priority that counts, and the tier that the client is told."""
    request = http({"service_tier": tier, **body})
    terms, read = terms_of(request), read_body(request.body, endpoint_of(request.path))
    priority = read_hints(request, read, tenant, tier_priority=tier_priority(terms, tenant, TIERS)).priority
    return priority, tier_used(terms, priority, tenant, TIERS)


def test_a_request_without_terms_has_none() -> None:
    assert terms_of(http({"model": "m"})) == ClientTerms()
    assert terms_of(http({"model": "m", "service_tier": None})) == ClientTerms()


@pytest.mark.parametrize(
    ("tier", "priority"),
    [
        ("auto", 0),
        ("default", TIERS.default),
        ("flex", TIERS.flex),
        ("batch", TIERS.batch),
        ("priority", TIERS.priority),
    ],
)
def test_a_tier_is_a_priority_of_the_table(tier: str, priority: int) -> None:
    assert asked(tier) == (priority, "default" if tier == "auto" else tier)


def test_a_tier_stays_within_the_rights_of_the_key() -> None:
    clamped = TenantSettings("a", "KEY", may=("priority",), priority_min=-3, priority_max=5)
    assert asked("priority", clamped) == (-3, "default")
    assert asked("flex", clamped) == (5, "default")
    assert asked("flex", TenantSettings("a", "KEY")) == (0, "default")


def test_a_priority_that_the_request_names_goes_before_its_tier() -> None:
    assert asked("flex", priority=4) == (4, "default")


@pytest.mark.parametrize(
    ("named", "tier", "default", "may", "used"),
    [
        (None, None, "online", (), "online"),
        (None, None, "offline", (), "offline"),
        (None, "flex", "online", (), "offline"),
        (None, "batch", "online", (), "offline"),
        (None, "auto", "offline", ("class",), "offline"),
        (None, "default", "offline", ("class",), "online"),
        (None, "default", "offline", (), "offline"),
        ("offline", None, "online", (), "offline"),
        ("offline", "priority", "online", ("class",), "offline"),
        ("Online", "flex", "online", ("class",), "online"),
        ("online", "flex", "online", (), "online"),
        ("online", None, "offline", (), "offline"),
        ("online", None, "offline", ("class",), "online"),
    ],
)
def test_any_request_may_be_offline_and_an_offline_key_leaves_by_its_right_alone(
    named: str | None, tier: str | None, default: RequestClass, may: tuple[str, ...], used: RequestClass
) -> None:
    given = {} if named is None else {"x_headway_class": named}
    terms = terms_of(http({"service_tier": tier}, **given))
    tenant = TenantSettings("a", "KEY", may=may, class_default=default)
    assert class_used(terms, tenant, OfflineSettings()) == used
    told = tier_used(terms, 0, tenant, TIERS, used, OfflineSettings())
    assert told == (tier if used == "offline" and tier in OfflineSettings().tiers else tier and "default")


def test_tiers_may_be_priorities_alone() -> None:
    flex = terms_of(http({"service_tier": "flex"}))
    assert class_used(flex, TenantSettings("a", "KEY"), OfflineSettings(tiers=("batch",))) == "online"


@pytest.mark.parametrize("named", ["", "batch", "offline, online", "x" * 100])
def test_an_unknown_class_is_one_sentence(named: str) -> None:
    with pytest.raises(ValueError, match=r"^x-headway-class must be online or offline, got '") as said:
        terms_of(http({}, x_headway_class=named))
    assert len(str(said.value)) < 100


def test_the_key_says_what_counts_without_a_tier() -> None:
    batch = TenantSettings("a", "KEY", may=("priority",), priority_default=7)
    assert asked("auto", batch) == (7, "default")
    assert asked("default", batch) == (0, "default")
    assert read_hints(http({}), None, batch).priority == 7
    assert read_hints(http({}), None, TenantSettings("a", "KEY", priority_default=7)).priority == 7


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("tier", ["scale", "", "Flex", "x" * 1_000])
def test_an_unknown_tier_is_one_sentence(path: str, tier: str) -> None:
    with pytest.raises(
        ValueError, match=r"^`service_tier` must be auto, default, flex, batch or priority, got '"
    ) as said:
        terms_of(http({"service_tier": tier}, path))
    assert len(str(said.value)) < 120


def test_anthropics_tiers_are_its_own() -> None:
    assert terms_of(http({"service_tier": "standard_only"}, "/v1/messages")).service_tier == "default"
    with pytest.raises(ValueError, match="`service_tier` must be auto or standard_only, got 'flex'"):
        terms_of(http({"service_tier": "flex"}, "/v1/messages"))


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/audio/speech"])
def test_other_paths_have_no_tiers(path: str) -> None:
    assert terms_of(http({"service_tier": "whatever"}, path)).service_tier is None


@pytest.mark.parametrize(("value", "never_waits"), [("true", True), ("True", True), (" false ", False)])
def test_no_queue_is_true_or_false(value: str, never_waits: bool) -> None:
    assert terms_of(http({}, x_headway_no_queue=value)).never_waits is never_waits


@pytest.mark.parametrize("value", ["", "1", "yes", "x" * 500])
def test_any_other_no_queue_is_one_sentence(value: str) -> None:
    with pytest.raises(ValueError, match=r"^x-headway-no-queue must be true or false, got '"):
        terms_of(http({}, x_headway_no_queue=value))


@pytest.mark.parametrize(("value", "seconds"), [("30", 30.0), ("0.5", 0.5), (" 1e3 ", 1_000.0)])
def test_a_timeout_is_seconds(value: str, seconds: float) -> None:
    assert terms_of(http({}, x_headway_timeout_seconds=value)).timeout_seconds == seconds


@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "inf", "1e9", "30s", "0x10", "1_0"])
def test_any_other_timeout_is_one_sentence(value: str) -> None:
    with pytest.raises(
        ValueError, match=r"^x-headway-timeout-seconds must be seconds above 0, at most 1,000,000, got '"
    ):
        terms_of(http({}, x_headway_timeout_seconds=value))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    "tenant", [TenantSettings("a", "KEY"), TenantSettings("a", "KEY", may=("priority",), priority_min=-9)]
)
def test_a_tier_that_the_key_may_not_ask_for_reaches_no_replica(tenant: TenantSettings, large: bool) -> None:
    """Like a priority: the replica may be a gateway itself."""
    prompt = "x" * (200_000 if large else 10)
    body = {"service_tier": "priority", "messages": prompt, "model": "m"}
    assert sent_on(body, tenant) == {**body, "service_tier": "default"}
    assert sent_on(body, FREE) == body
    assert sent_on({"service_tier": "flex"}, FREE) == {"service_tier": "flex"}


def sent_on(body: dict[str, object], tenant: TenantSettings) -> object:
    """The body as a replica gets it."""
    request = http(body)
    asked_priority = tier_priority(terms_of(request), tenant, TIERS)
    read = read_body(request.body, endpoint_of(request.path))
    priority = read_hints(request, read, tenant, tier_priority=asked_priority).priority
    withhold(request, read, tenant, priority, asked_priority)
    return json.loads(request.body)
