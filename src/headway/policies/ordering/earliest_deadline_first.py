"""Earliest deadline first: by the time at which the first token is wanted."""

from __future__ import annotations

import math

from headway.domain.request import RequestView


class EarliestDeadlineFirst:
    """Earliest deadline of the first token first; requests without one come last, by arrival.

    Idea: the most urgent promise is kept first.
    Source: EDF (Liu and Layland, 1973), which on one preemptive processor meets all deadlines if any order does. An
        engine does not suspend a prefill for a more urgent one, so that theorem does not carry over.
    Reads: the deadline, then the arrival time.
    Wins when: clients differ in patience and the load can be served in time.
    Loses when: overload makes some deadlines hopeless: they are served first all the same, and others miss theirs
        behind them. If all deadlines are the arrival plus the same allowance, this is FCFS; with equal ones too.
    """

    def rank(self, request: RequestView) -> float:
        """The deadline, seconds; infinity without one."""
        return math.inf if request.deadline is None else request.deadline
