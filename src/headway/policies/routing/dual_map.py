"""Dual map: two hashes of the prompt's prefix name two replicas; the better cached one, while it is in time."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence

from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView
from headway.policies.contracts import Need
from headway.policies.predicted_work import first_token_seconds, uncached_tokens
from headway.policies.rendezvous_hashing import rendezvous_score

_REMEMBERED = 1_000  # dispatches, by which a hot prefix is known
_HOT = 2.0  # × an even share: a prefix above it is extended
_JUDGED_FROM = 100  # dispatches: of fewer, a few requests alike make no prefix hot


class DualMap:
    """Two hashes of the prompt's prefix name two replicas: the one with the better cache, while it is in time.

    Idea: requests with one prefix meet at two replicas, so that its cache serves them, and different prefixes spread as
        with two random choices. A replica that would be late gives the request to the other one.
    Source: DualMap (arXiv 2602.06502, abstract): cache affinity while the predicted first token meets its objective,
        then the less loaded of the two. Its prefix grows where it is hot, so that a system prompt common to all does
        not name two replicas for all. Ours, since its numbers are not public: the first prefix hash, doubled while more
        than 2 / n of the last 1,000 dispatches shared it, over n replicas. Equal caches go to the first hash's replica.
        Its migration of queued requests is a decision of another kind, and is left out.
    Reads: hashes of the prompt's prefixes, each replica's confirmed prefix, prompt tokens without a first token, costs,
        and the deadline (else `first_token_seconds`).
    Wins when: prompts share prefixes of very different popularity.
    Loses when: one long prefix has more load than two replicas serve, and its requests differ only after its end.
    """

    NEEDS = frozenset([Need.REPLICAS, Need.CACHED_TOKENS])

    def __init__(self, *, first_token_seconds: float = 5.0) -> None:
        if not 0 < first_token_seconds < math.inf:
            raise ValueError(f"first_token_seconds must be above 0 and finite, got {first_token_seconds:g}")
        self._first_token_seconds = first_token_seconds
        self._latest: deque[tuple[int, ...]] = deque()  # of dispatches, the prefixes that may name replicas
        self._counts: Counter[int] = Counter()  # of those

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        """The one of the two with more cached while it is in time, else the one whose first token comes sooner."""
        first, second = self.candidates(request, prefix, replicas)
        if first is second:
            return first
        cached = min((first, second), key=lambda replica: uncached_tokens(request, prefix, replica))
        left = self._first_token_seconds if request.deadline is None else request.deadline - now
        if first_token_seconds(request, prefix, cached) <= left:
            return cached
        return min((first, second), key=lambda replica: first_token_seconds(request, prefix, replica))

    def candidates(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView]
    ) -> tuple[ReplicaView, ReplicaView]:
        """The two replicas that the prefix names; the same twice where there is one. Without a prefix by the id."""
        key = repr(self._key(prefix, len(replicas))) if prefix else f"id {request.id!r}"
        first = max(replicas, key=lambda replica: rendezvous_score(f"1/{key}", replica.id))
        others = [replica for replica in replicas if replica is not first]
        second = max(others, key=lambda replica: rendezvous_score(f"2/{key}", replica.id), default=first)
        return first, second

    def routed(self, request: RequestView, prefix: Sequence[int], replica: ReplicaView) -> None:
        """Count its prefixes."""
        keys = tuple(_doubling(prefix))
        self._latest.append(keys)
        self._counts.update(keys)
        if len(self._latest) > _REMEMBERED:
            for key in self._latest.popleft():
                self._counts[key] -= 1
                if not self._counts[key]:
                    del self._counts[key]

    def _key(self, prefix: Sequence[int], replicas: int) -> int:
        """The shortest of the doubling prefixes that is not hot; the longest where all are."""
        most = _HOT / replicas * max(_JUDGED_FROM, len(self._latest))
        key = prefix[0]
        for key in _doubling(prefix):
            if self._counts[key] <= most:
                break
        return key


def _doubling(prefix: Sequence[int]) -> Iterator[int]:
    """The first, second, fourth, eighth … of the prefixes, and the last."""
    depth = 1
    while depth < len(prefix):
        yield prefix[depth - 1]
        depth *= 2
    if prefix:
        yield prefix[-1]
