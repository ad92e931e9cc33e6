"""Migrate: running requests go from the replica whose memory runs out first to the one with most to spare."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headway.domain.replica_view import OccupiedReplica, SentRequest
from headway.policies.contracts import Move, Need


class Migrate:
    """Running requests go, with their KV memory, from the replica whose memory runs out first to the freest.

    Idea: the freeness of a replica is (memory − virtual usage) / requests running, the decode steps until its memory is
        full. Virtual usage is what running requests hold, and the whole prompt of the first request that waits: so room
        is made for a long one (defragmentation). Requests of high priority (below 0) bring a headroom that others must
        keep free, `priority_headroom` of the memory for all of them together. A replica that drains has no freeness.
        The replica with the least freeness below `source_below` sends to the one with most above it, the next to the
        next: of its requests the least urgent one, of those the shortest. A move that would leave the destination
        no freer than the source was is not made.
    Source: Llumnix (Sun et al., arXiv 2406.03243, algorithm 1); period, threshold (3 blocks of 16 tokens) and the
        pairing are those of its code. The headroom as a share of memory is ours; theirs is given in tokens.
    Reads: KV tokens of each running request, prompts that wait, priorities, KV memory.
    Wins when: outputs are long and unequal, so that one replica preempts while another has memory to spare.
    Loses when: memory is short everywhere, or copies are slow.
    """

    NEEDS = frozenset([Need.MOVES_OF_RUNNING])

    def __init__(
        self,
        *,
        period_seconds: float = 0.05,
        source_below: float = 48.0,
        priority_headroom: float = 0.5,
        moves_max: int = 16,
    ) -> None:
        if not 0.001 <= period_seconds < math.inf:
            raise ValueError(f"period_seconds must be at least 0.001 and finite, got {period_seconds:g}")
        if not 0 <= source_below < math.inf:
            raise ValueError(f"source_below must be at least 0 and finite, got {source_below:g}")
        if not 0 <= priority_headroom <= 1:
            raise ValueError(f"priority_headroom must be from 0 to 1, got {priority_headroom:g}")
        if moves_max < 1:
            raise ValueError(f"moves_max must be at least 1, got {moves_max}")
        self._period_seconds = period_seconds
        self._source_below = source_below
        self._priority_headroom = priority_headroom
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
        """Pairs of the least free and the freest replica, the next and the next."""
        known = [one for one in replicas if one.replica.kv_tokens_max]
        by_freeness = sorted(((self.freeness(one), number) for number, one in enumerate(known)))
        sources = [(free, known[number]) for free, number in by_freeness if free < self._source_below]
        # Where every replica is short of memory no one is above the threshold, and nothing moves.
        destinations = [(free, known[number]) for free, number in reversed(by_freeness) if free >= self._source_below]
        moves: list[Move] = []
        for (free, source), (_, destination) in zip(sources, destinations, strict=False):
            sent = self._victim(source, destination, free)
            if sent is not None and len(moves) < self._moves_max:
                moves.append(Move(source, destination, sent.request))
        return moves

    def freeness(self, one: OccupiedReplica, joining: SentRequest | None = None) -> float:
        """Decode steps until the memory of a replica is full, with `joining` there too; -infinity if it drains."""
        if one.is_draining:
            return -math.inf
        running = [*one.running, *([] if joining is None else [joining])]
        usage = float(sum([sent.kv_tokens for sent in running]))
        if one.waiting:
            first = one.waiting[0].request
            usage += first.prompt_tokens + first.produced_tokens
        memory = one.replica.kv_tokens_max or 0
        if any(sent.request.priority < 0 for sent in running):
            usage += self._priority_headroom * memory
        return (memory - usage) / max(1, len(running))

    def _victim(self, source: OccupiedReplica, destination: OccupiedReplica, free: float) -> SentRequest | None:
        """The request to move: the least urgent one, of those the shortest; None if no move helps."""
        for sent in sorted(source.running, key=lambda one: (-one.request.priority, one.kv_tokens)):
            if not sent.may_move or not destination.could_take(sent.request):
                continue
            after = self.freeness(destination, sent)
            # The shortest of its class: what is longer would leave the destination still less free.
            return sent if after > max(free, 0.0) else None
        return None
