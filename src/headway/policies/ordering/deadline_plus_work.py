"""Deadline plus work: one number between earliest deadline, least laxity and shortest first."""

from __future__ import annotations

import math
from typing import ClassVar

from headway.domain.costs import ServiceCosts
from headway.domain.request import RequestView
from headway.policies.contracts import Need
from headway.policies.due_times import DueTimes
from headway.policies.ordering.shortest_job_first import prefill_seconds
from headway.policies.tunable import Tunable

LANE_SECONDS_MIN = 1e-6
"""Least width of a lane by deadlines: below it the lane of a far deadline has no number."""


class DeadlinePlusWork:
    """Least sum of the deadline and `work_weight` times the own service time first.

    Idea: a deadline says how long a request may wait, its work what it costs the others to serve it now. The weight
        sets the price between the two. At -1 this is least laxity, at 0 earliest deadline first, at 1 the time at which
        the request would end if it began at its deadline. A very large weight is shortest first.
    Source: the hybrid priority of QoServe, arXiv 2503.22562 (arrival + allowance + α·remaining prompt tokens in its
        code; α = 1 / prefill rate is a weight of 1); least laxity as in HexGen-Text2SQL, arXiv 2505.05286. The service
        time is the prefill of what is not cached, since the deadline is that of the first token: its own, or what its
        end or its program's stage leaves for it (`policies/due_times.py`). Both are fixed at entry, so laxities keep
        their order as time passes. A request without a deadline gets `no_deadline_seconds` from its arrival (30, ours).
    Reads: the deadlines, the program and its stage, the arrival time, prompt length, cached prompt tokens, the
        estimate's mean where the end has a deadline, costs of a token.
    Wins when: clients differ in patience and prompts in length, and load is at times above what can be met in time.
    Loses when: all deadlines are the arrival plus the same allowance and prompts are alike: it is FCFS then.
    """

    follows_what_is_learned = True
    NEEDS = frozenset([Need.CACHED_TOKENS])

    TUNABLE: ClassVar[tuple[Tunable, ...]] = (Tunable("work_weight", 0.1, 1_000.0, "log"),)

    def __init__(self, *, costs: ServiceCosts, work_weight: float = 1.0, no_deadline_seconds: float = 30.0) -> None:
        if not -1 <= work_weight < math.inf:
            raise ValueError(f"work_weight must be at least -1 (least laxity) and finite, got {work_weight:g}")
        if not 0 <= no_deadline_seconds < math.inf:
            raise ValueError(f"no_deadline_seconds must be at least 0 and finite, got {no_deadline_seconds:g}")
        self._costs = costs
        self._due = DueTimes(costs)
        self._work_weight = work_weight
        self._no_deadline_seconds = no_deadline_seconds

    def rank(self, request: RequestView) -> float:
        """The deadline plus the weighted service time, seconds."""
        deadline = self._due.first_token_by(request)
        if deadline == math.inf:
            deadline = request.arrived_at + self._no_deadline_seconds
        return deadline + self._work_weight * prefill_seconds(request, self._costs)
