"""What orderings with another one inside have in common: its lanes, its events, and whether it learns."""

from __future__ import annotations

import math
from collections.abc import Mapping

from headway.domain.event import Event
from headway.domain.request import RequestView
from headway.policies.contracts import (
    LanedOrdering,
    LaneId,
    OrderingPolicy,
    RedrawnOrdering,
    follows_what_is_learned,
)
from headway.policies.event_fanout import EventFanout


class OrderingWithInner:
    """Has the powers of its inner ordering; a subclass chooses among groups of requests, each in its inner lanes."""

    def __init__(self, inner: OrderingPolicy) -> None:
        self._inner = inner
        self._laned = inner if isinstance(inner, LanedOrdering) else None
        self._redrawn = inner if isinstance(inner, RedrawnOrdering) else None
        self._inner_listeners = EventFanout(inner).listeners

    @property
    def follows_what_is_learned(self) -> bool:
        """Whether the inner ordering does."""
        return follows_what_is_learned(self._inner)

    @property
    def redrawn(self) -> int:
        """How often the inner ordering redrew its lanes; 0 for one that never does."""
        return 0 if self._redrawn is None else self._redrawn.redrawn

    def _inner_lane(self, request: RequestView) -> LaneId:
        """The lane that the inner ordering gives; None for one without lanes."""
        return None if self._laned is None else self._laned.lane(request)

    def _inner_choice(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The lane that the inner ordering serves next, of these."""
        return None if self._laned is None else self._laned.choose(heads, now)

    def _inner_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """When the inner ordering may choose otherwise among these lanes."""
        return math.inf if self._laned is None else self._laned.next_change(heads, now)

    def _tell_inner(self, event: Event) -> None:
        """Pass an event on to the inner ordering."""
        for listener in self._inner_listeners:
            listener.observe(event)
