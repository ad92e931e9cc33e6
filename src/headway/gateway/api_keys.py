"""API keys: which tenant a request belongs to, and who may administer the gateway.

A key is known by its SHA-256, and looked up by the digest of that under a secret of this process. So the time of a
look-up is the same for all keys, and says nothing about those that are configured; nor does it grow with their number.
"""

from __future__ import annotations

import secrets
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from headway.gateway.settings import KEY_CHARACTERS_MIN, Settings, TenantSettings
from headway.gateway.settings_file import key_digest, key_of_environment, listed
from headway.gateway.signed_tokens import KeyFault, SignedTokens
from headway.gateway.wire.messages import HttpRequest

T = TypeVar("T")

NO_KEYS = TenantSettings(name="", may=("session", "fairness-id"))
"""The tenant of all requests where no keys are configured: they may name a session and a fairness id only."""

UNKNOWN_KEY = KeyFault(
    "the API key is missing or unknown; send one that this gateway knows as `Authorization: Bearer KEY`"
)
_UNKNOWN_CERTIFICATE = KeyFault(
    "no tenant has a name of the client certificate (`certificate_names`), and the API key is missing or unknown"
)
_DOTS = 2  # between the three parts of a JSON Web Token

KEY_HEADERS = frozenset([b"authorization", b"x-api-key"])
"""Where clients send their key: those of the OpenAI API in the first, some of Anthropic's in the second."""


class KeyDigests(Generic[T]):
    """What each key opens. Neither keys nor their SHA-256 are kept, so that no dump of this process shows them."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._opens: dict[bytes, T] = {}

    def __len__(self) -> int:
        return len(self._opens)

    def add(self, key_sha256: bytes, opens: T) -> T:
        """Let a key open something; what it opens, which is something else if the key was added before."""
        return self._opens.setdefault(self._digest(key_sha256), opens)

    def find(self, key: bytes) -> T | None:
        """What a key opens; None if it is unknown."""
        return self._opens.get(self._digest(sha256(key).digest()))

    def _digest(self, key_sha256: bytes) -> bytes:
        return blake2b(key_sha256, key=self._secret, digest_size=32).digest()


class ApiKeys:
    """The tenants by their keys. A tenant may have several, all valid at once: so a key is changed without a gap."""

    def __init__(self, settings: Sequence[TenantSettings], tokens: SignedTokens | None = None) -> None:
        """Read every key; `tokens` verifies JSON Web Tokens.

        Raises ValueError, one sentence, if a key is missing or two tenants have the same.
        """
        self.tokens = tokens
        self._needs_key = bool(settings)
        self._by_claim = _owners(settings, "jwt_values")
        self._by_certificate = _owners(settings, "certificate_names")
        self._by_name = {tenant.name: tenant for tenant in settings} or {NO_KEYS.name: NO_KEYS}
        self._tenants: KeyDigests[TenantSettings] = KeyDigests()
        for tenant in settings:
            for digest in tenant_key_digests(tenant):
                twin = self._tenants.add(digest, tenant)
                if twin is not tenant:
                    raise ValueError(f"tenants {twin.name!r} and {tenant.name!r} have the same key; give each its own")

    def holder_of(self, request: HttpRequest) -> TenantSettings | KeyFault:
        """The tenant of a request, as `who`: looked up once, and again where a reload brought other keys meanwhile."""
        known = request.holder
        if isinstance(known, _KnownHolder) and known.keys is self:
            return known.tenant
        tenant = self.who(request.named, request.certificate_names, request.client_address)
        request.holder = _KnownHolder(self, tenant)
        return tenant

    def vouch(self, request: HttpRequest, name: str) -> bool:
        """Take a request as one of the tenant of this name, without a key; False if there is none of the name."""
        tenant = self._by_name.get(name)
        if tenant is None:
            return False
        request.holder, request.owner = _KnownHolder(self, tenant), name
        return True

    def who(
        self, headers: Mapping[bytes, bytes], certificate_names: Sequence[str] = (), address: str = ""
    ) -> TenantSettings | KeyFault:
        """The tenant of a request's headers, or why there is none.

        A name in its client's certificate decides where a tenant has it, else `Authorization` where it is there, else
        `x-api-key`. `address` is the client's.
        """
        if not self._needs_key:
            return NO_KEYS
        for name in certificate_names:
            if name in self._by_certificate:
                return self._by_certificate[name]
        authorization = headers.get(b"authorization")
        if authorization is None:
            key = headers.get(b"x-api-key", b"")
        else:
            key = sent_key(authorization, takes_basic=False) or b""
        tenant = self._tenants.find(key)
        if tenant is not None:
            return tenant
        if self.tokens is None or key.count(b".") != _DOTS:
            return _UNKNOWN_CERTIFICATE if certificate_names and self._by_certificate else UNKNOWN_KEY
        value = self.tokens.value_of(key, address)
        if isinstance(value, KeyFault):
            return value
        return self._by_claim.get(value) or _no_tenant(self.tokens.settings.tenant_claim)


def _no_tenant(claim: str) -> KeyFault:
    """A valid token opens nothing. Its claim is named, and not the value, which may be a person."""
    message = f"the token is valid, but no tenant of this gateway has the value of its claim `{claim}` (`jwt_values`)"
    return KeyFault(message, status=403)


class _KnownHolder(NamedTuple):
    """Whose a request's key is, by these keys."""

    keys: ApiKeys
    tenant: TenantSettings | KeyFault


