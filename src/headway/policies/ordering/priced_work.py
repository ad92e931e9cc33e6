"""One order without knobs: least work first, never far behind the order of arrival, and one in a hundred pays."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, Preempted
from headway.domain.request import RequestId, RequestView, uncached_prefill_tokens
from headway.policies.contracts import LaneId

PATIENCE = 2.0
"""A request is overdue once it has waited this many times what it would have waited in order of arrival."""
SPARE_PATIENCE = 20.0
"""The same for those that make way for all others."""
SPARE_SHARE = 0.009
"""Requests that may make way, as a share of all: just less than the hundredth that no p99 looks at."""
_MEMORY = 2_000  # requests whose works are remembered, and in which the share of the spared is kept
_GAIN = 200.0  # requests over which what is left of the share may be spent
_LEAST_KNOWN = 20  # works seen before anybody can be told to be among the largest
_LANES_PER_E = 1 / math.log(1.3)  # works of one lane differ by less than 30 %
_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
_ROUNDING = 1 + 1e-9  # sums of works in two orders may differ by this much


class PricedWork:
    """Least work first, work being prefill and KV volume alike; nobody waits far beyond its turn by arrival.

    Idea: a replica hands out prefill and KV memory. A request's work is the geometric mean of what it takes of both,
        so that neither needs a unit nor a measured price. The least work goes first. A shadow queue in order of
        arrival, served as much work as the real one, tells what everybody would have waited there; who has waited
        twice that goes before all others, oldest first. Where a rush makes somebody wait too long whatever is done,
        let it be few and large: of the largest works at most one request in 111 makes way and is overdue only after
        20 times. docs/priced-work.md has the linear program this follows, the bound and its proof.
    Source: ours. Volume: SVF, arXiv 2606.22327v2. That least work first up to a cap on waiting is the optimum for the
        mean under a bound on the tail is a fluid argument of ours.
    Reads: prompt length, cached prompt tokens at entry, the length estimate's quantiles, arrivals and admissions.
    Wins when: load comes in rushes or exceeds what can be served, whatever is scarce, and lengths differ.
    Loses when: the very longest wait matters and not the 99th percentile: those that make way wait long. Against
        fcfs, whose p99 nothing that helps the short can reach where all requests are alike; against the order of the
        one size that matters where it is known in advance and the tail does not count.
    """

    def __init__(self) -> None:
        self._waiting: dict[RequestId, _Place] = {}
        self._shadow: deque[_Place] = deque()  # in order of arrival: who would still wait there
        self._ahead = 0.0  # work admitted that the shadow has not let in yet
        self._works: deque[float] = deque()
        self._by_size: list[float] = []
        self._credit = 0.0  # requests that may still be made to make way

    def lane(self, request: RequestView) -> tuple[bool, int]:
        """Whether it makes way, then which power of 1.3 its work falls under."""
        size = work(request)
        return self._makes_way(size), math.floor(math.log(size) * _LANES_PER_E)

    def rank(self, request: RequestView) -> float:
        """The arrival time: first come inside a lane."""
        return request.arrived_at

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The oldest overdue head; else the lane of least work, those who make way last."""
        oldest, lane = math.inf, None
        for number, head in heads.items():
            place = self._waiting.get(head.id)
            if place is not None and place.due <= now:
                arrived_at = head.arrived_at
                if arrived_at < oldest or (arrived_at == oldest and number < lane):  # type: ignore[operator]
                    oldest, lane = arrived_at, number
        return min(heads) if lane is None else lane  # type: ignore[type-var]

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """When the next head is overdue."""
        places = [self._waiting.get(head.id) for head in heads.values()]
        return min([place.due for place in places if place is not None and place.due > now], default=math.inf)

    def observe(self, event: Event) -> None:
        """Keep the shadow queue, the works seen and the account of who made way."""
        match event:
            case Arrived(request=request):
                self._enter(request)
            case Admitted(request=request, at=at):
                self._leave(request.id, at, admitted=True)
            case Preempted(request=request, at=at):  # it had its turn: where it waits by rank it is overdue at once
                self._waiting[request.id] = _Place(request.id, 0.0, request.arrived_at, False, at)
            case Cancelled(request=request, at=at) | Completed(request=request, at=at):
                self._leave(request.id, at, admitted=False)
            case _:
                pass

    def _makes_way(self, size: float) -> bool:
        """Whether it is among the largest, as many of them as the account allows at present."""
        known = len(self._by_size)
        if known < _LEAST_KNOWN:
            return False
        beyond = max(0.0, self._credit / _GAIN)
        return size > self._by_size[min(known - 1, int((1 - beyond) * known))]

    def _enter(self, request: RequestView) -> None:
        size = work(request)
        spared = self._makes_way(size)
        self._credit = min(SPARE_SHARE * _MEMORY, self._credit + SPARE_SHARE) - spared
        place = _Place(request.id, size, request.arrived_at, spared)
        self._waiting[request.id] = place
        self._shadow.append(place)
        self._works.append(size)
        insort(self._by_size, size)
        if len(self._works) > _MEMORY:
            del self._by_size[bisect_left(self._by_size, self._works.popleft())]

    def _leave(self, request_id: RequestId, at: float, *, admitted: bool) -> None:
        place = self._waiting.pop(request_id, None)
        if place is None:
            return
        if place.spared and admitted and not self._late(place, at):
            self._credit += 1  # it made way for nobody's sake
        self._ahead += place.work
        self._advance(at)

    def _late(self, place: _Place, at: float) -> bool:
        """Whether it would have been overdue if it had not made way."""
        return at > place.arrived_at + PATIENCE * (place.turn_at - place.arrived_at)

    def _advance(self, at: float) -> None:
        """Let in the shadow queue whoever the work admitted so far pays for."""
        shadow = self._shadow
        while shadow and (not self._waiting or shadow[0].work <= self._ahead * _ROUNDING):
            place = shadow.popleft()
            self._ahead -= place.work
            patience = SPARE_PATIENCE if place.spared else PATIENCE
            place.turn_at = at
            place.due = place.arrived_at + patience * (at - place.arrived_at)
        if not shadow:
            self._ahead = 0.0


class _Place:
    """Where a waiting request stands: its work, when arrival order would have let it in, when it is overdue."""

    __slots__ = ("arrived_at", "due", "id", "spared", "turn_at", "work")

    def __init__(self, id: RequestId, work: float, arrived_at: float, spared: bool, due: float = math.inf) -> None:
        self.id = id
        self.work = work
        self.arrived_at = arrived_at
        self.spared = spared
        self.due = due
        self.turn_at = math.inf


def work(request: RequestView) -> float:
    """Geometric mean of the prefill (tokens) and the expected KV volume (token·steps) still ahead; at least 1."""
    held = request.prompt_tokens + request.produced_tokens
    estimate = request.estimate
    if estimate is None:
        raise ValueError(
            f"request {request.id!r} has no length estimate, which priced-work needs: name a predictor with "
            "--prediction (for example histogram)"
        )
    total = 0.0
    for probability in _QUANTILES:
        tokens = estimate.remaining_quantile(probability, request.produced_tokens)
        total += tokens * (held + (tokens + 1) / 2)
    return math.sqrt(max(1, uncached_prefill_tokens(request)) * max(1.0, total / len(_QUANTILES)))
