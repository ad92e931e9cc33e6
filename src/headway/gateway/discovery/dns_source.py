"""Replicas named in DNS: each address of a name, or each target of its SRV records.

That a name does not exist, or has no such record, is an answer: there is no replica. A headless service of Kubernetes
with no ready pod answers so. Everything else that is not an answer changes nothing.
"""

from __future__ import annotations

import asyncio
import socket
from importlib import import_module
from typing import Any, Protocol

from headway.config.address import host_and_port, nameserver_of
from headway.gateway.discovery.replica_source import Findings, FoundReplica, SourceFault

_SECONDS = 5.0  # of one lookup
_AT_ONCE = 16  # targets of SRV records whose addresses are looked up side by side
_NONE_THERE = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)


class AddressLookup(Protocol):
    """Looks names up."""

    async def addresses(self, name: str) -> list[str]:
        """The IPv4 addresses of a name, else its IPv6 addresses; [] where there is none.

        Raises SourceFault if that cannot be found out.
        """


class SystemLookup:
    """Asks as every program of this machine does: /etc/hosts, then its name servers."""

    def __init__(self) -> None:
        self._asking: dict[str, asyncio.Future[list[str]]] = {}

    async def addresses(self, name: str) -> list[str]:
        """See `AddressLookup`. A lookup that hangs cannot be ended: the next one goes on waiting for it."""
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = asyncio.ensure_future(_addresses(name))
            asking.add_done_callback(_retrieve)
        await asyncio.wait({asking}, timeout=_SECONDS)
        if not asking.done():
            raise SourceFault(f"the lookup of {name!r} has no answer after {_SECONDS:g} s")
        del self._asking[name]
        return asking.result()


def _retrieve(lookup: asyncio.Future[list[str]]) -> None:
    """Take note of its error, which no look may be waiting for any more."""
    if not lookup.cancelled():
        lookup.exception()


async def _addresses(name: str) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in _NONE_THERE:
            return []
        raise SourceFault(f"the name {name!r} cannot be looked up: {error.strerror or error}") from None
    except (OSError, UnicodeError) as error:
        raise SourceFault(f"the name {name!r} cannot be looked up: {error}") from None
    of_family = {
        family: sorted({str(entry[4][0]) for entry in found if entry[0] == family})
        for family in (socket.AF_INET, socket.AF_INET6)
    }
    return of_family[socket.AF_INET] or of_family[socket.AF_INET6]


class ServerLookup:
    """Asks one name server, or those of /etc/resolv.conf, with dnspython."""

    def __init__(self, nameserver: str | None) -> None:
        """`nameserver` is ADDRESS or ADDRESS:PORT; None for those of this machine."""
        self._server = None if nameserver is None else nameserver_of(nameserver)

    async def addresses(self, name: str) -> list[str]:
        """See `AddressLookup`."""
        for kind in ("A", "AAAA"):
            found = sorted(record.address for record in await self._ask(name, kind))
            if found:
                return found
        return []

    async def services(self, name: str) -> list[tuple[str, int]]:
        """Target and port of each SRV record; [] where there is none. Raises SourceFault as `addresses` does."""
        records = await self._ask(name, "SRV")
        found = {(str(record.target).rstrip("."), int(record.port)) for record in records}
        return sorted((target, port) for target, port in found if target and port)  # "." says that there is no service

    async def _ask(self, name: str, kind: str) -> list[Any]:
        await asyncio.to_thread(import_module, "dns.asyncresolver")  # an extra, and slow to import
        import dns.asyncresolver  # noqa: PLC0415
        import dns.exception  # noqa: PLC0415
        import dns.resolver  # noqa: PLC0415

        try:
            resolver = dns.asyncresolver.Resolver(configure=self._server is None)
            if self._server is not None:
                resolver.nameservers, resolver.port = [self._server[0]], self._server[1]
            answer = await resolver.resolve(name, kind, lifetime=_SECONDS, search=self._server is None)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            why = " ".join(str(error).split())
            raise SourceFault(f"{kind} of {name!r} cannot be looked up: {why}") from None
        return list(answer)


class DnsSource:
    """Looks up a name; each of its addresses is a replica."""

    def __init__(self, address: str, scheme: str, lookup: AddressLookup) -> None:
        """`address` is HOST:PORT."""
        self._host, self._port = host_and_port(address, "dns")
        self._scheme = scheme
        self._lookup = lookup

    async def look(self) -> Findings:
        """See `Look`."""
        addresses = await self._lookup.addresses(self._host)
        return Findings(frozenset(FoundReplica(one, self._port, scheme=self._scheme) for one in addresses))


class SrvSource:
    """Looks up SRV records; each address of each target is a replica. With https a target stays a name."""

    def __init__(self, name: str, scheme: str, lookup: ServerLookup) -> None:
        self._name = name
        self._scheme = scheme
        self._lookup = lookup

    async def look(self) -> Findings:
        """See `Look`."""
        services = await self._lookup.services(self._name)
        if self._scheme == "https":  # whose certificate is for the name
            return Findings(frozenset(FoundReplica(target, port, scheme="https") for target, port in services))
        turn = asyncio.Semaphore(_AT_ONCE)

        async def addresses(target: str) -> list[str]:
            async with turn:
                return await self._lookup.addresses(target)

        targets = sorted({target for target, _ in services})
        found = dict(zip(targets, await asyncio.gather(*map(addresses, targets)), strict=True))
        return Findings(frozenset(FoundReplica(one, port) for target, port in services for one in found[target]))
