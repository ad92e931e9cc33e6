"""API keys: which tenant a request belongs to; compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from headway.gateway.settings import TenantSettings, tenant_key

NO_KEYS = TenantSettings(name="", may=("session", "fairness-id"))
"""The tenant of all requests where no keys are configured: they may name a session and a fairness id only."""


class ApiKeys:
    """The tenants by the digests of their keys; the keys themselves are not kept."""

    def __init__(self, settings: Sequence[TenantSettings]) -> None:
        """Read every key. Raises ValueError, one sentence, if one is missing or two are equal."""
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
            return NO_KEYS
        scheme, _, key = (authorization or b"").partition(b" ")
        digest = sha256(key.strip()).digest()
        match = None
        for known, tenant in self._digests:  # all of them, so that the time taken reveals nothing
            if hmac.compare_digest(known, digest):
                match = tenant
        return match if scheme.lower() == b"bearer" else None
