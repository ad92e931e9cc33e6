"""Terms that a client may set for its own request: class, service tier, no waiting, a total time. Untrusted.

Laws: a term that cannot be read is refused in one sentence, because a client that set it counts on it. No term takes
anything from another request: the class offline only gives, a tier moves a request only within the priorities of its
key, a time only shortens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from headway.domain.request import RequestClass
from headway.gateway.openai.request_body import Body
from headway.gateway.settings import OfflineSettings, ServiceTierSettings, TenantSettings
from headway.gateway.wire.messages import HttpRequest

NO_QUEUE_HEADER: Final = b"x-headway-no-queue"
TIMEOUT_HEADER: Final = b"x-headway-timeout-seconds"
CLASS_HEADER: Final = b"x-headway-class"
_CLASSES: Mapping[bytes, RequestClass] = {b"online": "online", b"offline": "offline"}
_YES_OR_NO: Mapping[bytes, bool] = {b"true": True, b"false": False}
_SECONDS_MAX = 1e6
AUTOMATIC = "auto"
"""The tier that leaves the choice to the key."""
_HEADERS = frozenset((NO_QUEUE_HEADER, TIMEOUT_HEADER, CLASS_HEADER))


class ClientTerms(NamedTuple):
    """The terms of one request.

    Attributes:
        service_tier: one of `ServiceTierSettings`, or "auto"; None where none is named.
        never_waits: it is refused rather than queued.
        timeout_seconds: from its arrival to the end of its answer; None where the client sets no bound.
        request_class: None where none is named.
    """

    service_tier: str | None = None
    never_waits: bool = False
    timeout_seconds: float | None = None
    request_class: RequestClass | None = None


NO_TERMS = ClientTerms()
NO_OFFLINE_TIERS: Final = OfflineSettings(tiers=())


def read_terms(http: HttpRequest, body: Body | None) -> ClientTerms:
    """The terms of a request. Raises ValueError, one sentence for its client, at one that makes no sense."""
    named, tier = http.named, None if body is None else body.service_tier
    if tier is None and named.keys().isdisjoint(_HEADERS):  # as mostly
        return NO_TERMS
    return ClientTerms(
        None if tier is None or body is None else _tier(tier, body.endpoint.service_tiers),
        _never_waits(named.get(NO_QUEUE_HEADER)),
        _timeout_seconds(named.get(TIMEOUT_HEADER)),
        _class(named.get(CLASS_HEADER)),
    )


def tier_priority(terms: ClientTerms, tenant: TenantSettings, tiers: ServiceTierSettings) -> int | None:
    """The priority that a tier asks for, in vLLM's sign; None where the key's own default counts."""
    if terms.service_tier is None or terms.service_tier == AUTOMATIC or "priority" not in tenant.may:
        return None
    priority: int = getattr(tiers, terms.service_tier)
    return priority


def class_used(terms: ClientTerms, tenant: TenantSettings, offline: OfflineSettings) -> RequestClass:
    """The class that counts: what the request says itself, by header or else by tier; else its key's.

    Any request may be offline. One of an offline key is online only where the key may set `class`.
    """
    asked = terms.request_class
    if asked is None and terms.service_tier is not None and terms.service_tier != AUTOMATIC:
        asked = "offline" if terms.service_tier in offline.tiers else "online"
    if asked is None or (asked == "online" and "class" not in tenant.may):
        return tenant.class_default
    return asked


def tier_used(
    terms: ClientTerms,
    priority: int,
    tenant: TenantSettings,
    tiers: ServiceTierSettings,
    used: RequestClass = "online",
    offline: OfflineSettings = NO_OFFLINE_TIERS,
) -> str | None:
    """The tier that a request is served at, which its client is told; None where it named none.

    `priority` is the one that counts, as is the class `used`. A tier beyond the rights of the key, or beside another
    priority, is "default", unless it made the request offline.
    """
    if terms.service_tier is None:
        return None
    if used == "offline" and terms.service_tier in offline.tiers:
        return terms.service_tier
    return terms.service_tier if tier_priority(terms, tenant, tiers) == priority else "default"


def _tier(named: str, known: Mapping[str, str]) -> str | None:
    if not known:  # a path whose API has no tiers
        return None
    if named not in known:
        *others, last = known
        raise ValueError(f"`service_tier` must be {', '.join(others)} or {last}, got {named[:40]!r}")
    return known[named]


def _class(value: bytes | None) -> RequestClass | None:
    if value is None:
        return None
    named = _CLASSES.get(value.strip().lower())
    if named is None:
        raise ValueError(f"{CLASS_HEADER.decode()} must be online or offline, got {_shown(value)}")
    return named


def _never_waits(value: bytes | None) -> bool:
    if value is None:
        return False
    answer = _YES_OR_NO.get(value.strip().lower())
    if answer is None:
        raise ValueError(f"{NO_QUEUE_HEADER.decode()} must be true or false, got {_shown(value)}")
    return answer


def _timeout_seconds(value: bytes | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = 0.0 if b"_" in value else float(value)  # Python alone reads 1_0 as ten
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _SECONDS_MAX:  # NaN is not
        most = f"at most {_SECONDS_MAX:,.0f}"
        raise ValueError(f"{TIMEOUT_HEADER.decode()} must be seconds above 0, {most}, got {_shown(value)}")
    return seconds


def _shown(value: bytes) -> str:
    return repr(value.decode("latin-1")[:40])
