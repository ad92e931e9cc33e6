"""API keys tell tenants apart, and are never printed."""

from __future__ import annotations

import pytest

from headway.gateway.api_keys import ApiKeys
from headway.gateway.settings import TenantSettings


def test_keys_tell_tenants_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("ONE", "first-key-1")
    monkeypatch.setenv("TWO", "second-key-2")
    one, two = TenantSettings(name="one", key_env="ONE"), TenantSettings(name="two", key_env="TWO")
    tenants = ApiKeys([one, two])
    assert tenants.who({b"authorization": b"Bearer second-key-2"}) is two
    assert tenants.who({b"authorization": b"bearer  first-key-1 "}) is one
    assert tenants.who({b"x-api-key": b"first-key-1"}) is one
    for wrong in (b"", b"Bearer", b"Bearer first", b"Basic first-key-1", b"first-key-1"):
        assert tenants.who({b"authorization": wrong, b"x-api-key": b"first-key-1"}) is None
    for headers in ({}, {b"x-api-key": b"first"}):
        assert tenants.who(headers) is None
    with pytest.raises(ValueError, match="'one' and 'again' have the same key"):
        ApiKeys([one, TenantSettings(name="again", key_env="ONE")])
    monkeypatch.setenv("ONE", "short")
    with pytest.raises(ValueError, match="no key of 8 characters") as told:
        ApiKeys([one])
    assert "short" not in str(told.value)