def _owners(settings: Sequence[TenantSettings], key: str) -> dict[str, TenantSettings]:
    """The tenants by the values that one of their keys lists. Raises ValueError if two have the same."""
    owners: dict[str, TenantSettings] = {}
    for tenant in settings:
        for value in getattr(tenant, key):
            twin = owners.setdefault(value, tenant)
            if twin is not tenant:
                raise ValueError(f"tenants {twin.name!r} and {tenant.name!r} share the {key} {value!r}; give it to one")
    return owners


class AdminKeys:
    """Who may read what the admin address shows, and who may change things under `/admin`, by their keys."""

    def __init__(self, settings: Settings) -> None:
        """Raises ValueError, one sentence, if one is missing, or two names have the same."""
        self.needs_key = settings.admin_key_env is not None
        self._reads: KeyDigests[str] = KeyDigests()
        self._changes: KeyDigests[str] = KeyDigests()
        admin = settings.admin
        named = {name: key_digest(f"admin.key_sha256.{name}", text) for name, text in admin.key_sha256.items()}
        if admin.key_env is not None:
            named |= {"key_env": sha256(key_of_environment("admin.key_env", admin.key_env)).digest()}
        for name, digest in named.items():
            twin = self._changes.add(digest, name)
            if twin != name:
                raise ValueError(f"admin: {twin!r} and {name!r} have the same key; give each its own")
            self._reads.add(digest, name)
        if settings.admin_key_env is not None:
            self._reads.add(sha256(key_of_environment("admin_key_env", settings.admin_key_env)).digest(), "")

    @property
    def may_change(self) -> bool:
        """Whether there is a key that may."""
        return len(self._changes) > 0

    def reads(self, authorization: bytes | None) -> bool:
        """Whether this header may read: with a key as a bearer token, or as the password that a browser asks for."""
        key = sent_key(authorization, takes_basic=True)
        return not self.needs_key or (key is not None and self._reads.find(key) is not None)

    def changes(self, authorization: bytes | None) -> str | None:
        """Whose key this header has who may change things; None if it has none.

        A bearer token only: a browser sends a password that it was once given with requests of any page.
        """
        key = sent_key(authorization, takes_basic=False)
        return None if key is None else self._changes.find(key)


def tenant_key_digests(tenant: TenantSettings) -> Iterator[bytes]:
    """SHA-256 of each key of a tenant. Raises ValueError, one sentence without a key, if one cannot be read."""
    what = f"tenant {tenant.name!r}"
    for number, digest in enumerate(listed(tenant.key_sha256)):
        yield key_digest(f"{what}: key_sha256[{number}]", digest)
    if tenant.key_env is not None:
        yield sha256(key_of_environment(f"{what}: key_env", tenant.key_env)).digest()
    if tenant.key_file is not None:
        where = f"the file {tenant.key_file}"
        try:
            lines = Path(tenant.key_file).read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError:  # its sentence would show bytes of the key
            raise ValueError(f"{what}: {where} is not UTF-8; write one key a line") from None
        except OSError as error:
            raise ValueError(f"{what}: {where} cannot be read: {error.strerror or type(error).__name__}") from None
        keys = [line.strip() for line in lines]
        if not any(keys) or any(0 < len(key) < KEY_CHARACTERS_MIN for key in keys):
            fault = "has a line that is too short" if any(keys) else "holds no key"
            least = f"of {KEY_CHARACTERS_MIN} characters or more"
            raise ValueError(f"{what}: {where} {fault}; write one key {least} a line")
        for key in keys:
            if key:
                yield sha256(key.encode()).digest()


def sent_key(authorization: bytes | None, *, takes_basic: bool) -> bytes | None:
    """The key in an `Authorization` header: a bearer token, or the password of any user; None without one."""
    scheme, _, given = (authorization or b"").partition(b" ")
    given = given.strip()
    if scheme.lower() == b"bearer":
        return given
    if takes_basic and scheme.lower() == b"basic":
        try:
            return b64decode(given, validate=True).partition(b":")[2]
        except ValueError:
            return None
    return None
