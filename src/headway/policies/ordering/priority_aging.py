"""Priority classes with aging: a class is a head start, so no request is overtaken for ever."""

from __future__ import annotations

import math

from headway.domain.request import RequestView


class PriorityAging:
    """The client's own priority class, worth a head start of so many seconds a class.

    Idea: order by priority − wait/s. All waits grow at the same pace, so the order is that of arrival + s·priority: a
        fixed number per request. One of a class c is overtaken by one of a more urgent class d only if that comes
        within (c − d)·s seconds of it.
    Source: linear ageing of priorities, as in time-sharing operating systems. A closed pull request of vLLM (#20608)
        changed the priority of those in the queue as time passed, which breaks a heap. Dynamo's FCFS key (priority jump
        − arrival) is the same order as ours. s = `seconds_per_class` is 10 by default, a value of ours.
    Reads: the priority (vLLM's sign: lower runs sooner), the arrival time.
    Wins when: priority would win, and the lowest class must not starve.
    Loses when: overload makes every wait long against s times the spread of classes: the order is then near FCFS, and
        the urgent wait with all others.
    """

    def __init__(self, *, seconds_per_class: float = 10.0) -> None:
        if not 0 < seconds_per_class < math.inf:
            raise ValueError(
                f"seconds_per_class must be above 0 (for no ageing use priority), got {seconds_per_class:g}"
            )
        self._seconds_per_class = seconds_per_class

    def rank(self, request: RequestView) -> float:
        """Arrival, as if each class less urgent had come so much later, seconds."""
        return request.arrived_at + self._seconds_per_class * request.priority
