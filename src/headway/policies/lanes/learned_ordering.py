"""Orderings over scored lanes: what the three EWSJF orderings have in common besides the parts they are made of."""

from __future__ import annotations

from collections.abc import Mapping

from headway.domain.costs import ServiceCosts
from headway.domain.event import Event
from headway.domain.request import RequestView
from headway.policies.contracts import LaneId
from headway.policies.lanes.assembling import Parameters, learned_lanes, restore_lanes, saved_lanes
from headway.policies.lanes.scored import Fill, ScoredLanes
from headway.policies.lanes.starvation_guard import StarvationGuard


class ScoredLanesOrdering:
    """A `LanedOrdering` whose lanes' heads compete by score."""

    def __init__(self, lanes: ScoredLanes) -> None:
        self._lanes = lanes

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
        """Learn sizes and costs; mark the steps; count the work that went ahead of overdue requests."""
        self._lanes.observe(event)


class LearnedLanesOrdering(ScoredLanesOrdering):
    """A `RedrawnOrdering` whose lanes are learned; it can be retuned, saved and restored."""

    follows_what_is_learned = True

    def __init__(
        self,
        parameters: Parameters,
        costs: ServiceCosts,
        *,
        fill: Fill,
        guard: StarvationGuard | None,
        window_requests: int,
        relearn_requests: int,
    ) -> None:
        self._parameters = parameters
        super().__init__(
            learned_lanes(
                parameters,
                costs,
                fill=fill,
                guard=guard,
                window_requests=window_requests,
                relearn_requests=relearn_requests,
            )
        )

    @property
    def redrawn(self) -> int:
        """How often the lanes were redrawn."""
        return self._lanes.redrawn

    def retune(self, values: Mapping[str, float]) -> None:
        """New parameters: scores follow at once, lanes at the next partition. Raises ValueError for a wrong one."""
        self._parameters.change(values, self._lanes)

    def state(self) -> dict[str, object]:
        """What it has learned, as plain values that JSON can hold."""
        return saved_lanes(self._parameters, self._lanes)

    def restore(self, state: Mapping[str, object]) -> None:
        """Continue from what `state` returned, before any request came. Raises ValueError when it does not fit."""
        restore_lanes(self._parameters, self._lanes, state)
