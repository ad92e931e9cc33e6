"""JSON Web Tokens: which are taken, what each mistake is answered, and how often a signature is verified."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.api_keys import ApiKeys
from headway.gateway.settings import JwtSettings, TenantSettings
from headway.gateway.signed_tokens import KeyFault, SignedTokens, signed_tokens
from tests.support.settings_mistakes import sentence_about
from tests.support.signed_tokens_setup import (
    AUDIENCE,
    EC_KEY,
    ISSUER,
    OTHER_EC_KEY,
    RSA_KEY,
    RSA_PEM,
    SET,
    SHORT_RSA_KEY,
    jwt,
    public,
    token,
)


def raw(head: object, claims: object = None, signature: bytes = b"x") -> bytes:
    """A token of parts that no library would write."""
    parts = [
        head if isinstance(head, bytes) else json.dumps(head).encode(),
        json.dumps(claims or {}).encode(),
        signature,
    ]
    return b".".join(urlsafe_b64encode(part).rstrip(b"=") for part in parts)


def with_public_key_as_secret() -> bytes:
    """What a gateway would take that let the token choose the algorithm (RFC 8725, section 2.1)."""
    claims = jwt.decode(token(), options={"verify_signature": False})
    signed = raw({"alg": "HS256", "kid": "r"}, claims).rpartition(b".")[0]
    return signed + b"." + urlsafe_b64encode(hmac.digest(RSA_PEM, signed, "sha256")).rstrip(b"=")


def fuzzed() -> SignedTokens:
    tokens = SignedTokens(JwtSettings(ISSUER, AUDIENCE, jwks_url="https://login.example.com/keys"))
    tokens._take(json.dumps(SET).encode())
    return tokens


FUZZED, VALID = fuzzed(), token()


class Moment:
    """A clock that stands."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., SignedTokens]:
    def make_tokens(content: object = SET, wall: Callable[[], float] = time.time, **fields: object) -> SignedTokens:
        file = tmp_path / "keys.json"
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        settings = JwtSettings(ISSUER, AUDIENCE, jwks_file=str(file), **fields)  # type: ignore[arg-type]
        return SignedTokens(settings, wall)

    return make_tokens


def test_a_valid_token_is_a_key_of_the_tenant_that_its_claim_names(make: Callable[..., SignedTokens]) -> None:
    a, b = TenantSettings("a", jwt_values=("team-a", "team-a-2")), TenantSettings("b", jwt_values=("team-b",))
    keys = ApiKeys([a, b], make())
    for given_token, tenant in (
        (token(), a),
        (token(RSA_KEY, "RS256", "r"), a),
        (token(sub="team-a-2", aud=["other", AUDIENCE]), a),
        (token(sub="team-b", nbf=int(time.time()) - 5), b),
        (token(RSA_KEY, "RS256", None, sub="team-b"), b),  # the set has one key of that algorithm
    ):
        assert keys.who({b"authorization": b"Bearer " + given_token}) is tenant
        assert keys.who({b"x-api-key": given_token}) is tenant
    unknown = keys.who({b"authorization": b"Bearer " + token(sub="team-c")})
    assert isinstance(unknown, KeyFault)
    assert unknown.status == 403
    assert "its claim `sub`" in unknown.message
    assert "team-c" not in unknown.message
    with pytest.raises(ValueError, match="tenants 'a' and 'b' share the jwt_values 'team-a'; give it to one"):
        ApiKeys([a, TenantSettings("b", jwt_values=("team-a",))])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (token(exp=int(time.time()) - 60), "has expired"),
        (token(exp=None), "lacks the claim `exp`"),
        (token(exp="soon"), "not a valid JSON Web Token"),
        (token(exp=1e400), "not a valid JSON Web Token"),
        (token(exp=float("nan")), "not a valid JSON Web Token"),
        (token(nbf=int(time.time()) + 86_400), "not valid yet"),
        (token(iat=int(time.time()) + 86_400), "not valid yet"),
        (token(iss="https://other/"), "another issuer"),
        (token(iss=None), "lacks the claim `iss`"),
        (token(aud="other"), "another audience"),
        (token(aud=[]), "lacks the claim `aud`"),
        (token(aud={"headway": 1}), "another audience"),
        (token(aud=None), "lacks the claim `aud`"),
        (token(sub=None), "no text as its claim `sub`"),
        (token(kid="unknown"), "a key that its issuer does not list"),
        (token(kid="r"), "a key that its issuer does not list"),  # which is one of the other algorithm
        (token(head={"crit": ["x"], "x": 1}), "the token"),  # the library or we refuse it
        (token(OTHER_EC_KEY), "signature is wrong"),
        (token()[:-4] + b"AAAA", "signature is wrong"),
        (token(RSA_KEY, "RS512", "r"), "must be signed with RS256 or ES256"),
        (with_public_key_as_secret(), "must be signed with RS256 or ES256"),
        (raw({"alg": "none", "kid": "r"}, signature=b""), "must be signed with RS256 or ES256"),
        (raw({"alg": "None"}), "must be signed with RS256 or ES256"),
        (raw({"alg": ["RS256"]}), "must be signed with RS256 or ES256"),
        (raw({"alg": "ES256", "kid": 7}), "not a valid JSON Web Token"),
        (raw({}), "must be signed with RS256 or ES256"),
        (raw([]), "not a valid JSON Web Token"),
        (raw(b"\xff"), "not a valid JSON Web Token"),
        (raw(b"[" * 4_000), "not a valid JSON Web Token"),
        (b"..", "not a valid JSON Web Token"),
        (b"\xff.\xff.\xff", "not a valid JSON Web Token"),
        (token(filler="x" * 9_000), "longer than 8,192 bytes"),
    ],
)
def test_each_mistake_of_a_token_has_its_answer(make: Callable[..., SignedTokens], wrong: bytes, sentence: str) -> None:
    tokens = make()
    for _ in range(2):  # remembered, too
        fault = tokens.value_of(wrong)
        assert isinstance(fault, KeyFault)
        assert sentence in fault.message
        assert (fault.status, fault.retry_seconds) == (401, None)


