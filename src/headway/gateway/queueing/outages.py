"""Outages: since when no healthy replica could serve a kind of waiting request, and shortages of this gateway itself.

Requests that no replica serves fail after a grace period. Those that lack a descriptor or a port here wait.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from headway.gateway.queueing.request_state import QueuedRequest
from headway.gateway.replicas.replica_state import Health
from headway.gateway.replicas.upstream_replica import UpstreamReplica

_LOGGED_SECONDS = 60.0  # between two log lines of a shortage
_BELIEVED_UP = (Health.UP, Health.UNKNOWN)
log = logging.getLogger("headway.gateway")

Demand: TypeAlias = tuple[str, UpstreamReplica | None, tuple[str, ...]]
"""The model wanted, the replica to avoid and the endpoints allowed, () for all: who can serve a request."""


def demand_of(queued: QueuedRequest) -> Demand:
    """What decides which replicas can serve a request."""
    return queued.arrived.model, queued.failed_replica, queued.arrived.endpoints


class WaitingDemands:
    """How many requests wait of each demand: `all` of them, and the `online` ones alone. None is kept at 0."""

    def __init__(self) -> None:
        self.all: dict[Demand, int] = {}
        self.online: dict[Demand, int] = {}

    def change(self, queued: QueuedRequest, by: int) -> None:
        """A request waits from now on (1), or no more (-1)."""
        demand = demand_of(queued)
        for counts in (self.all,) if queued.is_offline else (self.all, self.online):
            counts[demand] = counts.get(demand, 0) + by
            if not counts[demand]:
                del counts[demand]


def can_be_served(demand: Demand, replicas: Sequence[UpstreamReplica]) -> bool:
    """Whether some replica, full or not, could serve it. A replica that was not probed yet is believed healthy."""
    model, avoided, endpoints = demand
    for replica in replicas:
        is_believed_up = replica.state.health in _BELIEVED_UP and not replica.is_drained
        if is_believed_up and replica is not avoided and replica.serves(model, endpoints):
            return True
    return False


def drained_part(model: str, replicas: Sequence[UpstreamReplica]) -> tuple[int, int]:
    """Of the replicas that serve a model: how many an operator has drained, and how many there are."""
    serving = [replica for replica in replicas if replica.serves(model)]
    return sum(replica.is_drained for replica in serving), len(serving)


class Outages:
    """Remembers from one call to the next since when a demand cannot be served."""

    def __init__(self) -> None:
        self._since: dict[Demand, float] = {}

    def lasting(
        self, waiting: Iterable[Demand], replicas: Sequence[UpstreamReplica], now: float, grace_seconds: float
    ) -> set[Demand]:
        """The demands of `waiting` that could not be served at any call of the last `grace_seconds`."""
        unserved = [demand for demand in waiting if not can_be_served(demand, replicas)]
        self._since = {demand: self._since.get(demand, now) for demand in unserved}
        return {demand for demand, began in self._since.items() if now - began >= grace_seconds}


class OwnShortages:
    """Counts connections to replicas that could not be made for lack of descriptors, memory or ports here."""

    def __init__(self) -> None:
        self.delayed = 0
        self._logged_at = -math.inf

    def note(self, error: OSError, now: float) -> None:
        """One more, and a log line if the last one is a minute old."""
        self.delayed += 1
        if now - self._logged_at >= _LOGGED_SECONDS:
            self._logged_at = now
            log.error("connections to replicas have to wait: %s; raise this process's limit of file descriptors", error)
