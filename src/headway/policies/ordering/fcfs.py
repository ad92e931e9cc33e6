"""First come, first served: arrival order and nothing else."""

from __future__ import annotations

from headway.domain.request import RequestView


class Fcfs:
    """First come, first served.

    Idea: the request that arrived first runs first; none is overtaken.
    Source: the default of every engine (vLLM's `--scheduling-policy fcfs`).
    Reads: the arrival time only.
    Wins when: requests are alike, or the worst wait matters more than the mean one.
    Loses when: a few long requests stand before many short ones (head-of-line blocking).
    """

    def rank(self, request: RequestView) -> float:
        """The arrival time, seconds."""
        return request.arrived_at
