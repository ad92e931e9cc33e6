"""What a source of replicas is: it finds them, tells of each change, and keeps its latest list when it cannot look."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

log = logging.getLogger("headway.gateway")


@dataclass(frozen=True, slots=True, order=True)
class FoundReplica:
    """One replica, as a source names it. Without a name it is known by host and port."""

    host: str
    port: int
    name: str = ""
    scheme: str = "http"

    @property
    def url(self) -> str:
        """Its address, as `[[replica]]` has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a source finds now; and of some that it does not find any more, by their url, why."""

    replicas: frozenset[FoundReplica]
    why_gone: Mapping[str, str] = field(default_factory=dict, compare=False)


class SourceFault(Exception):
    """A source cannot tell what there is now; one sentence says why. What it told last stays."""


class SourceReport:
    """Whether a source can be read, and why not; the log gets a line when that changes. A source may have parts."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.faults = 0
        self._standing: dict[str, str] = {}  # part -> why it cannot be read

    @property
    def fault(self) -> str:
        """Why it cannot be read now; "" if it can."""
        return next(iter(self._standing.values()), "")

    def failed(self, why: str, part: str = "") -> None:
        """It could not be read."""
        self.faults += 1
        if self._standing.get(part) != why:
            message = "%s cannot be read, its replicas stay as they are: %s"
            log.warning(message, self.label, why, extra={"fields": {"source": self.label}})
        self._standing[part] = why

    def well(self, part: str = "") -> None:
        """It was read."""
        if self._standing.pop(part, "") and not self._standing:
            log.info("%s can be read again", self.label, extra={"fields": {"source": self.label}})


class ReplicaSource(Protocol):
    """Finds replicas in one place."""

    async def follow(self, tell: Callable[[Findings], None], report: SourceReport) -> None:
        """Tell what there is, at first and at each change. Runs until cancelled."""


class Look(Protocol):
    """Looks once at a source that says nothing by itself."""

    async def look(self) -> Findings | None:
        """What there is now; None for the same as before. Raises SourceFault."""


class LookedAtSource:
    """A source that is looked at again and again, every so many seconds."""

    def __init__(self, source: Look, refresh_seconds: float) -> None:
        self._source = source
        self._refresh_seconds = refresh_seconds

    async def follow(self, tell: Callable[[Findings], None], report: SourceReport) -> None:
        """See `ReplicaSource`."""
        while True:
            try:
                findings = await self._source.look()
            except SourceFault as fault:
                report.failed(str(fault))
            else:
                report.well()
                if findings is not None:
                    tell(findings)
            await asyncio.sleep(self._refresh_seconds)
