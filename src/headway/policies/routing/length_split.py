"""Length split: short prompts and long prompts go to replicas of their own."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

from headway.domain.replica_view import ReplicaView
from headway.domain.request import RequestView
from headway.policies.contracts import Need
from headway.policies.predicted_work import uncached_tokens
from headway.policies.routing.least_work import LeastWork

_REMEMBERED = 512  # dispatches: their work splits the replicas, and a replica that had none of them is forgotten
_MOVE_AFTER = 32  # dispatches between two moves of a replica from one group to the other
_UNEVEN = 2.0  # a replica moves where the work per replica of the groups differs by more


class LengthSplit:
    """Short prompts and long prompts go to replicas of their own; in each group to the least work.

    Idea: a short prompt behind a long one waits many times its own time. Two groups of replicas keep them apart, each
        as large as its share of the prefill work.
    Source: LAPS (arXiv 2601.11589, spatial disaggregation), which calls prompts below 256 new tokens short. Ours, since
        its rule for the sizes is not public: the groups share the replicas as the prompt tokens of the last 512
        dispatches share, at least one each. One replica moves at a time, where the work per replica differs by more
        than twice and the move makes that less. A group without room borrows from the other.
    Reads: prompt tokens, each replica's confirmed prefix, and what `least-work` reads.
    Wins when: most prompts are short, some are very long, and times of first tokens matter.
    Loses when: there are few replicas, or lengths are alike: a group of one cannot even out a burst.
    """

    NEEDS = frozenset([Need.REPLICAS])

    def __init__(self, *, short_tokens: int = 256) -> None:
        if short_tokens < 1:
            raise ValueError(f"short_tokens must be at least 1, got {short_tokens}")
        self._short_tokens = short_tokens
        self._least_work = LeastWork()
        self._work: deque[tuple[bool, int]] = deque()  # of the latest dispatches: whether it was short, its tokens
        self._tokens = {True: 0, False: 0}  # of those, by whether they were short
        self._seen: OrderedDict[str, int] = OrderedDict()  # replica -> its latest dispatch, the oldest first
        self._dispatches = 0
        self._moved_at = 0
        self._short_replicas = 1

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView:
        """The least work in the request's group; among all offered where none of its group is."""
        known = sorted({*self._seen, *(replica.id for replica in replicas)})
        short_group = set(known[: min(self._short_replicas, len(known) - 1)])
        is_short = self._is_short(request, prefix, replicas)
        own = [replica for replica in replicas if (replica.id in short_group) is is_short]
        return self._least_work.choose(request, prefix, own or replicas, now)

    def routed(self, request: RequestView, prefix: Sequence[int], replica: ReplicaView) -> None:
        """Count its prompt, and move a replica where the groups have become uneven."""
        self._dispatches += 1
        self._seen[replica.id] = self._dispatches
        self._seen.move_to_end(replica.id)
        while self._dispatches - next(iter(self._seen.values())) >= _REMEMBERED:
            self._seen.popitem(last=False)
        tokens = uncached_tokens(request, prefix, replica)
        is_short = tokens < self._short_tokens
        self._work.append((is_short, tokens))
        self._tokens[is_short] += tokens
        if len(self._work) > _REMEMBERED:
            was_short, gone = self._work.popleft()
            self._tokens[was_short] -= gone
        if self._dispatches - self._moved_at >= _MOVE_AFTER:
            self._move(len(self._seen))

    def _is_short(self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView]) -> bool:
        """By the least that any of the replicas would have to compute."""
        return min([uncached_tokens(request, prefix, replica) for replica in replicas]) < self._short_tokens

    def _move(self, replicas: int) -> None:
        """One replica more or fewer for the short prompts."""
        self._short_replicas = min(self._short_replicas, max(1, replicas - 1))
        if replicas < 3:
            return
        before = self._unevenness(self._short_replicas, replicas)
        for size in (self._short_replicas + 1, self._short_replicas - 1):
            if 1 <= size < replicas and before > _UNEVEN and self._unevenness(size, replicas) < before:
                self._short_replicas, self._moved_at = size, self._dispatches
                return

    def _unevenness(self, short_replicas: int, replicas: int) -> float:
        """Work per replica of the busier group over that of the other, 1 or more."""
        short = (self._tokens[True] + 1) / short_replicas
        long = (self._tokens[False] + 1) / (replicas - short_replicas)
        return max(short / long, long / short)
