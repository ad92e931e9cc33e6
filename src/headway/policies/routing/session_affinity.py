"""Session affinity: a conversation stays on its replica, unless that is loaded above the mean."""

from __future__ import annotations

from collections.abc import Sequence

from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView
from headway.policies.bounded_load import checked_factor, within_bound
from headway.policies.contracts import Need
from headway.policies.rendezvous_hashing import rendezvous_score
from headway.policies.routing.least_work import LeastWork


class SessionAffinity:
    """A conversation stays on its replica, within a bounded load; requests without a session go to the least work.

    Idea: rank the replicas for each session by a hash of both, and take the first that is not loaded above
        `load_factor` times the mean. No table: every gateway ranks alike, and when a replica leaves only its own
        sessions move.
    Source: rendezvous hashing (D. Thaler, C. Ravishankar, Using Name-Based Mappings to Increase Hit Rates, IEEE/ACM
        ToN 6(1), 1998) with the bound of Mirrokni et al., arXiv 1608.01350.
    Reads: the session, requests dispatched and not ended, and what `least-work` reads.
    Wins when: clients name their sessions and come back soon.
    Loses when: sessions differ much in size, or no client names them.
    """

    NEEDS = frozenset([Need.REPLICAS])

    def __init__(self, *, load_factor: float = 1.25) -> None:
        self._load_factor = checked_factor(load_factor)
        self._least_work = LeastWork()

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        """Of those within the bound, the one that the session's hash ranks first."""
        allowed = within_bound(replicas, self._load_factor)
        session = request.session
        if session is None:
            return self._least_work.choose(request, prefix, allowed, now)
        return max(allowed, key=lambda replica: rendezvous_score(session, replica.id))
