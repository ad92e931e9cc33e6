"""Who lives for whom, and since when nobody does: nobody is kept waiting for replicas that do not come back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from headway.gateway.relay.exchange import Exchange
from headway.gateway.replicas.upstream_replica import Health, UpstreamReplica

Kind: TypeAlias = tuple[str, UpstreamReplica | None]
"""The model wanted, and the replica that has failed already: who is alike in both is served by the same replicas."""


def kind_of(exchange: Exchange) -> Kind:
    """What decides who could serve it."""
    return exchange.model, exchange.avoid


def lives(kind: Kind, replicas: Sequence[UpstreamReplica]) -> bool:
    """Whether some replica, full or not, could take such a request; one that was not asked yet is believed to live."""
    model, avoid = kind
    return any(
        replica.state.health in (Health.UP, Health.UNKNOWN) and replica is not avoid and replica.serves(model)
        for replica in replicas
    )


class Outages:
    """Remembers from one look to the next since when nobody lives for those who wait."""

    def __init__(self) -> None:
        self._since: dict[Kind, float] = {}

    def given_up(
        self, waiting: Iterable[Kind], replicas: Sequence[UpstreamReplica], now: float, grace_seconds: float
    ) -> set[Kind]:
        """Those of `waiting` for whom nobody has lived for `grace_seconds`, as far as the looks tell."""
        self._since = {kind: self._since.get(kind, now) for kind in waiting if not lives(kind, replicas)}
        return {kind for kind, began in self._since.items() if now - began >= grace_seconds}
