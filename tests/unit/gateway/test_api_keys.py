"""API keys tell tenants apart, and are never printed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from headway.gateway.api_keys import UNKNOWN_KEY, AdminKeys, ApiKeys
from headway.gateway.settings import AdminSettings, Settings, TenantSettings
from headway.gateway.signed_tokens import KeyFault

SECRETS = ("first-key-1", "second-key-2", "third-key-3", "tiny-k")


def hash_of(key: str) -> str:
    return sha256(key.encode()).hexdigest()


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "first-key-1")
    monkeypatch.setenv("TWO", "second-key-2")
    monkeypatch.setenv("SHORT", "tiny-k")


def test_keys_tell_tenants_apart() -> None:
    one, two = TenantSettings(name="one", key_env="ONE"), TenantSettings(name="two", key_env="TWO")
    tenants = ApiKeys([one, two])
    assert tenants.who({b"authorization": b"Bearer second-key-2"}) is two
    assert tenants.who({b"authorization": b"bearer  first-key-1 "}) is one
    assert tenants.who({b"x-api-key": b"first-key-1"}) is one
    for wrong in (b"", b"Bearer", b"Bearer first", b"Basic first-key-1", b"first-key-1"):
        assert tenants.who({b"authorization": wrong, b"x-api-key": b"first-key-1"}) is UNKNOWN_KEY
    for headers in ({}, {b"x-api-key": b"first"}, {b"x-api-key": b""}, {b"x-api-key": hash_of("first-key-1").encode()}):
        assert tenants.who(headers) is UNKNOWN_KEY


def test_who_shows_an_unknown_certificate_without_a_key_hears_of_both() -> None:
    one = TenantSettings(name="one", key_env="ONE", certificate_names=("CN:one",))
    tenants = ApiKeys([one])
    assert tenants.who({}, ("CN:one",)) is one
    assert tenants.who({b"x-api-key": b"first-key-1"}, ("CN:two",)) is one
    fault = tenants.who({}, ("CN:two",))
    assert isinstance(fault, KeyFault)
    assert (fault.status, "no tenant has a name of the client certificate" in fault.message) == (401, True)
    assert tenants.who({}) is UNKNOWN_KEY


def test_all_keys_of_a_tenant_are_valid_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n second-key-2 \r\n\nthird-key-3\n")
    hashes = (hash_of("fourth-key-4").upper(), hash_of("third-key-3"))
    team = TenantSettings(name="team", key_env="ONE", key_file=str(file), key_sha256=hashes)
    other = TenantSettings(name="other", key_sha256=hash_of("fifth-key-5"))
    tenants = ApiKeys([team, other])
    for key in (b"first-key-1", b"second-key-2", b"third-key-3", b"fourth-key-4"):
        assert tenants.who({b"x-api-key": key}) is team
    assert tenants.who({b"x-api-key": b"fifth-key-5"}) is other


@pytest.mark.parametrize(
    ("tenant", "sentence"),
    [
        (TenantSettings("again", key_env="ONE"), "tenants 'one' and 'again' have the same key; give each its own"),
        (TenantSettings("again", key_sha256=hash_of("first-key-1")), "tenants 'one' and 'again' have the same key"),
        (TenantSettings("a", key_env="SHORT"), "variable SHORT holds no key of 8 characters or more"),
        (TenantSettings("a", key_env="NONE"), "variable NONE holds no key of 8 characters or more"),
        (TenantSettings("a", key_file="missing"), "the file missing cannot be read: No such file or directory"),
        (TenantSettings("a", key_file="empty"), "the file empty holds no key"),
        (TenantSettings("a", key_file="mixed"), "the file mixed has a line that is too short; write one key of 8"),
        (TenantSettings("a", key_file="latin"), "the file latin is not UTF-8; write one key a line"),
        (TenantSettings("a", key_sha256="second-key-2"), "64 hexadecimal digits; got 12 characters"),
        (TenantSettings("a", key_sha256=(hash_of(""),)), "key_sha256[0] is the SHA-256 of nothing"),
        (TenantSettings("a", key_sha256=(hash_of("x" * 9), hash_of("\n"))), "key_sha256[1] is the SHA-256 of nothing"),
    ],
)
def test_a_key_that_cannot_be_used_is_one_sentence_without_it(
    tenant: TenantSettings, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {"empty": b"\n\n", "mixed": b"second-key-2\ntiny-k\n", "latin": b"second-key-2\xff"}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(sentence)) as told:
        ApiKeys([TenantSettings(name="one", key_env="ONE"), tenant])
    assert not [secret for secret in SECRETS if secret in str(told.value)]


def test_admin_keys_that_read_change_nothing() -> None:
    admin = AdminSettings(key_env="TWO", key_sha256={"alice": hash_of("third-key-3")})
    keys = AdminKeys(Settings(admin_key_env="ONE", admin=admin))
    changing = [keys.changes(b"Bearer " + secret.encode()) for secret in SECRETS]
    assert changing == [None, "key_env", "alice", None]
    assert [keys.reads(b"Bearer " + secret.encode()) for secret in SECRETS] == [True, True, True, False]
    assert keys.changes(b"Basic OnNlY29uZC1rZXktMg==") is None
    assert keys.reads(b"Basic OnNlY29uZC1rZXktMg==")
    for wrong in (None, b"", b"Bearer", b"Bearer ", b"Basic !", b"Digest second-key-2"):
        assert not keys.reads(wrong)
        assert keys.changes(wrong) is None
    with pytest.raises(ValueError, match="admin: 'alice' and 'key_env' have the same key; give each its own"):
        AdminKeys(Settings(admin=AdminSettings(key_env="ONE", key_sha256={"alice": hash_of("first-key-1")})))


def test_a_look_up_costs_the_same_for_one_key_and_for_ten_thousand(count_calls: Callable[..., int]) -> None:
    costs = []
    for number in (1, 10_000):
        tenants = ApiKeys([TenantSettings(f"t{n}", key_sha256=hash_of(f"key-{n}")) for n in range(number)])
        costs.append([count_calls(tenants.who, {b"x-api-key": key}) for key in (b"key-0", b"unknown-key")])
    assert costs[0] == costs[1]


@pytest.fixture
def count_calls() -> Callable[..., int]:
    def count(function: Callable[..., object], *arguments: object) -> int:
        """Calls, of Python and of C, that one call makes: its cost on a machine of any speed."""
        calls = 0

        def note(_frame: object, event: str, _argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            function(*arguments)
        finally:
            sys.setprofile(None)
        return calls

    return count
