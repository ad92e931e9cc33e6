"""Limits of what all clients hold together: connections in all, per address and per API key, and bytes of bodies."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address

from headway.gateway.wire.limits import WireLimits


class SharedLimits:
    """The counts of one listening address.

    Attributes:
        connections: open now.
        body_bytes: of all bodies that are coming, that wait, or whose answer has not begun.
    """

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits
        self.connections = 0
        self.body_bytes = 0
        self._of_address: Counter[str] = Counter()
        self._of_key: Counter[str] = Counter()
        self._refused = 0  # connections that may not stay and have not gone yet
        self._refused_max = 1 + limits.connections // 8

    def enter(self, address: str) -> str | None:
        """Count one more connection; or why it may not stay, and then it is not counted."""
        limits = self._limits
        if self.connections >= limits.connections:
            return f"this gateway has {limits.connections} open connections, which is its limit"
        client = _client_of(address)
        if limits.address_connections is not None and self._of_address[client] >= limits.address_connections:
            return f"your address has {limits.address_connections} open connections, which is the limit"
        self.connections += 1
        self._of_address[client] += 1
        return None

    def may_refuse(self) -> bool:
        """Whether one that may not stay can be told so. They take a descriptor each, so no flood of them may."""
        self._refused += 1
        return self._refused <= self._refused_max

    def refused_left(self) -> None:
        """A connection that might not stay is gone."""
        self._refused -= 1

    def leave(self, address: str, owner: str) -> None:
        """A counted connection is gone."""
        self.connections -= 1
        _take_one(self._of_address, _client_of(address))
        if owner:
            _take_one(self._of_key, owner)

    def change_owner(self, before: str, owner: str) -> str | None:
        """A connection brings a request of another API key than `before`; or why it may not, then nothing changes."""
        most = self._limits.key_connections
        if owner and most is not None and self._of_key[owner] >= most:
            return f"this API key has {most} open connections, which is its limit"
        if owner:
            self._of_key[owner] += 1
        if before:
            _take_one(self._of_key, before)
        return None

    def has_room(self) -> bool:
        """Whether the bodies fit into their limit."""
        return self.body_bytes <= self._limits.bodies_bytes


def _client_of(address: str) -> str:
    """Whose connection counts with which: of IPv6 a network of 64 bits, since each client has one to itself."""
    if ":" not in address or address.startswith("::ffff:"):  # IPv4, perhaps written as IPv6
        return address
    bits = int(ip_address(address.partition("%")[0])) >> 64
    return f"{bits:x}::/64"


def _take_one(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
