"""Equals: of waiting requests that no policy can tell apart, the one that came first.

Two requests are equal if they look alike, that is, in all that `RequestView` shows but id, arrival and estimate, and
if the predictor expects the same mean length of both now. Their estimates may differ, for each was stamped when its
request came.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from itertools import count
from typing import TypeAlias

from headway.domain.estimate import LengthEstimate
from headway.domain.request import Request, RequestId, RequestView

_Entry: TypeAlias = tuple[float, int, int, Request]  # arrived_at, ticket in the queue, number of the entry, request
_COMPACT_ABOVE = 64  # entries of requests that left; below that a rebuild is not worth its call


class Equals:
    """Waiting requests that look alike, in heaps by arrival. O(log waiting) each; `predict` is the predictor's."""

    def __init__(self, predict: Callable[[RequestView], LengthEstimate]) -> None:
        self._predict = predict
        self._waiting: dict[RequestId, tuple[Hashable, int]] = {}  # looks, and number of its entry
        self._alike: dict[Hashable, list[_Entry]] = {}  # with requests that left
        self._number = count()
        self._left = 0
        self._compared: tuple[Request, Request, bool] | None = None  # asked again for every look at the head

    def add(self, request: Request, ticket: int) -> None:
        """A request waits from now on."""
        looks, number = _looks(request), next(self._number)
        self._waiting[request.id] = (looks, number)
        heapq.heappush(self._alike.setdefault(looks, []), (request.arrived_at, ticket, number, request))

    def remove(self, request_id: RequestId) -> None:
        """It does not wait any more."""
        looks, _ = self._waiting.pop(request_id)
        self._left += 1
        self._settle(looks)
        if self._left > _COMPACT_ABOVE + len(self._waiting):
            for alike in self._alike.values():
                alike[:] = [entry for entry in alike if self._waits(entry)]
                heapq.heapify(alike)
            self._left = 0

    def first(self, request: Request) -> Request:
        """The equal of a waiting request that came first; itself where none came before it."""
        looks, _ = self._waiting[request.id]
        first = self._alike[looks][0][-1]
        return first if first is request or self._expects_the_same(first, request) else request

    def _settle(self, looks: Hashable) -> None:
        """Let a waiting request stand first among those that look so."""
        alike = self._alike[looks]
        while alike and not self._waits(alike[0]):
            heapq.heappop(alike)
            self._left -= 1
        if not alike:
            del self._alike[looks]

    def _waits(self, entry: _Entry) -> bool:
        _, _, number, request = entry
        place = self._waiting.get(request.id)
        return place is not None and place[1] == number

    def _expects_the_same(self, one: Request, other: Request) -> bool:
        if self._compared is None or self._compared[0] is not one or self._compared[1] is not other:
            mean_tokens, others = (self._predict(request).remaining_mean(0) for request in (one, other))
            self._compared = one, other, mean_tokens == others
        return self._compared[2]


def _looks(request: Request) -> Hashable:
    return (
        request.prompt_tokens,
        request.cached_prompt_tokens,
        request.produced_tokens,
        request.max_output_tokens,
        request.tenant,
        request.adapter,
        request.session,
        request.priority,
        request.deadline,
        request.later_deadlines,
        request.sequences,
        request.prefix_hashes[-1] if request.prefix_hashes else None,
    )
