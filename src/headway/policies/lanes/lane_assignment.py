"""Assignment of requests to lanes: ranges with tolerances, and bubble lanes for the sizes between them.

Source: EWSJF, arXiv 2601.21758, Algorithm 2, as reported by others: inside a lane's range; else up to 10 % above the
lane below; else up to 10 % below the lane above; else a bubble lane centred on the size. When both neighbours would
take it, the relatively nearer does (ours: the paper does not say). A bubble is min(gap, max(64, 0.2·size)) wide.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from headway.policies.lanes.partition import Span

ABOVE, BELOW = 1.10, 0.90  # tolerances of Algorithm 2
BUBBLE_TOKENS_MIN, BUBBLE_SHARE = 64, 0.2


class Lane:
    """One lane: the sizes it is for, and what is known of those in it.

    Attributes:
        number: its name for the queue; never used twice by one router.
        low: least size of its range, in the unit of the feature.
        high: largest size of its range.
        mean: mean size of the requests it was learned from; the centre for a fresh bubble.
        requests: how many those were; 0 for a bubble.
        bubble: whether it was opened between two lanes by a request that fitted neither.
        waiting: requests in it now.
        empty_since: the round at which the last one left.
    """

    __slots__ = ("bubble", "empty_since", "high", "low", "mean", "number", "requests", "waiting")

    def __init__(self, number: int, span: Span, *, bubble: bool = False) -> None:
        self.number = number
        self.low, self.high, self.mean, self.requests = span
        self.bubble = bubble
        self.waiting = 0
        self.empty_since = 0

    @property
    def span(self) -> Span:
        """Its range and statistics."""
        return Span(self.low, self.high, self.mean, self.requests)

    def __repr__(self) -> str:
        return f"Lane({self.number}, {self.low}–{self.high}{', bubble' if self.bubble else ''}, {self.waiting} waiting)"


class LaneAssigner:
    """The lanes of one policy, and the way into them.

    `tolerant` is Algorithm 2; otherwise as the authors' code: no tolerances, a bubble as wide as the lane before it.
    Bubbles that stay empty for more than `empty_rounds` rounds of admission are removed; lanes that were learned or
    configured stay. `version` changes whenever a lane comes or goes.
    """

    def __init__(self, spans: Sequence[Span] = (), *, tolerant: bool = True, empty_rounds: int = 20) -> None:
        self._tolerant = tolerant
        self._empty_rounds = empty_rounds
        self._opened = 0
        self._round = 0
        self.version = 0
        self.lanes: list[Lane] = []
        self._lows: list[int] = []
        self._bubbles: list[Lane] = []
        self.replace(spans)

    def replace(self, spans: Iterable[Span]) -> None:
        """Take new lanes instead of all old ones, bubbles too. Waiting requests have to be routed again."""
        self.lanes = []
        self._bubbles = []
        for span in spans:
            self.lanes.append(Lane(self._opened, span))
            self._opened += 1
        self._numbers = {lane.number for lane in self.lanes}
        self._redraw()

    def knows(self, lane: Lane) -> bool:
        """Whether the lane is one of those in force."""
        return lane.number in self._numbers

    def route(self, size: int) -> Lane:
        """The lane for a request of this size; opens a bubble where none fits."""
        at = bisect_right(self._lows, size) - 1
        if at >= 0 and size <= (lane := self.lanes[at]).high:
            return lane
        return self._taker(size, at) or self._open(size, at + 1)

    def _taker(self, size: int, at: int) -> Lane | None:
        """The lane that takes a size without opening one; `at` is the last lane that begins at or below it."""
        below = self.lanes[at] if at >= 0 else None
        if below is not None and size <= below.high:
            return below
        if not self._tolerant:
            return None
        above = self.lanes[at + 1] if at + 1 < len(self.lanes) else None
        over = size / below.high if below is not None and size <= ABOVE * below.high else math.inf
        under = above.low / max(1, size) if above is not None and size >= BELOW * above.low else math.inf
        if over <= under:
            return below if over < math.inf else None
        return above

    def _open(self, size: int, place: int) -> Lane:
        below = self.lanes[place - 1] if place else None
        above = self.lanes[place] if place < len(self.lanes) else None
        floor = below.high + 1 if below is not None else 0
        ceiling = above.low - 1 if above is not None else None
        if self._tolerant:
            width = max(BUBBLE_TOKENS_MIN, int(BUBBLE_SHARE * size))
            low = max(floor, size - width // 2)
            high = low + width
        elif below is not None:
            width = below.high - below.low
            low = max(floor, size - width // 2)
            high = low + width
        else:
            low, high = 0, max(100, size)  # the authors' code says (0, 100), even for a size beyond it
        if ceiling is not None:
            high = min(high, ceiling)
        lane = Lane(self._opened, Span(low, high, float(size), 0), bubble=True)
        assert lane.low <= size <= lane.high, f"a bubble for {size} became {lane.low} to {lane.high}"
        self._opened += 1
        lane.empty_since = self._round
        self.lanes.insert(place, lane)
        self._numbers.add(lane.number)
        self._bubbles.append(lane)
        self._redraw()
        return lane

    def enter(self, lane: Lane) -> None:
        """One more waits in it."""
        lane.waiting += 1

    def leave(self, lane: Lane) -> None:
        """One of those waiting in it left, admitted or not."""
        lane.waiting -= 1
        if not lane.waiting:
            lane.empty_since = self._round

    def new_round(self) -> None:
        """A step of the engine that admitted a request; bubbles empty for too many such steps are removed."""
        self._round += 1
        if not self._bubbles:
            return
        gone = [b for b in self._bubbles if not b.waiting and self._round - b.empty_since > self._empty_rounds]
        for lane in gone:
            self.lanes.remove(lane)
            self._bubbles.remove(lane)
            self._numbers.remove(lane.number)
        if gone:
            self._redraw()

    def adjust(self, sizes: Sequence[int]) -> None:
        """Between two full partitions: widen lanes to what their tolerance let in, move means to what came lately.

        Each size counts for the lane that would take it now; lanes stay disjoint and in order, no waiting request
        changes lanes, bubbles stay as they are.
        """
        seen: dict[Lane, list[int]] = {}
        for size in sizes:
            lane = self._taker(size, bisect_right(self._lows, size) - 1)
            if lane is not None and not lane.bubble:
                seen.setdefault(lane, []).append(size)
        for lane, own in seen.items():
            lane.low = min(lane.low, *own)
            lane.high = max(lane.high, *own)
            lane.mean += (sum(own) / len(own) - lane.mean) * len(own) / (len(own) + lane.requests)
        self._lows = [lane.low for lane in self.lanes]

    def _redraw(self) -> None:
        self._lows = [lane.low for lane in self.lanes]
        self.version += 1
