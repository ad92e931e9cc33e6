"""Names in the certificate that a client showed (mTLS): its common names and its alternative ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_NAMES_MAX = 100  # of one certificate
_ALTERNATIVES = ("DNS", "URI", "email")


def peer_names(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Each as `CN:…`, `DNS:…`, `URI:…` or `email:…`, the alternative ones first.

    `certificate` is that of `ssl.SSLSocket.getpeercert`: None without one, empty where it was not verified.
    """
    return () if not certificate else tuple(dict.fromkeys(_names(certificate)))[:_NAMES_MAX]


def _names(certificate: Mapping[str, Any]) -> Iterator[str]:
    for kind, value in certificate.get("subjectAltName", ()):
        if kind in _ALTERNATIVES:
            yield f"{kind}:{value}"
    for part in certificate.get("subject", ()):
        for kind, value in part:
            if kind == "commonName":
                yield f"CN:{value}"
