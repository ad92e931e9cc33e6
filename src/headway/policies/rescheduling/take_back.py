"""Take back: what waits at one replica and has not begun goes to another that can begin it at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headway.domain.replica_view import OccupiedReplica, SentRequest
from headway.policies.contracts import Move, Need
from headway.policies.predicted_work import added_seconds, output_tokens_left, outstanding_seconds, uncached_tokens

_LOOKS_PER_MOVE = 4  # where memory is short everywhere, a thousand waiting requests are not all looked at


class TakeBack:
    """What waits at one replica and has not begun goes to another where nothing waits and memory is free.

    Idea: from the replica with most work outstanding, the request that was sent last goes to the one that would be done
        soonest with it, if it would be so by `least_gain_seconds` sooner. A replica receives only while nothing waits
        there, its prompt fits into free KV memory and a seat is free, so what moves begins at once. One that drains
        gives up all that waits.
    Source: the honest subset of Llumnix (Sun et al., arXiv 2406.03243) for engines without live migration; its period.
    Reads: what waits at each replica, its work outstanding, its KV memory, and its costs.
    Wins when: requests are pushed to replicas on arrival, and a replica turns out to be slower than it looked then.
    Loses when: the prompt was cached at the replica that it leaves.
    """

    NEEDS = frozenset([Need.MOVES_OF_WAITING])

    def __init__(self, *, period_seconds: float = 0.05, least_gain_seconds: float = 0.1, moves_max: int = 16) -> None:
        if not 0.001 <= period_seconds < math.inf:
            raise ValueError(f"period_seconds must be at least 0.001 and finite, got {period_seconds:g}")
        if not 0 <= least_gain_seconds < math.inf:
            raise ValueError(f"least_gain_seconds must be at least 0 and finite, got {least_gain_seconds:g}")
        if moves_max < 1:
            raise ValueError(f"moves_max must be at least 1, got {moves_max}")
        self._period_seconds = period_seconds
        self._least_gain_seconds = least_gain_seconds
        self._moves_max = moves_max

    @property
    def period_seconds(self) -> float:
        """As given."""
        return self._period_seconds

    @property
    def moves_max(self) -> int:
        """As given."""
        return self._moves_max

    def moves(self, replicas: Sequence[OccupiedReplica], now: float) -> Sequence[Move]:
        """From the replica with most work to the one with least, the latest sent first."""
        crowded = [one for one in replicas if one.waiting_requests]
        empty = [one for one in replicas if not (one.waiting_requests or one.is_draining)]
        if not crowded or not empty:
            return ()
        sources, destinations = [_Source(one) for one in crowded], [_Destination(one) for one in empty]
        moves: list[Move] = []
        looks = self._moves_max * _LOOKS_PER_MOVE
        while len(moves) < self._moves_max and looks and sources and destinations:
            looks -= 1
            source = max(sources, key=lambda one: one.urgency)
            if not source.left:
                sources.remove(source)
                continue
            sent = source.left.pop()
            best = min(destinations, key=lambda one: one.seconds_with(sent))
            gain = source.seconds - best.seconds_with(sent)
            if gain == -math.inf or (gain < self._least_gain_seconds and not source.one.is_draining):
                continue
            source.gave(sent)
            best.took(sent)
            moves.append(Move(source.one, best.one, sent.request))
        return moves


class _Source:
    """A replica at which requests wait, and what becomes of its work as they leave."""

    def __init__(self, one: OccupiedReplica) -> None:
        self.one = one
        self.left = [sent for sent in one.waiting if sent.may_move]
        self.seconds = outstanding_seconds(one.replica)

    @property
    def urgency(self) -> tuple[bool, float]:
        """One that drains goes first, then the one with most work."""
        return self.one.is_draining, self.seconds

    def gave(self, sent: SentRequest) -> None:
        self.seconds -= _added(sent, self.one)


class _Destination:
    """A replica at which nothing waits, and what becomes of it as requests come."""

    def __init__(self, one: OccupiedReplica) -> None:
        self.one = one
        self._seconds = outstanding_seconds(one.replica)
        self._requests = one.replica.requests
        self._kv_tokens = one.replica.kv_tokens

    def seconds_with(self, sent: SentRequest) -> float:
        """Work there, the request included; infinite if it could not begin at once."""
        replica = self.one.replica
        kv_tokens = self._kv_tokens + sent.request.prompt_tokens
        is_full = replica.kv_tokens_max is not None and kv_tokens > replica.kv_tokens_max
        if is_full or self._requests >= replica.requests_max or not self.one.could_take(sent.request):
            return math.inf
        return self._seconds + _added(sent, self.one)

    def took(self, sent: SentRequest) -> None:
        self._seconds += _added(sent, self.one)
        self._requests += 1
        self._kv_tokens += sent.request.prompt_tokens


def _added(sent: SentRequest, one: OccupiedReplica) -> float:
    request = sent.request
    outputs = output_tokens_left(request)
    return added_seconds(uncached_tokens(request, sent.prefix, one.replica), outputs, one.replica.costs)
