"""What the two EWSJF orderings that learn their lanes do alike: everything but which parts they are made of."""

from __future__ import annotations

from collections.abc import Mapping

from headway.domain.event import Event
from headway.domain.request import RequestView
from headway.policies.contracts import LaneId
from headway.policies.lanes.assembling import Parameters, restore_lanes, saved_lanes
from headway.policies.lanes.scored import ScoredLanes


class LearnedLanesOrdering:
    """A `RedrawnOrdering` over scored lanes that can be retuned, saved and taken back.

    Args:
        parameters: what shapes lanes and scores; `retune` moves it.
        lanes: the lanes that were made from it.
    """

    def __init__(self, parameters: Parameters, lanes: ScoredLanes) -> None:
        self._parameters = parameters
        self._lanes = lanes

    @property
    def redrawn(self) -> int:
        """How often the lanes were redrawn."""
        return self._lanes.redrawn

    def lane(self, request: RequestView) -> int:
        """The number of the lane its size falls into; a bubble is opened where none fits."""
        return self._lanes.enter(request)

    def rank(self, request: RequestView) -> float:
        """First come, first served inside a lane."""
        return 0.0

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """Within a step the lanes that `fill` names, else an overdue head when it is its turn, else the score."""
        return self._lanes.choose(heads, now)

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """When two scores cross at the top, or the oldest head is overdue."""
        return self._lanes.next_change(heads, now)

    def observe(self, event: Event) -> None:
        """Learn sizes and costs; mark the steps; count what went ahead of the overdue."""
        self._lanes.observe(event)

    def retune(self, values: Mapping[str, float]) -> None:
        """See `headway.policies.tunable.Retunable`."""
        self._parameters.change(values, self._lanes)

    def state(self) -> dict[str, object]:
        """What it has learned, as plain values that JSON can hold."""
        return saved_lanes(self._parameters, self._lanes)

    def restore(self, state: Mapping[str, object]) -> None:
        """Go on from what `state` gave, before any request came. Raises ValueError when it does not fit."""
        restore_lanes(self._parameters, self._lanes, state)
