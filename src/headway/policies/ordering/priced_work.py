"""Least work first with bounded delay against FCFS; the largest 0.9 % of requests may wait far longer."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import ClassVar

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, Preempted
from headway.domain.request import RequestId, RequestView, uncached_prefill_tokens
from headway.policies.contracts import LaneId, Need
from headway.policies.tunable import Tunable

PATIENCE = 2.0
"""A request is overdue once it has waited at least so many times what it would have under FCFS: the default."""
SPARE_PATIENCE = 50.0
"""The same for requests that make way for all others."""
SPARE_SHARE = 0.009
"""Requests that may make way, as a share of all: just less than the hundredth that no p99 looks at."""
TAIL = 0.99
"""No request is overdue before it has waited longer than this share of the others would have under FCFS."""
_MEMORY = 2_000  # requests whose works and waits are remembered, and in which the share of the spared is kept
_GAIN = 200.0  # requests over which what is left of the share may be spent
_LEAST_KNOWN = 20  # works seen before a request can be judged to be among the largest
_LANES_PER_E = 1 / math.log(1.5)  # works of one lane differ by less than half
_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
_ROUNDING = 1 + 1e-9  # sums of works in two orders may differ by this much


class PricedWork:
    """Least work first, work being prefill and KV volume alike; almost none waits far longer than under FCFS.

    Idea: a replica hands out prefill and KV memory. A request's work is the geometric mean of what it takes of both, so
        that neither needs a unit or a measured price. The least work goes first until the tail is at stake. A shadow
        queue in order of arrival, given as much work as the real one, estimates what each request would have waited
        there. A request that has waited twice that, and longer than 99 of 100 would have there, goes before all others,
        oldest first. In a rush some requests wait too long whatever is done; they are then few and large. At most nine
        in a thousand requests, of the largest works, make way: they are overdue only after 50 times their shadow's
        wait. `patience` is the dial between tail and mean, 2 unless given: near 1 few pass others for long, and a large
        one is least work first. docs/priced-work.md has the linear programs this follows, the bound and its proof.
    Source: ours. Volume: SVF, arXiv 2606.22327v2. In the fluid model under Kleinrock's conservation law (1965) the
        optimum is all-or-nothing: a request waits not at all or as long as allowed.
    Reads: prompt length, cached prompt tokens, the length estimate's quantiles, arrivals and admissions.
    Wins when: load comes in rushes or exceeds what can be served, whatever is scarce, and lengths differ.
    Loses when: the longest wait matters and not the 99th percentile, since requests that make way wait long. Against
        the least prefill first in the mean, where the tail does not count; against fcfs at p99 in a long overload of
        requests that are all alike. Where work is not time: short prompts with very long answers, beside a stream of
        long prompts with short ones that fills a replica with memory to spare, wait many times as long as under fcfs.
    """

    follows_what_is_learned = True
    NEEDS = frozenset([Need.CACHED_TOKENS])

    TUNABLE: ClassVar[tuple[Tunable, ...]] = (Tunable("patience", 1.05, SPARE_PATIENCE, "log"),)

    def __init__(self, *, patience: float = PATIENCE) -> None:
        if not 1 <= patience <= SPARE_PATIENCE:
            raise ValueError(f"patience must be from 1 to {SPARE_PATIENCE:g}, got {patience:g}")
        self._patience = patience
        self._waiting: dict[RequestId, _QueuePlace] = {}
        self._shadow: OrderedDict[_QueuePlace, None] = OrderedDict()  # requests that would still wait by arrival
        self._ahead = 0.0  # work admitted that the shadow has not let in yet
        self._works = _Recent()
        self._arrival_order_waits = _Recent()
        self._tail = 0.0  # seconds that TAIL of the last would have waited in order of arrival at most
        self._credit = 0.0  # requests that may still be made to make way

    def lane(self, request: RequestView) -> tuple[bool, int]:
        """Whether it makes way, then which power of 1.5 its work falls under."""
        size = work(request)
        place = self._waiting.get(request.id)
        if place is not None:  # asked again: it makes way if it paid for that, or another would wait behind it unpaid
            return place.spared, _lane_of(size)
        preempted = request.produced_tokens > 0  # overdue at once
        return not preempted and self._makes_way(size), _lane_of(size)

    def rank(self, request: RequestView) -> float:
        """The arrival time: first come inside a lane."""
        return request.arrived_at

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The oldest overdue head; else the lane of least work, the lanes that make way last."""
        oldest, lane = math.inf, None
        for number, head in heads.items():
            place = self._waiting.get(head.id)
            if place is not None and self._due(place) <= now:
                arrived_at = head.arrived_at
                if arrived_at < oldest or (arrived_at == oldest and number < lane):  # type: ignore[operator]
                    oldest, lane = arrived_at, number
        return min(heads) if lane is None else lane  # type: ignore[type-var]

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """When the next head is overdue."""
        places = [self._waiting.get(head.id) for head in heads.values()]
        dues = [self._due(place) for place in places if place is not None]
        return min([due for due in dues if due > now], default=math.inf)

    def observe(self, event: Event) -> None:
        """Keep the shadow queue, the works seen and the account of requests that made way."""
        match event:
            case Arrived(request=request):
                self._enter(request)
            case Admitted(request=request, at=at):
                self._admit(request.id, at)
            case Preempted(request=request, at=at):  # it had its turn: where it waits by rank it is overdue at once
                self._waiting[request.id] = _QueuePlace(0.0, -math.inf, False, at)
            case Cancelled(request=request, at=at) | Completed(request=request, at=at):
                self._withdraw(request.id, at)
            case _:
                pass

    def _makes_way(self, size: float) -> bool:
        """Whether it is among the largest, as many of them as the account allows at present."""
        if self._credit <= 0 or len(self._works) < _LEAST_KNOWN:
            return False
        return size > self._works.quantile(1 - self._credit / _GAIN)

    def _enter(self, request: RequestView) -> None:
        size = work(request)
        spared = self._makes_way(size)
        self._credit = min(SPARE_SHARE * _MEMORY, self._credit + SPARE_SHARE) - spared
        place = _QueuePlace(size, request.arrived_at, spared)
        self._waiting[request.id] = place
        self._shadow[place] = None
        self._works.add(size)

    def _due(self, place: _QueuePlace) -> float:
        """When it is overdue, as things are: not before it has waited as long as the tail by arrival."""
        return max(place.due, place.arrived_at + self._tail)

    def _admit(self, request_id: RequestId, at: float) -> None:
        place = self._waiting.pop(request_id, None)
        if place is not None:
            self._ahead += place.work
            self._refund(place, at)
            self._advance(at)

    def _withdraw(self, request_id: RequestId, at: float) -> None:
        """Take a request that will not be admitted out of both queues, as if it had never come."""
        place = self._waiting.pop(request_id, None)
        if place is None:
            return
        if place in self._shadow:
            del self._shadow[place]
        else:
            self._ahead += place.work  # the shadow spent as much on it
        self._refund(place, at)
        self._advance(at)

    def _refund(self, place: _QueuePlace, at: float) -> None:
        """Give its share back to the account if it did not have to make way after all."""
        if place.spared and at <= max(place.due_unspared, place.arrived_at + self._tail):
            self._credit += 1

    def _advance(self, at: float) -> None:
        """Let the shadow queue admit the requests that the work admitted so far pays for."""
        shadow = self._shadow
        while shadow:
            place = next(iter(shadow))
            if self._waiting and place.work > self._ahead * _ROUNDING:
                break
            del shadow[place]
            self._ahead -= place.work
            waited = at - place.arrived_at
            self._arrival_order_waits.add(waited)
            place.due_unspared = place.arrived_at + self._patience * waited
            place.due = place.arrived_at + (SPARE_PATIENCE if place.spared else self._patience) * waited
            self._tail = self._arrival_order_waits.quantile(TAIL)
        if not shadow:
            self._ahead = 0.0


class _QueuePlace:
    """Where a waiting request stands: its work, and when its patience ends, as it is and if it did not make way."""

    __slots__ = ("arrived_at", "due", "due_unspared", "spared", "work")

    def __init__(self, work: float, arrived_at: float, spared: bool, due: float = math.inf) -> None:
        self.work = work
        self.arrived_at = arrived_at
        self.spared = spared
        self.due = due
        self.due_unspared = due


class _Recent:
    """The last values of something, by size."""

    def __init__(self) -> None:
        self._by_age: deque[float] = deque()
        self._by_size: list[float] = []

    def __len__(self) -> int:
        return len(self._by_size)

    def add(self, value: float) -> None:
        """Take one in; the oldest goes when there are too many."""
        self._by_age.append(value)
        insort(self._by_size, value)
        if len(self._by_age) > _MEMORY:
            del self._by_size[bisect_left(self._by_size, self._by_age.popleft())]

    def quantile(self, share: float) -> float:
        """The value that this share of them is below; there must be one."""
        return self._by_size[min(len(self._by_size) - 1, int(share * len(self._by_size)))]


def _lane_of(size: float) -> int:
    return math.floor(math.log(size) * _LANES_PER_E)


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
