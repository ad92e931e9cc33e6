"""How long a request will still be: what is known of it, as a distribution."""

from __future__ import annotations

from typing import Protocol


class LengthEstimate(Protocol):
    """A distribution of a request's *total* output tokens, made when the request came in.

    What remains is asked for given what has been produced, so one estimate serves a request's whole life and tightens
    as tokens come. A point is the special case of no spread.
    """

    @property
    def made_by(self) -> str:
        """Name of the predictor."""

    def remaining_mean(self, produced_tokens: int) -> float:
        """Expected output tokens still to come (> 0), given that `produced_tokens` came and the end did not."""

    def remaining_quantile(self, probability: float, produced_tokens: int) -> int:
        """Least n ≥ 1 such that at most n tokens are still to come with at least this probability (0 < p < 1)."""


class PointEstimate:
    """One number: the request is believed to produce `output_tokens` in all.

    A request that outlives its estimate is believed to go on as long as it took to outlive it: the estimate doubles
    until it is past what was produced, so that a running request never counts as about to end for ever.
    """

    __slots__ = ("made_by", "output_tokens")

    def __init__(self, output_tokens: int, made_by: str) -> None:
        if output_tokens < 1:
            raise ValueError(f"output_tokens must be at least 1, got {output_tokens}")
        self.output_tokens = output_tokens
        self.made_by = made_by

    def remaining_mean(self, produced_tokens: int) -> float:
        """Tokens left of the (perhaps doubled) estimate."""
        return float(self.remaining_quantile(0.5, produced_tokens))

    def remaining_quantile(self, probability: float, produced_tokens: int) -> int:
        """Tokens left of the (perhaps doubled) estimate, whatever the probability."""
        total = self.output_tokens
        while total <= produced_tokens:
            total *= 2
        return total - produced_tokens

    def __repr__(self) -> str:
        return f"PointEstimate({self.output_tokens}, {self.made_by!r})"
