"""Limits of what all clients hold together: connections in all, per address and per API key, and bytes of bodies."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address

from headway.gateway.wire.limits import WireLimits
from headway.gateway.wire.read_pacing import ReadPacer


class SharedLimits:
    """The counts of one listening address.

    Attributes:
        connections: open now, those in a TLS handshake included.
        handshakes: of them, those in a TLS handshake.
        handshakes_failed: TLS handshakes that ended without a connection, since the start.
        body_bytes: of all bodies that are coming, that wait, or whose answer has not begun.
        limits: the bounds of these counts.
        pacer: gives them their turns to be read; without one each is read at once.
    """

    def __init__(self, limits: WireLimits, pacer: ReadPacer | None = None) -> None:
        self.limits = limits
        self.connections = 0
        self.handshakes = 0
        self.handshakes_failed = 0
        self.body_bytes = 0
        self.pacer = pacer
        self._of_address: Counter[str] = Counter()
        self._of_key: Counter[str] = Counter()
        self._refused = 0  # connections that may not stay and have not gone yet
        self._refused_max = 1 + limits.connections // 8

    def take(self, address: str) -> ConnectionPlace:
        """A place for one more connection; one without room says so (`fault`) and is not counted."""
        fault = self._fault(address)
        if fault is None:
            self.connections += 1
            self._of_address[_client_of(address)] += 1
            return ConnectionPlace(self, address)
        self._refused += 1
        return ConnectionPlace(self, address, fault, may_be_told=self._refused <= self._refused_max)

    def _fault(self, address: str) -> str | None:
        limits = self.limits
        if self.connections >= limits.connections:
            return f"this gateway has {limits.connections} open connections, the limit `wire.connections`"
        most = limits.address_connections
        if most is not None and self._of_address[_client_of(address)] >= most:
            return f"your address has {most} open connections, the limit `wire.address_connections`"
        return None

    def leave(self, place: ConnectionPlace) -> None:
        """A connection is gone; called by its place, once."""
        if place.fault is not None:
            self._refused -= 1
            return
        self.connections -= 1
        _take_one(self._of_address, _client_of(place.address))
        if place.owner:
            _take_one(self._of_key, place.owner)

    def change_owner(self, before: str, owner: str) -> str | None:
        """A connection brings a request of another API key than `before`; or why it may not, then nothing changes."""
        most = self.limits.key_connections
        if owner and most is not None and self._of_key[owner] >= most:
            return f"this API key has {most} open connections, the limit `wire.key_connections`"
        if owner:
            self._of_key[owner] += 1
        if before:
            _take_one(self._of_key, before)
        return None

    def hold(self, more_bytes: int) -> None:
        """More of a body came, or fewer bytes of bodies are kept."""
        self.body_bytes += more_bytes

    def has_room(self, more_bytes: int = 0) -> bool:
        """Whether the bodies, and one of `more_bytes` that is to come, fit into their limit."""
        return self.body_bytes + more_bytes <= self.limits.bodies_bytes


class ConnectionPlace:
    """One connection among all of its address, from its first moment to its end.

    Attributes:
        shared: the counts that it is part of.
        address: of the client.
        fault: why it may not stay; None if it may.
        may_be_told: whether one that may not stay may stay so long as to hear why. Each takes a descriptor meanwhile,
            so of a flood only some may.
        owner: name of the API key of its latest request.
    """

    __slots__ = ("_is_left", "address", "fault", "may_be_told", "owner", "shared")

    def __init__(
        self, shared: SharedLimits, address: str, fault: str | None = None, *, may_be_told: bool = True
    ) -> None:
        self.shared = shared
        self.address = address
        self.fault = fault
        self.may_be_told = may_be_told
        self.owner = ""
        self._is_left = False

    def change_owner(self, owner: str) -> str | None:
        """It brings a request of this API key; or why it may not."""
        fault = None if owner == self.owner else self.shared.change_owner(self.owner, owner)
        if fault is None:
            self.owner = owner
        return fault

    def leave(self) -> None:
        """The connection is gone; further calls do nothing."""
        if not self._is_left:
            self._is_left = True
            self.shared.leave(self)


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
