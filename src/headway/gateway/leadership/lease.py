"""The lease of one gateway: it is active while it holds it, and stands by else.

Laws: at any time at most one gateway is active, as long as their clocks run at speeds that differ by less than half; a
holder that cannot renew is passive before another may take over; times of different machines are never compared.

Source: the leader election of Kubernetes' client-go (tools/leaderelection). A gateway that stands by counts the time
since it saw the record change, by its own clock. It takes over when that is the record's whole time. The holder counts
from before it began to write, and is passive after two thirds of that time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from headway.gateway.observing import prometheus_text as prometheus

_RENEWED_SHARE = 0.25  # of the lease's time, between two renewals
_HELD_SHARE = 2 / 3  # of it, for which a renewal makes active
_TRIES = 3
_LOGGED_SECONDS = 60.0  # between two log lines about a fault
log = logging.getLogger("headway.gateway")


class LeaseFault(Exception):
    """The record could not be read or written; one sentence."""


class SeenLease(NamedTuple):
    """The record as it was read.

    Attributes:
        holder: who holds the lease; "" if nobody does.
        seconds: for how long, from each renewal.
        version: differs after each change; "" if there is no record.
    """

    holder: str
    seconds: float
    version: str


class LeaseStore(Protocol):
    """Where the record is. Every call ends within a few seconds."""

    async def read(self) -> SeenLease:
        """The record. Raises LeaseFault."""

    async def write(self, holder: str, seconds: float, version: str) -> bool:
        """Replace the record of this version; False if it has changed since. Raises LeaseFault."""

    async def close(self) -> None:
        """Let go of what it holds open."""


def own_name() -> str:
    """A name that no other process has: its machine's, its number, and some chance."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def seconds_since_boot() -> float:
    """A clock that goes on while the machine sleeps, where the system has one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """The lease as one gateway sees it. `clock` gives seconds and never goes back."""

    def __init__(
        self,
        store: LeaseStore,
        seconds: float,
        *,
        name: str | None = None,
        clock: Callable[[], float] = seconds_since_boot,
    ) -> None:
        """After `seconds` without a renewal others take over."""
        self.name = own_name() if name is None else name
        self.seconds = seconds
        self.taken = 0  # how often it became active
        self._store = store
        self._clock = clock
        self._held_until = -math.inf
        self._was_held = False
        self._other = ""  # the latest other gateway seen with it
        self._seen_version: str | None = None
        self._seen_at = math.inf
        self._was_anothers = False  # the record, when it was read last
        self._is_left = False
        self._finishes = False  # it was active when it left
        self._logged_at = -math.inf

    @property
    def is_held(self) -> bool:
        """Whether this gateway is active now."""
        return self._clock() < self._held_until

    @property
    def may_serve(self) -> bool:
        """Whether it may send requests on: while it is active, and to finish after it has left the lease."""
        return self._finishes or self._clock() < self._held_until

    async def keep(self) -> None:
        """Take the lease when it is free, and renew it. Runs until cancelled."""
        while not self._is_left:
            await self.look()
            pause = self.seconds * _RENEWED_SHARE * random.uniform(0.8, 1.0)
            left = self._held_until - self._clock()
            await asyncio.sleep(min(pause, left) if left > 0 else pause)

    async def look(self) -> None:
        """Read the record once, and renew or take the lease if it may."""
        try:
            async with asyncio.timeout(self.seconds * _RENEWED_SHARE * 2):
                await self._look()
        except Exception as fault:  # one of ours, too, must not end `keep`: this gateway would never serve again
            self._log_fault(fault)
        self._note_change()

    async def _look(self) -> None:
        began = self._clock()
        seen = await self._store.read()
        if seen.version != self._seen_version:
            self._seen_version, self._seen_at = seen.version, self._clock()
        if seen.holder not in ("", self.name):
            self._note_other(seen.holder)
            self._held_until = -math.inf
        is_gone = not seen.version and self._was_anothers  # deleted under its holder, which is active still
        self._was_anothers = seen.holder not in ("", self.name) or is_gone
        if self._was_anothers and self._clock() < self._seen_at + max(seen.seconds, self.seconds):
            return
        if not self._is_left and await self._store.write(self.name, self.seconds, seen.version):
            self._held_until = began + self.seconds * _HELD_SHARE

    def _note_other(self, holder: str) -> None:
        if holder != self._other:
            self._other = holder
            fields = {"lease": self.name, "holder": holder}
            log.info("another gateway holds the lease, and this one stands by", extra={"fields": fields})

    def _note_change(self) -> None:
        if self.is_held == self._was_held:
            return
        self._was_held = not self._was_held
        fields = {"lease": self.name}
        if self._was_held:
            self.taken += 1
            log.info("this gateway is active: it holds the lease", extra={"fields": fields})
        else:
            log.warning("this gateway stands by: it could not renew its lease, or lost it", extra={"fields": fields})

    async def leave(self) -> None:
        """Give the lease up at once, so that another need not wait; what is inside here is finished.

        `keep` is to be cancelled before.
        """
        if self._is_left:
            return
        self._is_left, self._finishes = True, self.is_held
        try:
            async with asyncio.timeout(self.seconds * _RENEWED_SHARE * 2):
                for _ in range(_TRIES):  # a renewal may be on its way still
                    seen = await self._store.read()
                    if seen.holder != self.name or await self._store.write("", self.seconds, seen.version):
                        return
        except Exception as fault:  # whatever it is, what is inside here is finished
            self._log_fault(fault)

    async def close(self) -> None:
        """Let go of its store."""
        await self._store.close()

    def metrics(self) -> Iterator[str]:
        """In Prometheus's text format."""
        yield prometheus.gauge(
            "headway_lease_held",
            "1 if this gateway holds the lease and is active, 0 if it stands by",
            [({}, self.is_held)],
        )
        yield prometheus.counter("headway_lease_taken", "Times that this gateway became active", [({}, self.taken)])

    def _log_fault(self, fault: Exception) -> None:
        now = self._clock()
        if now - self._logged_at >= _LOGGED_SECONDS:
            self._logged_at = now
            why = str(fault) or f"no answer within {self.seconds * _RENEWED_SHARE * 2:g} s"
            trace = None if isinstance(fault, LeaseFault | TimeoutError) else fault
            message = "the lease cannot be renewed or watched: %s"
            log.error(message, why, exc_info=trace, extra={"fields": {"lease": self.name}})