def test_a_token_without_a_key_id_fits_the_only_key_of_its_algorithm(make: Callable[..., SignedTokens]) -> None:
    two = {"keys": [*SET["keys"], public(OTHER_EC_KEY, kid="o")]}
    fault = make(two).value_of(token(kid=None))
    assert isinstance(fault, KeyFault)
    assert "does not say which key signed it" in fault.message


@given(st.one_of(st.binary(max_size=80), st.tuples(st.integers(0, 400), st.binary(max_size=3))))
def test_no_token_raises(change: bytes | tuple[int, bytes]) -> None:
    if isinstance(change, bytes):
        broken = change.replace(b"|", b".")
    else:
        at, put = change
        valid = VALID
        broken = valid[:at] + put + valid[at + len(put) :]
    found = FUZZED.value_of(broken)
    assert isinstance(found, KeyFault) or broken == VALID or found == "team-a"


def test_a_signature_is_verified_once(make: Callable[..., SignedTokens], monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Moment(time.time())
    tokens = make(wall=wall, tokens_remembered=2)
    verified: list[int] = []
    decode = jwt.decode

    def counted(*arguments: Any, **options: Any) -> Any:
        verified.append(1)
        return decode(*arguments, **options)

    monkeypatch.setattr(jwt, "decode", counted)
    one, false = token(), token(OTHER_EC_KEY)
    for _ in range(3):
        assert tokens.value_of(one) == "team-a"
        assert isinstance(tokens.value_of(false), KeyFault)
    assert len(verified) == 2, "the false one is remembered too"
    wall.seconds += 86_431
    tokens.value_of(one)
    assert len(verified) == 3, "what is remembered ends when the token does"
    for number in range(5):
        tokens.value_of(token(sub=f"team-{number}"))
    assert len(tokens._verified) == 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no JSON Web Key Set"),
        (b"[]", "no JSON Web Key Set"),
        (b'{"keys": [1]}', "no JSON Web Key Set"),
        (b'{"keys": [{"kid": "\xff"}]}', "no JSON Web Key Set"),
        (b"[" * 100_000, "no JSON Web Key Set"),
        ({"keys": []}, "holds no key for RS256 or ES256"),
        ({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "e"}]}, "holds no key for RS256 or ES256"),
        ({"keys": [public(EC_KEY, use="enc")]}, "holds no key for"),
        ({"keys": [public(EC_KEY, key_ops=["sign"])]}, "holds no key for"),
        ({"keys": [public(EC_KEY, key_ops=7)]}, "holds no key for"),
        ({"keys": [public(EC_KEY, crv="P-384")]}, "holds no key for"),
        ({"keys": [public(EC_KEY, kid=7)]}, "holds no key for"),
        ({"keys": [public(EC_KEY, x="!")]}, "holds no key for"),
        ({"keys": [public(RSA_KEY, alg="RS512")]}, "holds no key for"),
        ({"keys": [public(SHORT_RSA_KEY)]}, "holds no key for"),
        ({"keys": [public(EC_KEY)] * 101}, "more than 100 keys"),
        ({"keys": [{**public(EC_KEY), "d": "c2VjcmV0"}]}, "holds a private key"),
        (b" " * (1 << 20) + b"{}", "longer than 1 MiB"),
    ],
)
def test_a_key_set_that_cannot_be_used_is_one_sentence(
    make: Callable[..., SignedTokens], content: object, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as told:
        make(content)
    assert "jwt.jwks_file" in str(told.value)
    assert "c2VjcmV0" not in str(told.value)


async def no_fetch(*_: object) -> None:
    raise OSError("nobody is there")


def test_an_unknown_key_asks_for_the_set_again_but_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Moment(1_000.0)
    settings = JwtSettings(ISSUER, AUDIENCE, jwks_url="https://login.example.com/keys")
    tokens = SignedTokens(settings, clock=clock)
    listed = [{"keys": [public(OTHER_EC_KEY, kid="o")]}, SET]
    asked: list[float] = []

    async def fetch(url: str) -> None:
        asked.append(clock.seconds)
        tokens._take(json.dumps(listed[min(len(asked), 2) - 1]).encode())

    monkeypatch.setattr(tokens, "_fetch", fetch)

    def fault() -> int:
        found = tokens.value_of(token())
        return found.status if isinstance(found, KeyFault) else 200

    assert (fault(), tokens.is_due) == (503, True), "no set was read yet"
    asyncio.run(tokens.ask())
    assert (fault(), tokens.is_due) == (401, False), "it was asked for just now"
    clock.seconds += 29
    assert (fault(), tokens.is_due) == (401, False)
    clock.seconds += 1
    assert (fault(), tokens.is_due) == (503, True)
    asyncio.run(tokens.ask())
    assert (fault(), tokens.is_due) == (200, False)
    clock.seconds += 299
    assert not tokens.is_due
    clock.seconds += 1
    assert tokens.is_due
    assert asked == [1_000.0, 1_030.0]


def test_the_last_good_set_counts_while_its_url_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Moment(0.0)
    url = "https://login.example.com/keys?key=a-secret"
    tokens = SignedTokens(JwtSettings(ISSUER, AUDIENCE, jwks_url=url), clock=clock)
    tokens._take(json.dumps(SET).encode())
    monkeypatch.setattr(tokens, "_fetch", no_fetch)
    with caplog.at_level(logging.WARNING):
        asyncio.run(tokens.ask())
    assert caplog.messages == [
        "the key set https://login.example.com/keys?… cannot be used: nobody is there; the keys of before count on"
    ]
    assert tokens.value_of(token()) == "team-a"
    clock.seconds = 29.0
    assert not tokens.is_due
    clock.seconds = 30.0
    assert tokens.is_due


def test_another_key_set_forgets_what_the_one_before_verified(make: Callable[..., SignedTokens]) -> None:
    tokens, one = make(), token()
    assert tokens.value_of(one) == "team-a"
    tokens._take(json.dumps({"keys": [public(OTHER_EC_KEY, kid="e")]}).encode())
    assert isinstance(tokens.value_of(one), KeyFault)


def test_a_reload_keeps_what_did_not_change() -> None:
    settings = JwtSettings(ISSUER, AUDIENCE, jwks_url="https://login.example.com/keys")
    tokens = signed_tokens(settings)
    assert signed_tokens(settings, tokens) is tokens
    assert signed_tokens(JwtSettings(ISSUER, "other", jwks_url=settings.jwks_url), tokens) is not tokens
    assert signed_tokens(JwtSettings(), tokens) is None


def test_a_reload_with_other_settings_begins_with_the_keys_of_the_same_url() -> None:
    for url, is_taken in ((FUZZED.settings.jwks_url, True), ("https://other.example.com/keys", False)):
        tokens = signed_tokens(JwtSettings(ISSUER, AUDIENCE, jwks_url=url, leeway_seconds=90.0), FUZZED)
        assert tokens is not None
        assert tokens is not FUZZED
        found = tokens.value_of(token())
        assert (found == "team-a") is is_taken
        assert (isinstance(found, KeyFault) and found.status == 503) is not is_taken


def test_without_the_extra_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = JwtSettings(ISSUER, AUDIENCE, jwks_url="https://login.example.com/keys")
    monkeypatch.setattr(jwt.algorithms, "has_crypto", False)
    with pytest.raises(ValueError, match=r"\[jwt\] needs the extra: pip install 'headway\[jwt\]'"):
        SignedTokens(settings)
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(ValueError, match=r"\[jwt\] needs the extra: pip install 'headway\[jwt\]'"):
        SignedTokens(settings)


BASE = 'jwt = {{issuer = "i", audience = "a", {}}}\n[[tenant]]\nname = "t"\njwt_values = ["x"]'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[[tenant]]\nname = "t"\njwt_values = ["x"]', "jwt_values needs jwt.jwks_url or jwt.jwks_file"),
        (BASE.format('jwks_file = "f", jwks_url = "https://x"'), "jwt: give jwks_url or jwks_file, one of them"),
        (BASE.format('jwks_url = "http://login.example.com/?key=secret"'), "jwt.jwks_url must be https"),
        (BASE.format('jwks_url = "https://me:secret@x/"'), "jwt.jwks_url must be like https://login.example.com/keys"),
        (BASE.format('jwks_url = "https://x/#a"'), "jwt.jwks_url must be like"),
        (BASE.format('jwks_file = "f", algorithms = ["HS256"]'), "jwt.algorithms[0] must be one of 'RS256', 'ES256'"),
        (BASE.format('jwks_file = "f", algorithms = []'), "jwt.algorithms is empty"),
        (BASE.format('jwks_file = "f", leeway_seconds = -1'), "jwt.leeway_seconds must be at least 0"),
        (BASE.format('jwks_file = "f", tenant_claim = ""'), "jwt.tenant_claim is missing"),
        (BASE.replace('audience = "a", ', "").format('jwks_file = "f"'), "jwt.audience is missing"),
        ('jwt = {issuer = "i", audience = "a", jwks_file = "f"}', "jwt: no tenant has jwt_values"),
    ],
)
def test_each_mistake_of_the_settings_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    told = sentence_about(tmp_path, text)
    assert sentence in told
    assert "secret" not in told


