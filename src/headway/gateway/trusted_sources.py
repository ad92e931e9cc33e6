"""Trusted sources: which host names lead here, and which proxies may say where a request came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

FORWARDED_HEADERS = frozenset(
    [
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-real-ip",
    ]
)
"""What a proxy says of its client; from anybody else it is a claim."""


class TrustedProxies:
    """The configured networks, for example `10.0.0.0/8`."""

    def __init__(self, networks: Sequence[str]) -> None:
        """Raises ValueError if one is no address and no network."""
        self._networks = tuple(ip_network(network, strict=False) for network in networks)

    def holds(self, address: str) -> bool:
        """Whether this client is one of them."""
        return bool(self._networks) and _lies_in(address, self._networks)


@lru_cache(maxsize=1_024)
def _lies_in(address: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    try:
        return any(ip_address(address.partition("%")[0]) in network for network in networks)
    except ValueError:
        return False


def is_loopback(listen: str | None) -> bool:
    """Whether only this machine reaches a listening address, host:port."""
    host = (listen or "").rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def leads_here(host: bytes | None, names: Iterable[str]) -> bool:
    """Whether a `Host` header is one that this machine can have.

    A web page of any site can have its own name resolve to 127.0.0.1 and then call what listens there (DNS rebinding).
    Its browser still sends that site's name. An address, a name without a dot and the configured ones are never that.
    """
    name = _foreign_name(host or b"")
    return name is None or any(name == own.lower() for own in names)


@lru_cache(maxsize=1_024)
def _foreign_name(host: bytes) -> str | None:
    """The name in a `Host` header that a web page could have too; None if it is an address or has no dot."""
    name = host.decode("latin-1").lower()
    name = name.partition("]")[0].removeprefix("[") if name.startswith("[") else name.partition(":")[0]
    if "." not in name or name.endswith(".localhost"):
        return None
    try:
        ip_address(name)
    except ValueError:
        return name
    return None
