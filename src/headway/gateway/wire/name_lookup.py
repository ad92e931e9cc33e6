"""Lookup of a replica's name, and the connection to whichever of its addresses answers first.

RFC 8305 ("Happy Eyeballs"): the next address is tried when the one before it failed, or did not answer within a quarter
of a second. An address that did not answer comes last for a while. A lookup that fails takes no known address away.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

_NEXT_SECONDS = 0.25  # RFC 8305, section 5: "Connection Attempt Delay"
_FRESH_SECONDS = 5.0  # a lookup is asked again after that
_HANGING_SECONDS = 0.5  # a lookup that takes longer is not waited for while older addresses are known
_AVOIDED_SECONDS = 30.0
_OURS = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL])
T = TypeVar("T")


class OwnShortage(OSError):
    """A connection failed for lack of descriptors, memory or ports here: not the replica's fault."""


def is_ours(error: BaseException) -> bool:
    """Whether a connection failed for a lack of something here, which says nothing of the replica."""
    return isinstance(error, OwnShortage) or (isinstance(error, OSError) and error.errno in _OURS)


class NameLookup:
    """The addresses of one host. `clock` gives seconds."""

    def __init__(self, host: str, port: int, clock: Callable[[], float]) -> None:
        self._host = host
        self._port = port
        self._clock = clock
        self._addresses = [host] if _is_address(host) else []
        self._is_fixed = bool(self._addresses)
        self._looked_up_at = 0.0
        self._lookup: asyncio.Task[None] | None = None
        self._avoided: dict[str, float] = {}  # address -> when it did not answer

    async def addresses(self) -> list[str]:
        """All of them, those that did not answer lately last.

        Raises:
            OwnShortage: descriptors ran out during the lookup.
            OSError: the name is unknown, or cannot be looked up, and no address is known from before.
        """
        if not self._is_fixed and (not self._addresses or self._clock() - self._looked_up_at > _FRESH_SECONDS):
            await self._look_up()
        since = self._clock() - _AVOIDED_SECONDS
        return sorted(self._addresses, key=lambda address: self._avoided.get(address, since) > since)

    def failed(self, address: str) -> None:
        """An address did not answer."""
        self._avoided[address] = self._clock()

    async def _look_up(self) -> None:
        if self._lookup is None:
            self._lookup = asyncio.ensure_future(self._ask())
            self._lookup.add_done_callback(_retrieve)
        lookup = self._lookup
        await asyncio.wait({lookup}, timeout=_HANGING_SECONDS if self._addresses else None)
        if self._addresses:
            self._looked_up_at = self._clock()  # known ones serve on, whatever became of the lookup
        else:
            lookup.result()

    async def _ask(self) -> None:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise _named(error, self._host) from None
        except UnicodeError as error:  # of the name's encoding
            raise OSError(f"{self._host!r} is not a valid host name: {error}") from None
        finally:
            self._lookup = None
        self._addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        self._avoided = {one: at for one, at in self._avoided.items() if one in self._addresses}


async def first_to_connect(
    lookup: NameLookup, connect: Callable[[str], Awaitable[T]], discard: Callable[[T], None]
) -> T:
    """The first connection that is made to one of the addresses of a name.

    Args:
        lookup: of the name; it learns which addresses did not answer.
        connect: connects to one address.
        discard: gets connections that are made too late.

    Raises:
        OSError: none could be connected to; the error of the last one, or the first that tells of a lack here.
    """
    waiting, errors = await lookup.addresses(), list[BaseException]()
    if len(waiting) == 1:
        return await connect(waiting[0])
    trying: dict[asyncio.Future[T], str] = {}
    try:
        while waiting or trying:
            if waiting:
                address = waiting.pop(0)
                trying[asyncio.ensure_future(connect(address))] = address
            done, _ = await asyncio.wait(
                trying, timeout=_NEXT_SECONDS if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                error = attempt.exception()
                if error is None:
                    del trying[attempt]
                    for slower in trying.values():
                        lookup.failed(slower)
                    return attempt.result()
                lookup.failed(trying.pop(attempt))
                errors.append(error)
    finally:
        for attempt in trying:
            if not attempt.cancel() and attempt.exception() is None:
                discard(attempt.result())
    raise next((error for error in errors if is_ours(error)), errors[-1])


def _retrieve(lookup: asyncio.Task[None]) -> None:
    """Take note of its error, which no caller may be waiting for any more."""
    if not lookup.cancelled():
        lookup.exception()


def _named(error: OSError, host: str) -> OSError:
    """The error of a lookup, in a sentence; the resolver says "unknown" also where it had no descriptor to ask with."""
    if is_ours(error) or _lacks_descriptors():
        return OwnShortage(errno.EMFILE, f"no descriptor is free to look up {host!r}")
    return OSError(f"the name {host!r} cannot be looked up: {error.strerror or error}")


def _lacks_descriptors() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return is_ours(error)
    return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
