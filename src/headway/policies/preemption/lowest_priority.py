"""Lowest priority: the least urgent request is preempted."""

from __future__ import annotations

from collections.abc import Sequence

from headway.domain.request import RequestView
from headway.policies.contracts import Need


class LowestPriority:
    """Preempt the request with the largest (priority, arrival time); of exact equals the one admitted last.

    Idea: memory belongs to the urgent; among equals, to earlier arrivals.
    Source: vLLM V1 `Scheduler.schedule` under `policy=priority`: `max(running, key=(priority, arrival_time))`,
        whose ties, which its clock hardly ever gives, go to the first of the list. A trace's clock does, and two
        equals would preempt each other by turns for ever: here they go to the last.
    Reads: priority (vLLM's sign: lower runs sooner), arrival time.
    Wins when: priorities are set and mean something; pair it with a queue that takes the preempted back by rank.
    Loses when: no client sets priorities (then it is latest-arrived), or a steady stream of urgent requests preempts
        the same victim over and over.
    """

    NEEDS = frozenset([Need.VICTIMS])

    def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
        """The one of `running` with the largest (priority, arrived_at), the last of equals."""
        return max(reversed(running), key=_urgency)


def _urgency(request: RequestView) -> tuple[int, float]:
    return request.priority, request.arrived_at
