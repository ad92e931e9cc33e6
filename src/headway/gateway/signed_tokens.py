"""JSON Web Tokens as keys (RFC 7519): whether one is valid, and what it says of its tenant.

Laws: the algorithm is the key's own, never the token's choice; a token is verified once and then remembered by its
digest, so that its signature costs nothing at each request; tokens that are not valid are verified so often at most as
the settings say; while the key set cannot be read the last good one counts.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from headway.gateway.settings import JwtSettings
from headway.gateway.settings_file import shown_url
from headway.gateway.wire.http_fetch import fetch
from headway.gateway.wire.upstream_pool import UpstreamPool

if TYPE_CHECKING:
    from jwt import PyJWK

V = TypeVar("V")
_TOKEN_BYTES_MAX = 8_192
_SET_BYTES_MAX = 1 << 20
_KEYS_MAX = 100  # of a set, each of which takes a fraction of a millisecond to read
_RSA_BITS_MIN = 2_048  # RFC 7518, section 3.3
_REMEMBERED_FAULTS = 1_000
_FETCH_SECONDS = 5.0
_HEAD_BYTES_MAX = 1 << 16
_SOON_SECONDS = 1.0
_ALGORITHMS = {"RSA": "RS256", "EC": "ES256"}  # by the kind of a key
log = logging.getLogger("headway.gateway")


class KeyFault(NamedTuple):
    """Why a key or token opens nothing, for its client; `retry_seconds` where it may do so later."""

    message: str
    status: int = 401
    retry_seconds: float | None = None


class SignedTokens:
    """Verifies the tokens of one issuer. Only the event loop's thread uses it."""

    def __init__(
        self,
        settings: JwtSettings,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ValueError, one sentence, if the extra is missing or the file with the key set cannot be used."""
        try:
            import jwt  # noqa: PLC0415 - an extra

            has_all = jwt.algorithms.has_crypto
        except ImportError:
            has_all = False
        if not has_all:
            raise ValueError("[jwt] needs the extra: pip install 'headway[jwt]'")
        self.settings = settings
        self._jwt = jwt
        self._wall_clock = wall_clock
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._keys: Mapping[tuple[str, str], PyJWK] | None = None  # by id and algorithm; None until a set was read
        self._content: bytes | None = None  # of the set
        self._verified: dict[bytes, tuple[str, float]] = {}  # digest -> claim's value, its end
        self._faults = _FaultCounts(settings)
        self._false: dict[bytes, None] = {}  # digests of tokens whose signature is wrong
        self._ask_at = -math.inf  # seconds of `clock`: the next time that the set is due
        self._asked_at = -math.inf
        self._is_missing = False  # a token named a key that the set lacks
        self._is_asking = False
        if settings.jwks_file is not None:
            self._read_file(settings.jwks_file)

    # Tokens

    def value_of(self, token: bytes, address: str = "") -> str | KeyFault:
        """The value of `jwt.tenant_claim` in a token, or why it is not valid. `address` is its client's."""
        digest = blake2b(token, key=self._secret, digest_size=32).digest()
        remembered = self._verified.get(digest)
        if remembered is not None and self._wall_clock() < remembered[1]:
            return remembered[0]
        if digest in self._false:
            return _FALSE_SIGNATURE
        now = self._clock()
        retry_seconds = self._faults.retry_seconds(address, now)
        if retry_seconds:
            return KeyFault(_TOO_MANY_FAULTS, 429, retry_seconds)
        value = self._value(token, digest)
        if isinstance(value, KeyFault) and value.retry_seconds is None:
            self._faults.count(address, now)
        return value

    def _value(self, token: bytes, digest: bytes) -> str | KeyFault:
        """The same of a token that was not seen before."""
        jwt = self._jwt
        try:
            return self._verify(token, digest)
        except jwt.ExpiredSignatureError:
            return KeyFault("the token has expired (`exp`); ask its issuer for another")
        except jwt.ImmatureSignatureError:
            return KeyFault("the token is not valid yet (`nbf`, `iat`)")
        except jwt.InvalidAudienceError:
            return KeyFault("the token is for another audience (`aud`)")
        except jwt.InvalidIssuerError:
            return KeyFault("the token is of another issuer (`iss`)")
        except jwt.MissingRequiredClaimError as error:
            return KeyFault(f"the token lacks the claim `{error.claim}`")
        except jwt.InvalidSignatureError:
            _remember(self._false, digest, None, _REMEMBERED_FAULTS)
            return _FALSE_SIGNATURE
        except (jwt.PyJWTError, ValueError, OverflowError, TypeError, RecursionError):  # of numbers and nesting, too
            return _NO_TOKEN

    def _verify(self, token: bytes, digest: bytes) -> str | KeyFault:
        settings = self.settings
        if len(token) > _TOKEN_BYTES_MAX:
            return KeyFault(f"the token is longer than {_TOKEN_BYTES_MAX:,} bytes")
        head = self._jwt.get_unverified_header(token)
        algorithm = str(head.get("alg"))
        if algorithm not in settings.algorithms:
            return KeyFault(f"the token must be signed with {' or '.join(settings.algorithms)} (`alg`)")
        if "crit" in head:
            return KeyFault("the token has critical extensions (`crit`), which this gateway does not know")
        key = self._key(head.get("kid"), algorithm)
        if isinstance(key, KeyFault):
            return key
        claims = self._jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm_name],
            audience=settings.audience,
            issuer=settings.issuer,
            leeway=settings.leeway_seconds,
            options={"require": ["exp", "iss", "aud"]},
        )
        value = claims.get(settings.tenant_claim)
        if not isinstance(value, str):
            return KeyFault(f"the token has no text as its claim `{settings.tenant_claim}`")
        ends_at = float(claims["exp"]) + settings.leeway_seconds
        _remember(self._verified, digest, (value, ends_at), settings.tokens_remembered)
        return value

    def _key(self, key_id: str | None, algorithm: str) -> PyJWK | KeyFault:
        if self._keys is None:
            return KeyFault("the keys of the token's issuer could not be read yet", 503, _SOON_SECONDS)
        if key_id is None:
            fitting = [key for (_, its), key in self._keys.items() if its == algorithm]
            return fitting[0] if len(fitting) == 1 else KeyFault("the token does not say which key signed it (`kid`)")
        key = self._keys.get((key_id, algorithm))
        if key is not None:
            return key
        if self._may_ask_again():
            self._is_missing = True
            return KeyFault("the token is signed with a new key, which is being asked for", 503, _SOON_SECONDS)
        return KeyFault("the token is signed with a key that its issuer does not list (`kid`)")

    # Keys

    def _may_ask_again(self) -> bool:
        waited = self._clock() - self._asked_at
        return self.settings.jwks_url is not None and (self._is_asking or waited >= self.settings.unknown_key_seconds)

    @property
    def is_due(self) -> bool:
        """Whether the key set should be asked for now: it is old, or lacks a key that a token names."""
        if self.settings.jwks_url is None or self._is_asking:
            return False
        return self._clock() >= self._ask_at or (self._is_missing and self._may_ask_again())

    async def ask(self) -> None:
        """Ask the URL for the key set. Where that fails the log says so, and the set of before counts on."""
        url = self.settings.jwks_url
        if url is None:
            return
        self._is_asking, self._is_missing = True, False
        self._asked_at = self._clock()
        self._ask_at = self._asked_at + self.settings.unknown_key_seconds
        try:
            await self._fetch(url)
        except (OSError, ValueError) as error:
            kept = "no token is valid until then" if self._keys is None else "the keys of before count on"
            log.warning("the key set %s cannot be used: %s; %s", shown_url(url), error or "no answer in time", kept)
        else:
            self._ask_at = self._asked_at + self.settings.refresh_seconds
        finally:
            self._is_asking = False

    async def _fetch(self, url: str) -> None:
        pool = UpstreamPool(url, connect_seconds=_FETCH_SECONDS, head_bytes=_HEAD_BYTES_MAX, clock=self._clock)
        query = urlsplit(url).query
        path = ("" if pool.prefix else "/") + (f"?{query}" if query else "")
        try:
            status, body = await fetch(pool, path, seconds=_FETCH_SECONDS)
        finally:
            pool.close()
        if status != 200:
            raise ValueError(f"it was answered with status {status}; redirects are not followed")
        self._take(body)

    def _read_file(self, name: str) -> None:
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise ValueError(f"jwt.jwks_file {name!r} cannot be read: {error.strerror or error}") from None
        try:
            self._take(content)
        except ValueError as error:
            raise ValueError(f"jwt.jwks_file {name!r} cannot be used: {error}") from None

    def begin_with(self, before: SignedTokens) -> None:
        """Use the key set that was read last under other settings, until its URL is asked again."""
        if before._content is not None:
            with suppress(ValueError):  # it holds no key for the algorithms that are allowed now
                self._take(before._content)

    def _take(self, content: bytes) -> None:
        """Use another key set. What the set of before verified is forgotten. Raises ValueError, one sentence."""
        if content == self._content:
            return
        self._keys = self._read(content)
        self._content = content
        self._verified.clear()
        self._false.clear()

    def _read(self, content: bytes) -> Mapping[tuple[str, str], PyJWK]:
        if len(content) > _SET_BYTES_MAX:
            raise ValueError(f"it is longer than {_SET_BYTES_MAX >> 20} MiB")
        try:
            listed = msgspec.json.decode(content, type=_Set).keys
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ValueError('it is no JSON Web Key Set, {"keys": [...]}') from None
        if len(listed) > _KEYS_MAX:
            raise ValueError(f"it holds more than {_KEYS_MAX} keys")
        if any("d" in entry for entry in listed):
            raise ValueError("it holds a private key; name the set of public keys, and change that key")
        keys: dict[tuple[str, str], PyJWK] = {}
        for entry in listed:
            key = self._public_key(entry)
            if key is not None:
                keys.setdefault((key.key_id or "", key.algorithm_name), key)
        if not keys:
            raise ValueError(f"it holds no key for {' or '.join(self.settings.algorithms)}")
        return keys

    def _public_key(self, entry: dict[str, object]) -> PyJWK | None:
        """A key that may verify signatures with an algorithm that is allowed; None for any other."""
        algorithm = _ALGORITHMS.get(str(entry.get("kty")))
        if algorithm not in self.settings.algorithms or entry.get("alg", algorithm) != algorithm:
            return None
        operations = entry.get("key_ops", ["verify"])
        if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
            return None
        if not isinstance(entry.get("kid", ""), str) or (algorithm == "ES256" and entry.get("crv") != "P-256"):
            return None
        try:
            key = self._jwt.PyJWK(entry, algorithm=algorithm)
        except (self._jwt.PyJWTError, ValueError, TypeError):
            return None
        return None if algorithm == "RS256" and key.key.key_size < _RSA_BITS_MIN else key


