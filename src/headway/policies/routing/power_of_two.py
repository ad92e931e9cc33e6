"""Power of two choices: the less loaded of two replicas drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView
from headway.policies.bounded_load import outstanding_requests
from headway.policies.contracts import Need


class PowerOfTwo:
    """The less loaded of two replicas drawn at random.

    Idea: two random choices avoid almost all of the imbalance of one, and unlike "least loaded of all" they do not
        send a herd of routers to the same replica on stale news.
    Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, IEEE TPDS 12(10), 2001.
    Reads: requests dispatched and not ended, as a share of what each may have; the request's id and the seed.
    Wins when: several gateways share the replicas, or there are very many of them.
    Loses when: one gateway sees all: then looking at every replica is better, and costs nothing.
    """

    NEEDS = frozenset([Need.REPLICAS])

    def __init__(self, *, seed: int) -> None:
        self._seed = seed

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        """Draw two different ones by a hash of seed and id; of equals the first drawn."""
        count = len(replicas)
        if count == 1:
            return replicas[0]
        digest = blake2b(f"{self._seed}/{request.id!r}".encode(), digest_size=16).digest()
        first = int.from_bytes(digest[:8], "big") % count
        second = (first + 1 + int.from_bytes(digest[8:], "big") % (count - 1)) % count
        return min(replicas[first], replicas[second], key=outstanding_requests)
