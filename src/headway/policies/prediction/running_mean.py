"""The mean of recent outputs: what can be said of a length without looking at the request."""

from __future__ import annotations

import math
from collections.abc import Mapping

from headway.domain.estimate import GeometricEstimate
from headway.domain.event import Completed, Event
from headway.domain.request import RequestView

_MOST = 1e18  # of what is taken back: no server has completed as much


class RunningMean:
    """The decayed mean of completed outputs.

    Idea: expect of every request what the last completions brought. Knowing a mean and no more, the law that assumes
        least is the geometric one: however much has come, as much is still to come. The client's bound cuts it off.
    Source: an exponentially weighted mean, as in VTC's predicted variant (arXiv 2401.00588), there per client and with
        ô ← (4·ô + o)/5. Geometric outputs are the model of arXiv 2606.22327v2. The weight of a completion halves with
        each further `half_life_requests` (100). Before that there is a prior: `prior_tokens` (256) counted as
        `prior_requests` (10) completions. The three values are ours.
    Reads: the output lengths of completed requests, the client's bound.
    Wins when: nothing better is there, and an order or a check needs some length of the right size.
    Loses when: an order needs to tell requests apart: all get the same mean, so shortest-job-first sees the prefill
        only, and ranks given while the mean was another compare badly. Short outputs complete first, so the mean is
        low at first; cancelled requests are not learned from.
    """

    hears = (Completed,)

    def __init__(
        self, *, prior_tokens: float = 256.0, prior_requests: float = 10.0, half_life_requests: float = 100.0
    ) -> None:
        for name, value, least in (
            ("prior_tokens", prior_tokens, 1.0),
            ("prior_requests", prior_requests, 1.0),
            ("half_life_requests", half_life_requests, 1.0),
        ):
            if not least <= value < math.inf:
                raise ValueError(f"{name} must be at least {least:g}, got {value:g}")
        self._weight = prior_requests
        self._weighted_tokens = prior_requests * prior_tokens
        self._keep: float = 0.5 ** (1 / half_life_requests)

    def predict(self, request: RequestView) -> GeometricEstimate:
        """A geometric law with the present mean, cut off at the client's bound."""
        mean_tokens = max(1.0, self._weighted_tokens / self._weight)  # a completion without a token may pull it below
        return GeometricEstimate(mean_tokens, request.max_output_tokens, "running-mean")

    def observe(self, event: Event) -> None:
        """Learn from a completion."""
        if isinstance(event, Completed):
            self._weight = self._weight * self._keep + 1
            self._weighted_tokens = self._weighted_tokens * self._keep + event.output_tokens

    def state(self) -> dict[str, object]:
        """What it has learned, as plain values that JSON can hold."""
        return {"weight": self._weight, "weighted_tokens": self._weighted_tokens}

    def restore(self, state: Mapping[str, object]) -> None:
        """Go on from what `state` gave. Raises ValueError when it is something else."""
        weight, tokens = state.get("weight"), state.get("weighted_tokens")
        if not (isinstance(weight, int | float) and isinstance(tokens, int | float)):
            raise ValueError("it lacks weight or weighted_tokens, or one is no number")
        if not (1 <= weight <= _MOST and 0 <= tokens <= _MOST):
            raise ValueError(f"weight must be at least 1, weighted_tokens at least 0 and neither above {_MOST:g}")
        self._weight, self._weighted_tokens = float(weight), float(tokens)
