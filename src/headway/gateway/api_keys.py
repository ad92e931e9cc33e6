"""Who is asking: API keys, compared in constant time, and what each may say."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from headway.gateway.settings import TenantSettings, tenant_key

ANYBODY = TenantSettings(name="", may=("session", "fairness-id"))
"""Where no keys are set: everybody may name a session and a fairness id, nobody may jump the queue."""


class ApiKeys:
    """The keys, by their digests; the keys themselves are not kept."""

    def __init__(self, settings: Sequence[TenantSettings]) -> None:
        """Read every key. Raises ValueError, one sentence, if one is missing or there twice."""
        self._digests: list[tuple[bytes, TenantSettings]] = []
        for tenant in settings:
            digest = sha256(tenant_key(tenant).encode()).digest()
            twin = next((other.name for known, other in self._digests if known == digest), None)
            if twin is not None:
                raise ValueError(f"tenants {twin!r} and {tenant.name!r} have the same key; give each its own")
            self._digests.append((digest, tenant))

    def who(self, authorization: bytes | None) -> TenantSettings | None:
        """The tenant of an `Authorization` header; None if its key is missing or unknown."""
        if not self._digests:
            return ANYBODY
        scheme, _, key = (authorization or b"").partition(b" ")
        digest = sha256(key.strip()).digest()
        found = None
        for known, tenant in self._digests:  # all of them, so that time tells nothing
            if hmac.compare_digest(known, digest):
                found = tenant
        return found if scheme.lower() == b"bearer" else None
