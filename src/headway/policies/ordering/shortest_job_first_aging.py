"""Shortest job first with aging: waiting makes a request smaller, so none is overtaken for ever."""

from __future__ import annotations

import math
from typing import ClassVar

from headway.domain.costs import ServiceCosts
from headway.domain.request import RequestView
from headway.policies.contracts import Need
from headway.policies.ordering.shortest_job_first import service_seconds
from headway.policies.tunable import Tunable


class ShortestJobFirstAging:
    """Shortest expected service time first, less a credit for every second waited.

    Idea: order by size − g·wait. All waits grow at the same pace, so the order is that of size + g·arrival: a fixed
        number per request. A request of size S is overtaken only by requests that arrive within S/g seconds of it.
    Source: SGLang PR #30806 (linear ageing; its g is not known, ours is 0.1 s of service per second waited).
        Deviation: there the size is the uncached prompt in tokens, here the expected service time in seconds, as in
        shortest-job-first. Other published forms, not this one: TensorRT-LLM PR #12428 (bounded length term plus
        linear wait), TensorRT-LLM PR #13096 (size shrinks to 0 in a fixed time), hao-ai-lab/vllm-ltr (promotion after
        3 s).
    Reads: what shortest-job-first reads, and the arrival time.
    Wins when: shortest-job-first would win and the longest waits must have a bound.
    Loses when: overload makes every wait long against S/g: the order is then near FCFS. A small g restores the gain and
        loosens the bound.
    """

    follows_what_is_learned = True
    NEEDS = frozenset([Need.CACHED_TOKENS])

    TUNABLE: ClassVar[tuple[Tunable, ...]] = (Tunable("service_seconds_per_second_waited", 0.001, 10.0, "log"),)

    def __init__(self, *, costs: ServiceCosts, service_seconds_per_second_waited: float = 0.1) -> None:
        if not 0 < service_seconds_per_second_waited < math.inf:
            raise ValueError(
                "service_seconds_per_second_waited must be above 0 and finite (for no ageing use shortest-job-first), "
                f"got {service_seconds_per_second_waited:g}"
            )
        self._costs = costs
        self._ageing = service_seconds_per_second_waited

    def rank(self, request: RequestView) -> float:
        """Expected service time as if every request had waited since time 0, seconds."""
        return service_seconds(request, self._costs) + self._ageing * request.arrived_at