class _FaultCounts:
    """How many tokens were not valid in this second, by the address of their clients.

    No more addresses are kept than tokens may be false.
    """

    def __init__(self, settings: JwtSettings) -> None:
        self._settings = settings
        self._second = -math.inf
        self._all = 0
        self._by_address: dict[str, int] = {}

    def retry_seconds(self, address: str, now: float) -> float:
        """Seconds until another token of this client may be verified; 0 for now."""
        if now - self._second >= 1:
            return 0.0
        settings = self._settings
        own = self._by_address.get(address, 0)
        if self._all < settings.faults_per_second and own < settings.address_faults_per_second:
            return 0.0
        return self._second + 1 - now

    def count(self, address: str, now: float) -> None:
        """A token was not valid."""
        if now - self._second >= 1:
            self._second, self._all = now, 0
            self._by_address.clear()
        self._all += 1
        self._by_address[address] = self._by_address.get(address, 0) + 1


class _Set(msgspec.Struct):
    """A JSON Web Key Set (RFC 7517, section 5)."""

    keys: list[dict[str, object]]


_TOO_MANY_FAULTS = (
    "too many tokens that are not valid came in this second (`jwt.faults_per_second`, `address_faults_per_second`), "
    "and this one was not seen before; try again"
)
_NO_TOKEN = KeyFault("the token is not a valid JSON Web Token")
_FALSE_SIGNATURE = KeyFault("the token's signature is wrong")


def _remember(remembered: dict[bytes, V], digest: bytes, value: V, most: int) -> None:
    """Keep a value; the oldest goes where there are too many."""
    remembered[digest] = value
    if len(remembered) > most:
        del remembered[next(iter(remembered))]


def signed_tokens(settings: JwtSettings, before: SignedTokens | None = None) -> SignedTokens | None:
    """What verifies tokens under these settings: `before` goes on where a reload did not change them; None without.

    Raises ValueError, one sentence, if the key set's file or the extra is missing.
    """
    if settings.jwks_file is None and settings.jwks_url is None:
        return None
    if before is not None and before.settings == settings and settings.jwks_file is None:
        return before
    tokens = SignedTokens(settings)
    if before is not None and settings.jwks_url is not None and settings.jwks_url == before.settings.jwks_url:
        tokens.begin_with(before)
    return tokens
