"""Stay: what was sent to a replica stays there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headway.domain.replica_view import OccupiedReplica
from headway.policies.contracts import Move


class Stay:
    """What was sent to a replica stays there.

    Idea: no request moves once it was sent; the default, and the baseline of the others.
    Source: what engines and routers do today.
    Reads: nothing.
    Wins when: requests wait in one queue in front, so that a replica is sent only what it can begin at once.
    Loses when: requests are pushed to replicas on arrival and their work is misjudged then.
    """

    period_seconds = math.inf
    moves_max = 0

    def moves(self, replicas: Sequence[OccupiedReplica], now: float) -> Sequence[Move]:
        """None."""
        return ()
