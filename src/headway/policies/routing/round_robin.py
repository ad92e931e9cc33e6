"""Round robin: each replica in turn."""

from __future__ import annotations

from collections.abc import Sequence

from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView
from headway.policies.contracts import Need

_REMEMBERED = 2_000  # replicas: names of pods that went would else be kept for ever


class RoundRobin:
    """Each replica in turn.

    Idea: the replica that was sent a request longest ago gets the next one.
    Source: the default of most load balancers; a yardstick.
    Reads: nothing but its own dispatches.
    Wins when: requests are alike and replicas are equal.
    Loses when: sizes differ, or prompts share prefixes that one replica has cached.
    """

    NEEDS = frozenset([Need.REPLICAS])

    def __init__(self) -> None:
        self._turn: dict[str, int] = {}
        self._turns = 0

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        """The one whose turn lies longest back; a newcomer before all others."""
        turn = self._turn
        turns = [turn.get(replica.id, 0) for replica in replicas]
        return replicas[turns.index(min(turns))]

    def routed(self, request: RequestView, prefix: Sequence[int], replica: ReplicaView) -> None:
        """Note whose turn it was."""
        self._turns += 1
        self._turn.pop(replica.id, None)
        self._turn[replica.id] = self._turns
        if len(self._turn) > _REMEMBERED:
            del self._turn[next(iter(self._turn))]  # the one whose turn lies longest back
