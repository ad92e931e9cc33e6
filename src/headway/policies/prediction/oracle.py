"""The oracle: the true output length, available in a simulator only."""

from __future__ import annotations

from collections.abc import Callable

from headway.domain.estimate import PointEstimate
from headway.domain.request import RequestId, RequestView
from headway.policies.contracts import Need


class Oracle:
    """The true output length.

    Idea: a bound on what better prediction could gain, not a policy to run.
    Source: none; hindsight.
    Reads: the true length, through the `truth` that only a simulator can supply; no policy sees it otherwise.
    Wins when: always, which is its purpose: the distance to it is the price of not knowing.
    Loses when: it is taken for something that can be deployed.
    """

    NEEDS = frozenset([Need.TRUE_LENGTHS])

    def __init__(self, *, truth: Callable[[RequestId], int]) -> None:
        self._truth = truth

    def predict(self, request: RequestView) -> PointEstimate:
        """A point: the true output tokens."""
        return PointEstimate(self._truth(request.id), "oracle")
