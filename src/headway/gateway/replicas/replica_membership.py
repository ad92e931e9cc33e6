"""Membership: which replicas there are now. They come and go while the gateway runs; each is probed while it is there.

Laws: one that leaves gets no new request and ends those that it has; one that returns under the same settings goes on
with what was learned of it, and with the requests that still run there; what left is remembered within bounds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

from headway.gateway.replicas.confirmed_prefixes import ConfirmedPrefixes, share_prefixes
from headway.gateway.replicas.failure_share import FailureShare
from headway.gateway.replicas.kv_event_sources import subscribe
from headway.gateway.replicas.probing import keep_probing
from headway.gateway.replicas.replica_state import Health
from headway.gateway.replicas.upstream_replica import CONFIGURED, UpstreamReplica
from headway.gateway.settings import HealthSettings, ReplicaSettings
from headway.gateway.settings_file import shown_url

_REMEMBERED_SECONDS = 600.0  # for which the speed and the limit of one that left are kept
_CACHE_REMEMBERED_SECONDS = 60.0  # likewise what it confirmed to hold in its cache: an engine that restarts loses that
_REMEMBERED_MAX = 100
log = logging.getLogger("headway.gateway")


@dataclass(frozen=True, slots=True)
class WantedReplica:
    """A replica that there shall be, and the source that names it."""

    settings: ReplicaSettings
    source: str = CONFIGURED


@dataclass(slots=True)
class _Probed:
    """A replica that is there, and the tasks that probe it and read its KV events."""

    replica: UpstreamReplica
    task: asyncio.Task[None]
    events: asyncio.Task[None] | None = None

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return [self.task] if self.events is None else [self.task, self.events]

    def cancel(self) -> None:
        """Probe it no more."""
        for task in self.tasks:
            task.cancel()


@dataclass(slots=True)
class _Gone:
    """A replica that left, and when."""

    replica: UpstreamReplica
    at: float


class ReplicaMembership:
    """The replicas of one gateway. `make` makes one; `on_news` is called when one was probed; `clock` gives seconds."""

    def __init__(
        self,
        make: Callable[[ReplicaSettings], UpstreamReplica],
        on_news: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._make = make
        self._on_news = on_news
        self._clock = clock
        self._probed: list[_Probed] = []
        self._gone: dict[ReplicaSettings, _Gone] = {}  # the one that left first comes first

    @property
    def replicas(self) -> list[UpstreamReplica]:
        """Those that are there, in the order of `take`."""
        return [probed.replica for probed in self._probed]

    @property
    def leaving(self) -> list[UpstreamReplica]:
        """Those that left and still have requests."""
        return [gone.replica for gone in self._gone.values() if gone.replica.ledger.requests]

    def take(
        self,
        wanted: Sequence[WantedReplica],
        health: HealthSettings,
        why_gone: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """Keep replicas whose settings stayed, add the new ones, let the others finish their requests.

        One that is drained stays so, by its name, whatever else of it changes, and when it returns.

        Args:
            wanted: all that there shall be, each address and each name once.
            health: how they are judged.
            why_gone: why some of those that are left out go, by url, for the log.

        Returns:
            Whether a replica came or went.
        """
        kept = {probed.replica.settings: probed for probed in self._probed}
        drained = {replica.name for replica in self.replicas if replica.is_drained}
        is_first, changed = not self._probed and not self._gone, False
        there: list[_Probed] = []
        for one in wanted:
            probed = kept.pop(one.settings, None)
            changed |= probed is None
            is_told = not is_first or one.source != CONFIGURED  # what is there from the start is in the file
            replica = self._come(one, is_told=is_told) if probed is None else probed.replica
            replica.source = one.source
            if probed is None or replica.health != health:
                if probed is not None:
                    probed.task.cancel()
                replica.health = health
                task = asyncio.create_task(keep_probing(replica, health, self._clock, self._on_news))
                probed = _Probed(replica, task, self._events_of(replica) if probed is None else probed.events)
            replica.is_drained = replica.is_drained or replica.name in drained
            there.append(probed)
        for leaving in kept.values():
            self._go(leaving, why_gone.get(leaving.replica.settings.url, ""))
        self._probed = there
        self._number()
        remembered = [gone.replica for gone in self._gone.values()]
        share_prefixes([replica.ledger.confirmed for replica in [*self.replicas, *remembered]])
        return changed or bool(kept)

    def _come(self, wanted: WantedReplica, *, is_told: bool) -> UpstreamReplica:
        gone = self._gone.pop(wanted.settings, None)
        replica = self._make(wanted.settings) if gone is None else gone.replica
        if gone is not None:
            _returns(replica, self._clock())
        if is_told:
            again = "" if gone is None else " again"
            log.info("replica %s is there%s: %s names it", replica.name, again, wanted.source, extra=_facts(replica))
        return replica

    def _go(self, probed: _Probed, why: str) -> None:
        probed.cancel()
        replica = probed.replica
        replica.state.health = Health.LEAVING
        self._gone[replica.settings] = _Gone(replica, self._clock())
        why = why or f"{replica.source} names it no more"
        log.info("replica %s leaves: %s", replica.name, why, extra=_facts(replica))

    def _number(self) -> None:
        """Numbers for those without a name, by which clients know them: the same as long as it is there."""
        configured = [replica for replica in self.replicas if replica.source == CONFIGURED]
        for position, replica in enumerate(configured):
            replica.position = position
        others = [replica for replica in self.replicas if replica.source != CONFIGURED]
        used = set(range(len(configured)))
        later: list[UpstreamReplica] = []
        for replica in others:
            if replica.position is None or replica.position in used:
                later.append(replica)
            else:
                used.add(replica.position)
        free = (number for number in range(len(self.replicas)) if number not in used)
        for replica, number in zip(later, free, strict=False):
            replica.position = number

    def _events_of(self, replica: UpstreamReplica) -> asyncio.Task[None] | None:
        subscription = subscribe(replica, self._clock)
        return None if subscription is None else asyncio.create_task(subscription.run())

    def sweep(self) -> None:
        """Close connections to those that left and have ended their requests; forget what left long ago."""
        now, idle = self._clock(), {key: one for key, one in self._gone.items() if not one.replica.ledger.requests}
        for number, (key, gone) in enumerate(idle.items()):
            ledger = gone.replica.ledger
            gone.replica.pool.close()
            if now - gone.at >= _CACHE_REMEMBERED_SECONDS:
                ledger.confirmed, ledger.kv_blocks, gone.replica.kv_events = ConfirmedPrefixes(), None, None
            if now - gone.at >= _REMEMBERED_SECONDS or number < len(idle) - _REMEMBERED_MAX:
                del self._gone[key]

    def cancel(self) -> list[asyncio.Task[None]]:
        """Probe nothing any more; the tasks that end."""
        for probed in self._probed:
            probed.cancel()
        return [task for probed in self._probed for task in probed.tasks]

    def close(self) -> None:
        """Close all connections at once."""
        for replica in [*self.replicas, *(gone.replica for gone in self._gone.values())]:
            replica.pool.close()


def _returns(replica: UpstreamReplica, now: float) -> None:
    """It is there again: what is known of its health is not, and the next probe tells. The rest it goes on with."""
    state = replica.state
    state.health, state.changed_at, state.probe_at = Health.UNKNOWN, now, -inf
    state.failures = state.failed_probes = state.ejections = 0
    state.is_failing = state.is_spared = False
    state.failure_share, state.last_failure = FailureShare(), ""
    state.silent_since, state.progress_at = None, now


def _facts(replica: UpstreamReplica) -> dict[str, object]:
    requests = replica.ledger.requests
    return {"fields": {"replica": replica.name, "url": shown_url(replica.settings.url), "requests": requests}}
