"""Length predictor that takes the client's own bound."""

from __future__ import annotations

from headway.domain.estimate import PointEstimate
from headway.domain.request import RequestView


class DeclaredMax:
    """The client's own bound on the output.

    Idea: `max_tokens` is the one statement about length that comes with a request; take it as the length.
    Source: what engines reserve when they promise never to evict (TensorRT-LLM's GUARANTEED_NO_EVICT). Without a
        bound, `default_tokens`; its default 1,024 is ours.
    Reads: the client's bound.
    Wins when: clients set tight bounds, or an overestimate is the safe side.
    Loses when: bounds are generous or all alike, as they mostly are: the order learns nothing of the output and
        admission leaves memory idle.
    """

    def __init__(self, *, default_tokens: int = 1024) -> None:
        if default_tokens < 1:
            raise ValueError(f"default_tokens must be at least 1, got {default_tokens}")
        self._default_tokens = default_tokens

    def predict(self, request: RequestView) -> PointEstimate:
        """A point: the bound, else the default."""
        bound = request.max_output_tokens
        return PointEstimate(self._default_tokens if bound is None else max(1, bound), "declared-max")
