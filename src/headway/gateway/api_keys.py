"""API keys: which tenant a request belongs to.

A key is looked up by its digest under a secret of this process. So the time of a look-up is the same for all keys, and
says nothing about those that are configured.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import b64decode
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from headway.gateway.settings import TenantSettings, tenant_key

NO_KEYS = TenantSettings(name="", may=("session", "fairness-id"))
"""The tenant of all requests where no keys are configured: they may name a session and a fairness id only."""


KEY_HEADERS = frozenset([b"authorization", b"x-api-key"])
"""Where clients send their key: those of the OpenAI API in the first, some of Anthropic's in the second."""


class ApiKeys:
    """The tenants by the digests of their keys; the keys themselves are not kept."""

    def __init__(self, settings: Sequence[TenantSettings]) -> None:
        """Read every key. Raises ValueError, one sentence, if one is missing or two are equal."""
        self._secret = secrets.token_bytes(32)
        self._tenants: dict[bytes, TenantSettings] = {}
        for tenant in settings:
            twin = self._tenants.setdefault(self._digest(tenant_key(tenant).encode()), tenant)
            if twin is not tenant:
                raise ValueError(f"tenants {twin.name!r} and {tenant.name!r} have the same key; give each its own")

    def who(self, headers: Mapping[bytes, bytes]) -> TenantSettings | None:
        """The tenant of a request's headers; None if its key is missing or unknown.

        `Authorization` decides where it is there, else `x-api-key`.
        """
        if not self._tenants:
            return NO_KEYS
        authorization = headers.get(b"authorization")
        if authorization is None:
            return self._tenants.get(self._digest(headers.get(b"x-api-key", b"")))
        scheme, _, key = authorization.partition(b" ")
        tenant = self._tenants.get(self._digest(key.strip()))
        return tenant if scheme.lower() == b"bearer" else None

    def _digest(self, key: bytes) -> bytes:
        return blake2b(key, key=self._secret, digest_size=32).digest()


def is_key(authorization: bytes | None, key: str) -> bool:
    """Whether an `Authorization` header gives this key: as a bearer token, or as the password of any user."""
    scheme, _, given = (authorization or b"").partition(b" ")
    given = given.strip()
    if scheme.lower() == b"basic":
        try:
            given = b64decode(given, validate=True).partition(b":")[2]
        except ValueError:
            return False
    elif scheme.lower() != b"bearer":
        return False
    return hmac.compare_digest(given, key.encode())