def false_token(number: int) -> bytes:
    return token(sub=f"x{number}").rpartition(b".")[0] + b"." + urlsafe_b64encode(b"%064d" % number).rstrip(b"=")


def test_false_tokens_are_verified_so_often_in_a_second_and_known_ones_go_on(make: Callable[..., SignedTokens]) -> None:
    tokens, clock = make(faults_per_second=5, address_faults_per_second=2), Moment(10.0)
    tokens._clock = clock
    verified: list[bytes] = []
    value = tokens._value
    tokens._value = lambda given, digest: verified.append(given) or value(given, digest)  # type: ignore[method-assign, assignment, func-returns-value]

    def status(given: bytes, address: str) -> int:
        answer = tokens.value_of(given, address)
        return answer.status if isinstance(answer, KeyFault) else 200

    assert status(VALID, "a") == 200
    assert [status(false_token(n), "a") for n in range(3)] == [401, 401, 429]
    assert status(false_token(1), "a") == 401, "it is remembered"
    assert status(VALID, "a") == 200, "it is known"
    assert status(token(sub="team-b"), "a") == 429, "it is not known yet"
    expired = token(exp=int(time.time()) - 99)
    assert [status(expired, "b") for _ in range(3)] == [401, 401, 429]
    clock.seconds = 10.25
    assert [status(false_token(9), "c"), status(false_token(10), "d")] == [401, 429]
    refused = tokens.value_of(false_token(11), "d")
    assert isinstance(refused, KeyFault)
    assert refused.retry_seconds == 0.75
    assert len(verified) == 6
    assert len(tokens._faults._by_address) == 3
    clock.seconds = 11.0
    assert [status(token(sub="team-b"), "a"), status(false_token(12), "d")] == [200, 401]
    assert list(tokens._faults._by_address) == ["d"]
