"""The register of replicas: the configured ones, those added by `/admin`, and those that sources find.

Laws: each address and each name is there once, the first of these three wins; a source that cannot be read changes
nothing; each source finds `replicas_max` at most.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter

from headway.gateway.discovery.dns_source import DnsSource, ServerLookup, SrvSource, SystemLookup
from headway.gateway.discovery.file_source import FileSource
from headway.gateway.discovery.pool_source import PoolSource
from headway.gateway.discovery.replica_source import (
    Findings,
    FoundReplica,
    LookedAtSource,
    ReplicaSource,
    SourceReport,
)
from headway.gateway.replicas.replica_membership import WantedReplica
from headway.gateway.replicas.upstream_replica import CONFIGURED
from headway.gateway.settings import ReplicaSettings, ReplicaSourceSettings, Settings
from headway.gateway.settings_file import address_of, check_replica, replica_name, template_of

ADDED = "/admin"
_AGAIN_SECONDS = 5.0  # after a fault of our own
_UNUSABLE_MAX = 1_000  # of one source, until no more of its replicas are looked at: each takes some 30 us
_BY_ADDRESS = attrgetter("host", "port", "name", "scheme")
log = logging.getLogger("headway.gateway")


@dataclass(slots=True)
class FollowedSource:
    """A source, what it found last, and the task that follows it."""

    settings: ReplicaSourceSettings
    report: SourceReport
    template: ReplicaSettings  # what holds for each replica that it finds
    task: asyncio.Task[None] | None = None
    findings: Findings | None = None  # None until it found out for the first time
    usable: list[FoundReplica] = field(default_factory=list)  # of those, by address, `replicas_max` at most
    unusable: Mapping[FoundReplica, str] = field(default_factory=dict)  # likewise, and why
    left_out: int = 0  # replicas beyond `replicas_max`
    is_taken: bool = False  # the findings have led to replicas

    @property
    def label(self) -> str:
        """What it is called in logs and metrics."""
        return self.report.label


class ReplicaRegister:
    """Of one gateway. `on_change` is called when other replicas shall be there than before.

    `check_found` raises ValueError, one sentence, for a replica that this gateway cannot use.
    """

    def __init__(
        self,
        on_change: Callable[[], None],
        check_found: Callable[[ReplicaSettings], None] = lambda replica: None,
    ) -> None:
        self._on_change = on_change
        self._check_found = check_found
        self._configured: tuple[ReplicaSettings, ...] = ()
        self.added: dict[str, ReplicaSettings] = {}
        self.sources: list[FollowedSource] = []
        self.why_gone: Mapping[str, str] = {}  # url -> why it left at the latest change

    def replace(self, settings: Settings) -> None:
        """Follow the sources of other settings from now on; those that stayed go on. `on_change` is not called."""
        self._configured = tuple(settings.replica)
        kept = list(self.sources)
        self.sources = []
        for wanted in settings.replica_source:
            source = next((one for one in kept if one.settings == wanted), None)
            if source is None:
                source = FollowedSource(wanted, SourceReport(wanted.label), template_of("replica_source", wanted))
                source.task = asyncio.create_task(self._follow(source))
            else:
                kept.remove(source)
            self.sources.append(source)
        for source in kept:
            if source.task is not None:
                source.task.cancel()

    def cancel(self) -> list[asyncio.Task[None]]:
        """Follow nothing any more; the tasks that end."""
        tasks = [source.task for source in self.sources if source.task is not None]
        for task in tasks:
            task.cancel()
        return tasks

    def add(self, name: str, replica: ReplicaSettings) -> None:
        """Add a replica under its name, or replace what was added under it. Raises ValueError, one sentence."""
        self._check_found(replica)
        known = {one.api_key_env for one in (*self._configured, *(source.template for source in self.sources))}
        if replica.api_key_env is not None and replica.api_key_env not in known:  # it would be sent to any url
            raise ValueError("api_key_env must be a variable that the configuration names for a replica or a source")
        for other in self.wanted():
            if other.source == ADDED and other.settings.name == name:
                continue
            if replica_name(other.settings) == name:
                raise ValueError(f"{name!r} is a replica of {other.source} already; choose another name")
            if address_of(other.settings.url) == address_of(replica.url):
                raise ValueError(
                    f"its url is that of {replica_name(other.settings)!r}, of {other.source}; name it once"
                )
        self.added[name] = replica
        self._on_change()

    def remove(self, name: str, why: str) -> None:
        """Remove what was added under a name; KeyError if nothing was."""
        self.why_gone = {self.added.pop(name).url: why}
        self._on_change()

    def source_of(self, name: str) -> str | None:
        """Where the replica of a name comes from; None if there is none."""
        return next((one.source for one in self.wanted() if replica_name(one.settings) == name), None)

    def wanted(self) -> list[WantedReplica]:
        """All replicas that there shall be: configured, added, found."""
        names: set[str] = set()
        addresses: set[object] = set()
        wanted = []
        for one in self._all():
            address = address_of(one.settings.url)
            settings = one.settings
            if settings.name in names:  # which a source did not choose for us
                settings = replace(settings, name="")
            if address in addresses or replica_name(settings) in names:
                continue
            addresses.add(address)
            names.add(replica_name(settings))
            wanted.append(WantedReplica(settings, one.source))
        return wanted

    def _all(self) -> Iterator[WantedReplica]:
        for replica in self._configured:
            yield WantedReplica(replica, CONFIGURED)
        for replica in self.added.values():
            yield WantedReplica(replica, ADDED)
        for source in self.sources:
            for found in self._found(source):
                yield WantedReplica(found, source.label)

    def _found(self, source: FollowedSource) -> list[ReplicaSettings]:
        return [replace(source.template, url=one.url, name=one.name) for one in source.usable]

    async def _follow(self, source: FollowedSource) -> None:
        while True:
            try:
                await self._made(source).follow(lambda findings: self._take(source, findings), source.report)
            except Exception:  # a fault of ours must not end the following of this source
                log.exception("cannot follow %s", source.label)
            await asyncio.sleep(_AGAIN_SECONDS)

    def _made(self, source: FollowedSource) -> ReplicaSource:
        settings = source.settings
        if settings.inference_pool is not None:
            return PoolSource(settings.inference_pool, settings.kubeconfig)
        if settings.file is not None:
            return LookedAtSource(
                FileSource(settings.file, settings.scheme, partial(self._check, source)), settings.refresh_seconds
            )
        if settings.srv is not None:
            lookup = ServerLookup(settings.nameserver)
            return LookedAtSource(SrvSource(settings.srv, settings.scheme, lookup), settings.refresh_seconds)
        assert settings.dns is not None, "checked: a source has one of the four"
        addresses = SystemLookup() if settings.nameserver is None else ServerLookup(settings.nameserver)
        return LookedAtSource(DnsSource(settings.dns, settings.scheme, addresses), settings.refresh_seconds)

    def _take(self, source: FollowedSource, findings: Findings) -> None:
        if source.findings == findings and source.is_taken:
            return
        is_first, source.findings, source.is_taken = source.findings is None, findings, False
        self._look_at_each(source)
        self._tell_of_bound(source)
        if is_first and not findings.replicas:
            message = "%s names no replica as yet"
            log.warning(message, source.label, extra={"fields": {"source": source.label}})
        self.why_gone = findings.why_gone
        self._on_change()
        source.is_taken = True

    def _look_at_each(self, source: FollowedSource) -> None:
        """Leave out what cannot be a replica here, and say so once. What is beyond a bound is not looked at."""
        assert source.findings is not None
        before, known = source.unusable, set(source.usable)
        usable, unusable = list[FoundReplica](), dict[FoundReplica, str]()
        for found in sorted(source.findings.replicas, key=_BY_ADDRESS):
            if len(usable) >= source.settings.replicas_max or len(unusable) >= _UNUSABLE_MAX:
                break
            if found in known:
                usable.append(found)
                continue
            try:
                self._check(source, found)
            except ValueError as error:
                unusable[found] = str(error)
                if before.get(found) != str(error):
                    message = "a replica that %s names is left out: %s"
                    log.warning(message, source.label, error, extra={"fields": {"source": source.label}})
            else:
                usable.append(found)
        source.usable, source.unusable = usable, unusable

    def _check(self, source: FollowedSource, found: FoundReplica) -> None:
        replica = replace(source.template, url=found.url, name=found.name)
        check_replica("a target", replica)
        self._check_found(replica)

    def _tell_of_bound(self, source: FollowedSource) -> None:
        assert source.findings is not None
        left_out = len(source.findings.replicas) - len(source.usable) - len(source.unusable)
        if left_out and not source.left_out:
            message = "%s names more replicas than `replicas_max` (%d); %d are left out"
            most = source.settings.replicas_max
            log.warning(message, source.label, most, left_out, extra={"fields": {"source": source.label}})
        source.left_out = left_out
