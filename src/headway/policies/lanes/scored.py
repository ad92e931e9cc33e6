"""Scored lanes: lanes whose heads compete by score, the machinery of the three EWSJF orderings.

A head's score is a line in time, computed once per head and kept until something it depends on changes; a choice is
one pass over the heads. Arrivals teach the lanes, first tokens teach the costs, admissions mark the rounds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from itertools import count
from typing import Literal, TypeAlias

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event
from headway.domain.request import RequestId, RequestView, uncached_prefill_tokens
from headway.policies.contracts import LaneId
from headway.policies.lanes.cost_fit import CostFit
from headway.policies.lanes.lane_assignment import Lane, LaneAssigner
from headway.policies.lanes.lane_learner import LaneLearner
from headway.policies.lanes.partition import Span
from headway.policies.lanes.scoring import ScoreLine, overtaken_at
from headway.policies.lanes.starvation_guard import StarvationGuard

Fill: TypeAlias = Literal["lane-and-neighbours", "lane", "score"]
ScoreOf: TypeAlias = Callable[[int, float, int, float], ScoreLine]
"""(size, mean size of the lane, q = lanes − index, arrived_at) -> the head's line."""

_COMPACT_ABOVE = 64  # entries of requests that left; below that a rebuild is not worth its call


class ScoredLanes:
    """Lane assigner, learner, cost fit, guard and score put together; a `LanedOrdering` but for `enter` and `rank`.

    A round is the admissions of one step of the engine. `fill` says which request follows within it: "score" compares
    all heads again for each; "lane" goes on with the lane of the round's first and compares again when it is empty;
    "lane-and-neighbours" goes on with the lanes nearest to it by mean size. `index_matters` and `means_matter` say
    whether scores look at a lane's place among the others and at its mean; where they do not, what was computed stands.
    """

    def __init__(
        self,
        *,
        size_of: Callable[[RequestView], int],
        router: LaneAssigner,
        score_of: ScoreOf,
        fill: Fill,
        learner: LaneLearner | None = None,
        costs: CostFit | None = None,
        guard: StarvationGuard | None = None,
        index_matters: bool = False,
        means_matter: Callable[[], bool] = lambda: False,
    ) -> None:
        self.score_of = score_of
        self.router = router
        self.learner = learner
        self.costs = costs
        self.guard = guard
        self.redrawn = 0
        self._size_of = size_of
        self._fill = fill
        self._index_matters = index_matters
        self._means_matter = means_matter
        self._placed: dict[RequestId, _LanePlace] = {}
        self._oldest: list[tuple[float, int, RequestId]] = []  # a heap; entries of requests that left are dropped late
        self._ticket = count()
        self._lines: dict[LaneId, tuple[RequestView, ScoreLine]] = {}
        self._drawn = router.version
        self._indices: dict[int, tuple[int, Lane]] = {}
        self._round_at: float | None = None
        self._primary: tuple[LaneId, float] | None = None  # lane and mean size of the round's first by score

    # The contract

    def enter(self, request: RequestView) -> int:
        """The request's lane; remembered until it leaves the queue."""
        known = self._placed.get(request.id)
        if known is not None:  # lanes were redrawn, or the cache changed: it keeps its size, as the bound's T is
            # of sizes at arrival, and its place in time
            if self.router.knows(known.lane):
                self.router.leave(known.lane)
            known.lane = lane = self.router.route(known.size)
            self.router.enter(lane)
            return lane.number
        size = self._size_of(request)
        lane = self.router.route(size)
        self.router.enter(lane)
        ticket = next(self._ticket)
        self._placed[request.id] = _LanePlace(lane, size, uncached_prefill_tokens(request), request.arrived_at, ticket)
        if self.guard is not None:
            if len(self._oldest) > 2 * len(self._placed) + _COMPACT_ABOVE:  # many left without an admission
                self._oldest = [(at.arrived_at, at.ticket, waits) for waits, at in self._placed.items()]
                heapq.heapify(self._oldest)
            else:
                heapq.heappush(self._oldest, (request.arrived_at, ticket, request.id))
        return lane.number

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """An overdue head whose turn it is, else the round's lane, else the highest score."""
        if self.guard is not None:
            lane = self._oldest_lane(heads)
            oldest = heads[lane]
            if self.guard.promotes(oldest.arrived_at, self._tokens(oldest), now):
                return lane
        if self._primary is not None and now == self._round_at and self._fill != "score":
            lane, mean = self._primary
            if lane in heads:
                return lane
            if self._fill == "lane-and-neighbours":
                return min(heads, key=lambda other: (abs(self._lane(other).mean - mean), other))
        best: LaneId = None
        best_score, best_arrival = -math.inf, math.inf
        for lane, (base, slope, arrival) in self._lines_of(heads).items():
            score = base + slope * (now - arrival)
            if score >= best_score and (score > best_score or (arrival, lane) < (best_arrival, best)):
                best, best_score, best_arrival = lane, score, arrival
        return best

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """The next crossing of two scores at the top, or the moment at which the oldest is overdue."""
        if len(heads) == 1:
            return math.inf
        due = math.inf
        if self.guard is not None:
            oldest = heads[self._oldest_lane(heads)]
            tokens = self._tokens(oldest)
            if self.guard.promotes(oldest.arrived_at, tokens, now):
                return math.inf
            due = self.guard.due(oldest.arrived_at, tokens, now)
        if self._primary is not None and now == self._round_at and self._fill != "score":
            return now
        lines = self._lines_of(heads)
        return min(due, overtaken_at(lines[self.choose(heads, now)], lines.values(), now))

    def observe(self, event: Event) -> None:
        """Learn sizes from arrivals and costs from first tokens; keep count of waiting requests and of rounds."""
        if self.costs is not None and self.costs.observe(event):
            self._lines.clear()
        match event:
            case Arrived(request=request):
                if self.learner is not None:
                    place = self._placed.get(request.id)
                    self._learn(self.learner, self._size_of(request) if place is None else place.size)
            case Admitted(request=request, at=at):
                self._admitted(request.id, at)
            case Cancelled(request=request) | Completed(request=request):
                self._left(request.id)
            case _:
                pass

    # For tuning, saving and restoring

    def adopt(self, spans: tuple[Span, ...]) -> None:
        """Take new lanes. `redrawn` changes, so the queue asks again for the lane of every waiting request."""
        self.router.replace(spans)
        self._lines.clear()
        self.redrawn += 1

    def forget_scores(self) -> None:
        """What scores are made of has changed."""
        self._lines.clear()

    # Inside

    def _learn(self, learner: LaneLearner, size: int) -> None:
        due = learner.note(size)
        if due == "adjustment":
            self.router.adjust(learner.latest())
            if self._means_matter():
                self._lines.clear()
        elif due == "partition":
            self.adopt(learner.partition(learner.window()))

    def _admitted(self, request_id: RequestId, at: float) -> None:
        if at != self._round_at:
            self._round_at, self._primary = at, None
            self.router.new_round()
        place = self._placed.get(request_id)
        if place is None:
            return  # it was preempted and waited in front of all lanes
        promoted = False
        if self.guard is not None:
            is_oldest = place.ticket == self._oldest_ticket()
            promoted = self.guard.admitted(place.arrived_at, place.tokens, at, is_oldest=is_oldest)
        if self._primary is None and not promoted:
            self._primary = (place.lane.number, place.lane.mean)
        self._left(request_id)

    def _oldest_ticket(self) -> int:
        """The ticket of the first to enter of the earliest arrivals that wait."""
        while True:
            _, ticket, request_id = self._oldest[0]
            place = self._placed.get(request_id)
            if place is not None and place.ticket == ticket:
                return ticket
            heapq.heappop(self._oldest)

    def _oldest_lane(self, heads: Mapping[LaneId, RequestView]) -> LaneId:
        """The lane of the earliest arrival; of equals the one that entered first, or the bound would not hold."""
        oldest: LaneId = None
        earliest, first_ticket = math.inf, math.inf
        for lane, head in heads.items():
            arrived_at = head.arrived_at
            if arrived_at <= earliest:
                ticket = self._placed[head.id].ticket
                if arrived_at < earliest or ticket < first_ticket:
                    oldest, earliest, first_ticket = lane, arrived_at, ticket
        return oldest

    def _left(self, request_id: RequestId) -> None:
        place = self._placed.pop(request_id, None)
        if place is None:
            return
        entry = self._lines.get(place.lane.number)
        if entry is not None and entry[0].id == request_id:
            del self._lines[place.lane.number]  # it may come back with more work; and no other request keeps it
        if self.router.knows(place.lane):
            self.router.leave(place.lane)

    def _tokens(self, request: RequestView) -> int:
        place = self._placed.get(request.id)
        return uncached_prefill_tokens(request) if place is None else place.tokens

    def _lane(self, number: LaneId) -> Lane:
        return self._places()[number][1]  # type: ignore[index]

    def _places(self) -> dict[int, tuple[int, Lane]]:
        """Lane number -> (index, lane), rebuilt when the lanes have changed."""
        if self._drawn != self.router.version or not self._indices:
            self._drawn = self.router.version
            self._indices = {lane.number: (index, lane) for index, lane in enumerate(self.router.lanes)}
            if self._index_matters:
                self._lines.clear()
        return self._indices

    def _lines_of(self, heads: Mapping[LaneId, RequestView]) -> dict[LaneId, ScoreLine]:
        places = self._places()
        known = self._lines
        lines: dict[LaneId, ScoreLine] = {}
        for number, head in heads.items():
            entry = known.get(number)
            if entry is None or entry[0] is not head:
                index, lane = places[number]  # type: ignore[index]
                place = self._placed.get(head.id)
                size = self._size_of(head) if place is None else place.size
                line = self.score_of(size, lane.mean, len(places) - index, head.arrived_at)
                known[number] = entry = (head, line)
            lines[number] = entry[1]
        return lines


class _LanePlace:
    """Where a waiting request stands."""

    __slots__ = ("arrived_at", "lane", "size", "ticket", "tokens")

    def __init__(self, lane: Lane, size: int, tokens: int, arrived_at: float, ticket: int) -> None:
        self.lane = lane
        self.size = size
        self.tokens = tokens
        self.arrived_at = arrived_at
        self.ticket = ticket
