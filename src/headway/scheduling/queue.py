"""The waiting queue: the next request under any ordering, in O(log waiting) and O(lanes).

Laws: `head` and `pop` agree; a request is in the queue once; removing costs no scan; preempted requests come back in
front of all others (or by rank, where the engine imitated does so); ties go to the earlier arrival; when an ordering
redraws its lanes all requests move and none is lost; of equals the first to come is served first.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from typing import Literal, TypeAlias

from headway.domain.estimate import LengthEstimate
from headway.domain.request import Request, RequestId, RequestView
from headway.policies.contracts import (
    LanedOrdering,
    LaneId,
    OrderingPolicy,
    Rank,
    RedrawnOrdering,
    follows_what_is_learned,
)
from headway.scheduling.equals import Equals

Resumed: TypeAlias = Literal["front", "by-rank"]
Predict: TypeAlias = Callable[[RequestView], LengthEstimate]
Entry: TypeAlias = tuple[Rank, float, int, Request]  # rank, arrived_at, ticket, request

_ONE_LANE = None
_TICKET = 2  # its place in an `Entry`
_COMPACT_ABOVE = 64  # dead entries; below that a rebuild is not worth its call


class WaitingQueue:
    """Waiting requests under one ordering policy.

    `resumed` says where a preempted request goes: "front" is vLLM's under `fcfs` (prepended, latest victim first),
    "by-rank" is vLLM's under `priority`. `predict` tells equals (`scheduling.equals`) under an ordering that
    follows what is learned: ranks given at different times do not reorder them.
    """

    def __init__(self, ordering: OrderingPolicy, resumed: Resumed = "front", predict: Predict | None = None) -> None:
        self._ordering = ordering
        self._predict = predict
        self._equals = None if predict is None or not follows_what_is_learned(ordering) else Equals(predict)
        self._laned = ordering if isinstance(ordering, LanedOrdering) else None
        self._redrawn = ordering if isinstance(ordering, RedrawnOrdering) else None
        self._drawing = 0 if self._redrawn is None else self._redrawn.redrawn
        self._resumed = resumed
        self._lanes: dict[LaneId, list[Entry]] = {}
        self._heads: dict[LaneId, Request] = {}
        self._front: dict[RequestId, Request] = {}  # a stack: the last one preempted is served first
        self._where: dict[RequestId, tuple[LaneId, Entry]] = {}
        self._aside: dict[RequestId, int] = {}  # tickets of requests that cannot run for a while
        self._dead: set[int] = set()  # tickets of removed requests still inside a heap
        self._ticket = count()
        self._chosen: LaneId = _ONE_LANE
        self._chosen_at: float | None = None  # when the choice that stands was made; None: none stands
        self._chosen_until: float | None = None  # how long it stands; None: not asked yet

    def __len__(self) -> int:
        return len(self._where) + len(self._front)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._where or request_id in self._front

    def __iter__(self) -> Iterator[Request]:
        """All waiting requests, in no promised order."""
        yield from self._front.values()
        for lane in self._lanes.values():
            yield from (request for _, _, ticket, request in lane if ticket not in self._dead)

    @property
    def has_front(self) -> bool:
        """Whether a preempted request waits, which is served before all others."""
        return bool(self._front)

    @property
    def is_laned(self) -> bool:
        """Whether time alone may change what comes behind the head."""
        return self._laned is not None

    def lane_sizes(self) -> dict[LaneId, int]:
        """How many wait in each lane, the preempted apart; under a ranked ordering in the lane None. O(waiting)."""
        return dict(Counter([lane for lane, _ in self._where.values()]))

    def lane_heads(self) -> dict[LaneId, Request]:
        """The first request of each lane, the preempted apart."""
        return dict(self._heads)

    def add(self, request: Request) -> None:
        """Put a request in, one set aside into its old place. Raises ValueError if its id is waiting already."""
        if request.id in self._where or request.id in self._front:
            raise ValueError(f"request {request.id!r} is already waiting")
        ticket = self._aside.pop(request.id, None) if self._aside else None
        self._put(request, next(self._ticket) if ticket is None else ticket)

    def set_aside(self, request_id: RequestId) -> None:
        """Take out a request that cannot run for a while; ignore one that does not wait.

        `add` gives it its place back among those of one rank that arrived at one time; `forget` where it is gone.
        """
        if request_id in self._where:
            _, (_, _, ticket, _) = self._where[request_id]
            self._take_whole(request_id)
            self._aside[request_id] = ticket
        else:
            self._front.pop(request_id, None)

    def expect(self, request_id: RequestId) -> None:
        """Keep a place among equals, ahead of those added later, for a request that an earlier queue set aside."""
        self._aside[request_id] = next(self._ticket)

    def forget(self, request_id: RequestId) -> None:
        """A request that was set aside does not come back."""
        self._aside.pop(request_id, None)

    def _put(self, request: Request, ticket: int) -> None:
        lane = _ONE_LANE if self._laned is None else self._laned.lane(request)
        entry = (self._ordering.rank(request), request.arrived_at, ticket, request)
        self._where[request.id] = (lane, entry)
        if self._equals is not None:
            self._equals.add(request, ticket)
        heap = self._lanes.get(lane)
        if heap is None:
            self._lanes[lane] = [entry]
            self._heads[lane] = request
        else:
            heapq.heappush(heap, entry)
            if heap[0] is not entry:
                return  # behind its lane's head: no choice changes
            self._heads[lane] = request
        self._chosen_at = None

    def resume(self, request: Request) -> None:
        """Take a preempted request back. Raises ValueError if its id is waiting already."""
        if self._resumed == "by-rank":
            self.add(request)
        elif request.id in self._where or request.id in self._front:
            raise ValueError(f"request {request.id!r} is already waiting")
        else:
            self._front[request.id] = request

    def under(self, ordering: OrderingPolicy, predict: Predict | None = None) -> WaitingQueue:
        """A new queue with the same requests under another ordering; the preempted stay in front. O(n log n).

        `predict` is that of another predictor, where this changes too.
        """
        other = WaitingQueue(ordering, self._resumed, predict or self._predict)
        other._front.update(self._front)
        other._ticket = self._ticket
        other._aside.update(self._aside)
        for _, _, ticket, request in sorted([entry for _, entry in self._where.values()], key=_by_arrival):
            other._put(request, ticket)
        return other

    def requeue(self, request_id: RequestId) -> None:
        """Ask again for the lane and rank of a waiting request, whose work has changed; one in front stays there.

        It keeps its place among those of one rank that arrived at one time.
        """
        if request_id in self._front:
            return
        _, (_, _, ticket, _) = self._where[request_id]
        self._put(self._take_whole(request_id), ticket)

    def head(self, now: float) -> Request | None:
        """The next request at time `now` (seconds); None if the queue is empty."""
        if self._front:
            return next(reversed(self._front.values()))
        if not self._where:
            return None
        return self._first_equal(self._heads[self._lane_now(now)])

    def following(self, now: float, limit: int) -> list[Request]:
        """Up to `limit` requests behind the head, about in order of service: they may pass it if it does not fit.

        The preempted, then the rest of the head's lane in order, half of what is left of `limit` where there are other
        lanes; of those one head each, as the ordering would choose among them. Of equals only the first: where it does
        not fit the others do not. O(limit · (log limit + lanes)).
        """
        behind = list(reversed(self._front.values()))[: limit + 1]
        if self._where and len(behind) <= limit:
            chosen = self._lane_now(now)
            others = dict(self._heads)
            del others[chosen]
            room = limit + 1 - len(behind)
            behind += self._first_of(chosen, -(-room // 2) if others else room)
            while others and self._laned is not None and len(behind) <= limit:
                behind.append(others.pop(self._laned.choose(others, now)))
        if self._equals is not None:
            waiting = behind[len(self._front) :]
            behind = [*behind[: len(self._front)], *dict.fromkeys([self._first_equal(request) for request in waiting])]
        return behind[1:]

    def stands_until(self, now: float) -> float:
        """Time at which `head` may answer otherwise although nothing was added or taken; `math.inf` if never."""
        if self._front or not self._where or self._laned is None:
            return math.inf
        self._lane_now(now)
        return self._until(self._laned, now if self._chosen_at is None else self._chosen_at)

    def reconsider(self) -> None:
        """The ordering learned something: forget the choice of a lane, and move all requests if lanes were redrawn."""
        self._chosen_at = None
        if self._redrawn is not None and self._redrawn.redrawn != self._drawing:
            self._drawing = self._redrawn.redrawn
            self._relane(self._redrawn)

    def pop(self, now: float) -> Request:
        """Take the head out. Raises IndexError if the queue is empty."""
        if self._front:
            return self._front.popitem()[1]
        if not self._where:
            raise IndexError("the queue is empty")
        request = self._first_equal(self._heads[self._lane_now(now)])
        self._take(request.id)
        return request

    def remove(self, request_id: RequestId) -> Request | None:
        """Take one request out wherever it stands (its client left); None if it does not wait."""
        return self._take(request_id) if request_id in self._where else self._front.pop(request_id, None)

    def _take(self, request_id: RequestId) -> Request:
        lane, (_, _, ticket, request) = self._where.pop(request_id)
        if self._equals is not None:
            self._equals.remove(request_id)
        if self._heads[lane] is request:
            heapq.heappop(self._lanes[lane])
            self._settle(lane)
        else:
            self._dead.add(ticket)
            self._compact()
        return request

    def _take_whole(self, request_id: RequestId) -> Request:
        """Take out a request whose ticket will be used again. O(its lane) where it is not the lane's head."""
        lane, (_, _, ticket, _) = self._where[request_id]
        request = self._take(request_id)
        if ticket in self._dead:  # it was not its lane's head, so its old entry is still there
            self._dead.remove(ticket)
            heap = self._lanes[lane]
            heap[:] = [entry for entry in heap if entry[_TICKET] != ticket]
            heapq.heapify(heap)
        return request

    def _first_equal(self, request: Request) -> Request:
        """The request to serve where the ordering chose this one."""
        return request if self._equals is None else self._equals.first(request)

    def _first_of(self, lane: LaneId, count: int) -> list[Request]:
        """The first of one lane in order, read off the heap without disturbing it."""
        heap = self._lanes[lane]
        first: list[Request] = []
        edge = [(heap[0], 0)]  # of what was read so far: entries whose parent was
        while edge and len(first) < count:
            (_, _, ticket, request), place = heapq.heappop(edge)
            if ticket not in self._dead:
                first.append(request)
            for child in (2 * place + 1, 2 * place + 2):
                if child < len(heap):
                    heapq.heappush(edge, (heap[child], child))
        return first

    def _lane_now(self, now: float) -> LaneId:
        if self._laned is None:
            return _ONE_LANE
        if self._chosen_at is None or (now != self._chosen_at and now >= self._until(self._laned, self._chosen_at)):
            self._chosen = self._laned.choose(self._heads, now)
            self._chosen_at = now
            self._chosen_until = None
        return self._chosen

    def _until(self, laned: LanedOrdering, chosen_at: float) -> float:
        """How long the choice stands; asked only when time has moved on, since it costs as much as choosing."""
        if self._chosen_until is None:
            self._chosen_until = laned.next_change(self._heads, chosen_at)
        return self._chosen_until

    def _relane(self, laned: LanedOrdering) -> None:
        """Ask for every request's lane again, in order of arrival; none is lost and tickets stay. O(n log n)."""
        entries = sorted((entry for heap in self._lanes.values() for entry in self._alive(heap)), key=_by_arrival)
        self._dead.clear()
        self._lanes.clear()
        for _, arrived_at, ticket, request in entries:
            lane = laned.lane(request)
            entry = (laned.rank(request), arrived_at, ticket, request)
            self._lanes.setdefault(lane, []).append(entry)
            self._where[request.id] = (lane, entry)
        for heap in self._lanes.values():
            heapq.heapify(heap)
        self._heads.clear()
        for lane, heap in self._lanes.items():
            _, _, _, request = heap[0]
            self._heads[lane] = request

    def _settle(self, lane: LaneId) -> None:
        """Find a lane's head after its top was taken; forget the lane when it is empty."""
        self._chosen_at = None
        heap = self._lanes[lane]
        while heap:
            _, _, ticket, request = heap[0]
            if ticket not in self._dead:
                self._heads[lane] = request
                return
            self._dead.remove(ticket)
            heapq.heappop(heap)
        del self._lanes[lane], self._heads[lane]

    def _alive(self, heap: list[Entry]) -> list[Entry]:
        """The entries of a heap whose requests were not removed."""
        return [entry for entry in heap if entry[_TICKET] not in self._dead]

    def _compact(self) -> None:
        """Rebuild the heaps when most of what they hold is dead, so that a storm of aborts does not keep memory."""
        if len(self._dead) < _COMPACT_ABOVE or len(self._dead) < len(self._where):
            return
        for heap in self._lanes.values():
            heap[:] = self._alive(heap)
            heapq.heapify(heap)
        self._dead.clear()


def _by_arrival(entry: Entry) -> tuple[float, int]:
    _, arrived_at, ticket, _ = entry
    return arrived_at, ticket
