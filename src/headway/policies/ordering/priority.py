"""Priority classes named by the client, first come within a class."""

from __future__ import annotations

from headway.domain.request import RequestView


class Priority:
    """The client's own priority class, first come within a class.

    Idea: lower class numbers go first; equal ones go by arrival.
    Source: vLLM's `--scheduling-policy priority`, whose key is (priority, arrival time).
    Reads: the priority, then the arrival time.
    Wins when: the classes are set with knowledge of the traffic, and the top class is a small share of the load.
    Loses when: the higher classes alone fill the replica: the lowest class then starves without bound;
        priority-aging bounds it.
    """

    def rank(self, request: RequestView) -> float:
        """The class number; lower runs sooner."""
        return request.priority
