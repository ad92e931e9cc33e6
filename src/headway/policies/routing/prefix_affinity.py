"""Prefix affinity: the replica that computed the longest prefix of the prompt, unless it is loaded above the mean."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView
from headway.policies.bounded_load import checked_factor, within_bound
from headway.policies.contracts import Need
from headway.policies.routing.least_work import LeastWork


class PrefixAffinity:
    """The replica that computed the longest prefix of the prompt, within a bounded load; else the least work.

    Idea: remember which replica was last sent each prefix, and send the next request with that prefix there, where its
        KV blocks probably still are. No replica may hold more than `load_factor` times the mean.
    Source: cache-aware routing by approximate history as in vllm-router and SMG; the bound is Mirrokni et al., arXiv
        1608.01350. Memory of `prefixes_max` prefixes, the least recently used forgotten.
    Reads: hashes of the prompt's prefixes, requests dispatched and not ended, and what `least-work` reads.
    Wins when: prompts share long prefixes: conversations, agents, common system prompts.
    Loses when: nothing is shared, or the engine's cache forgets faster than this memory does.
    """

    NEEDS = frozenset([Need.REPLICAS])

    def __init__(self, *, load_factor: float = 1.25, prefixes_max: int = 65_536) -> None:
        if prefixes_max < 1:
            raise ValueError(f"prefixes_max must be at least 1, got {prefixes_max}")
        self._load_factor = checked_factor(load_factor)
        self._prefixes_max = prefixes_max
        self._least_work = LeastWork()
        self._sent: OrderedDict[int, str] = OrderedDict()  # hash of a prefix -> replica it was last sent to

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        """Of those within the bound, the holder of the longest known prefix; least work where none holds any."""
        allowed = within_bound(replicas, self._load_factor)
        by_id = {replica.id: replica for replica in allowed}
        for key in reversed(prefix):
            holder = by_id.get(self._sent.get(key, ""))
            if holder is not None:
                return holder
        return self._least_work.choose(request, prefix, allowed, now)

    def routed(self, request: RequestView, prefix: Sequence[int], replica: ReplicaView) -> None:
        """Note where every prefix of the prompt now lies."""
        for key in prefix:
            self._sent[key] = replica.id
            self._sent.move_to_end(key)
        while len(self._sent) > self._prefixes_max:
            self._sent.popitem(last=False)
