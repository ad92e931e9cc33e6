"""Who lives for whom, and since when nobody does: nobody is kept waiting for replicas that do not come back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from headway.gateway.exchange import Exchange
from headway.gateway.replica import Health, Replica

_Kind: TypeAlias = tuple[str, Replica | None]  # the model wanted, and the replica that has failed it already


def lives(exchange: Exchange, replicas: Sequence[Replica]) -> bool:
    """Whether some replica, full or not, could take it; one that was not asked yet is believed to live."""
    return any(
        replica.state.health in (Health.UP, Health.UNKNOWN)
        and replica is not exchange.avoid
        and replica.serves(exchange.model)
        for replica in replicas
    )


class Outages:
    """Remembers from one look to the next since when nobody lives for those who wait."""

    def __init__(self) -> None:
        self._since: dict[_Kind, float] = {}

    def given_up(
        self, waiting: Iterable[Exchange], replicas: Sequence[Replica], now: float, grace_seconds: float
    ) -> list[Exchange]:
        """Those of `waiting` for whom nobody has lived for `grace_seconds`, as far as the looks tell."""
        since: dict[_Kind, float | None] = {}
        found = []
        for exchange in waiting:
            kind = exchange.model, exchange.avoid
            if kind not in since:
                since[kind] = None if lives(exchange, replicas) else self._since.get(kind, now)
            began = since[kind]
            if began is not None and now - began >= grace_seconds:
                found.append(exchange)
        self._since = {kind: at for kind, at in since.items() if at is not None}
        return found
