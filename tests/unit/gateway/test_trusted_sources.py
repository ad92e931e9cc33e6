"""Names and addresses that are trusted, and those that are not."""

from __future__ import annotations

import pytest

from headway.gateway.trusted_sources import TrustedProxies, is_loopback, leads_here


@pytest.mark.parametrize(
    "host", [b"127.0.0.1:8000", b"[::1]:8000", b"LOCALHOST", b"x", b"10.1.2.3", b"a.localhost:1", b"api.example.com:80"]
)
def test_names_that_lead_here(host: bytes) -> None:
    assert leads_here(host, ["API.example.com"])


@pytest.mark.parametrize(
    "host", [b"evil.example:8000", b"127.0.0.1.evil.example", b"api.example.com.evil.example", b"1.2"]
)
def test_names_that_a_web_page_could_have(host: bytes) -> None:
    assert not leads_here(host, ["api.example.com"])


def test_proxies_are_known_by_their_networks() -> None:
    proxies = TrustedProxies(["10.0.0.0/8", "::1"])
    assert [proxies.holds(one) for one in ("10.9.9.9", "::1", "11.0.0.1", "fe80::1%eth0", "", "x")] == [
        *(True, True, False, False, False, False),
    ]
    assert not TrustedProxies([]).holds("10.0.0.1")


def test_loopback_addresses() -> None:
    listens = ("127.0.0.1:80", "[::1]:80", "localhost:80", "0.0.0.0:80", "10.0.0.1:80", None)
    assert [is_loopback(one) for one in listens] == [True, True, True, False, False, False]
