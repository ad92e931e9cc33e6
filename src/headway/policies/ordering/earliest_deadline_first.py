"""Earliest deadline first: by the time at which the first token is wanted."""

from __future__ import annotations

from headway.domain.request import RequestView
from headway.policies.due_times import DueTimes


class EarliestDeadlineFirst:
    """Earliest deadline first; requests without one come last, by arrival.

    Idea: the most urgent promise is kept first.
    Source: EDF (Liu and Layland, 1973), which on one preemptive processor meets all deadlines if any order does. An
        engine does not suspend a prefill for a more urgent one, so that theorem does not carry over. Of a request's
        deadlines the earliest counts: of its first token, of its end, or of its stage of a program
        (`policies/due_times.py`). After a preemption that of the first token moves by its time per output token.
    Reads: the deadlines, the program and its stage, tokens produced, then the arrival time.
    Wins when: clients differ in patience and the load can be served in time.
    Loses when: overload makes some deadlines hopeless: they are served first all the same, and others miss theirs
        behind them. If all deadlines are the arrival plus the same allowance, this is FCFS; with equal ones too.
    """

    def __init__(self) -> None:
        self._due = DueTimes()

    def rank(self, request: RequestView) -> float:
        """The earliest deadline, seconds; infinity without one."""
        return self._due.first_token_by(request)
