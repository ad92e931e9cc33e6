"""Length estimates: how many output tokens a request will still produce, as a distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeGuard

_HALVINGS = 12
_COARSEST = 2.0**-11


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


class SurvivalEstimate(LengthEstimate, Protocol):
    """Optional power of an estimate: the survival probability in closed form, as all of ours have it."""

    def remaining_survival(self, tokens: int, produced_tokens: int) -> float:
        """P(more than `tokens` are still to come), given that `produced_tokens` came and the end did not."""


class SurvivalCurveEstimate(LengthEstimate, Protocol):
    """Optional power of an estimate: many survival probabilities in one call, for speed only."""

    def remaining_survivals(self, tokens: Sequence[int], produced_tokens: int) -> Sequence[float]:
        """`remaining_survival` at several ascending numbers of tokens."""


class MovingEstimate(LengthEstimate, Protocol):
    """Optional power of an estimate: it may change after it was stamped, because it reads what is learned since."""

    @property
    def law_moves(self) -> bool:
        """Whether it may change with every completion; what was derived from it must then be derived again."""


def has_survival(estimate: LengthEstimate) -> TypeGuard[SurvivalEstimate]:
    """Whether it is a `SurvivalEstimate`. For hot paths: `isinstance` with a protocol is 100 times slower."""
    return hasattr(estimate, "remaining_survival")


def has_survival_curve(estimate: LengthEstimate) -> TypeGuard[SurvivalCurveEstimate]:
    """Whether it is a `SurvivalCurveEstimate`."""
    return hasattr(estimate, "remaining_survivals")


def law_moves(estimate: LengthEstimate) -> bool:
    """Whether the estimate may change with every completion."""
    return hasattr(estimate, "law_moves") and bool(estimate.law_moves)


def remaining_survival(estimate: LengthEstimate, tokens: int, produced_tokens: int) -> float:
    """P(more than `tokens` are still to come), given that `produced_tokens` came and the end did not.

    Found from its quantiles to within 2^-12 where the estimate is no `SurvivalEstimate`.
    """
    if has_survival(estimate):
        return estimate.remaining_survival(tokens, produced_tokens)
    if tokens < 1:
        return 1.0
    low, high = 0.0, 1.0  # the probability of at most `tokens`
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if estimate.remaining_quantile(middle, produced_tokens) <= tokens:
            low = middle
        else:
            high = middle
    return 1.0 - (0.0 if high < _COARSEST else 1.0 if low > 1.0 - _COARSEST else (low + high) / 2)


def remaining_survivals(estimate: LengthEstimate, tokens: Sequence[int], produced_tokens: int) -> Sequence[float]:
    """`remaining_survival` at several ascending numbers of tokens; in one go where the estimate can."""
    if has_survival_curve(estimate):
        return estimate.remaining_survivals(tokens, produced_tokens)
    return [remaining_survival(estimate, number, produced_tokens) for number in tokens]


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

    def remaining_survival(self, tokens: int, produced_tokens: int) -> float:
        """1 before the (perhaps doubled) estimate, 0 from it on."""
        return 1.0 if tokens < self.remaining_quantile(0.5, produced_tokens) else 0.0

    def __repr__(self) -> str:
        return f"PointEstimate({self.output_tokens}, {self.made_by!r})"


class GeometricEstimate:
    """A memoryless length: `mean_tokens` are expected, and after any number of them as many again.

    Among the laws with a given mean it assumes least. `at_most_tokens`, the client's own bound, cuts it off: a request
    that gets there ends there.
    """

    __slots__ = ("at_most_tokens", "made_by", "mean_tokens")

    def __init__(self, mean_tokens: float, at_most_tokens: int | None, made_by: str) -> None:
        if not 1 <= mean_tokens < math.inf:
            raise ValueError(f"mean_tokens must be at least 1, got {mean_tokens}")
        self.mean_tokens = mean_tokens
        self.at_most_tokens = at_most_tokens
        self.made_by = made_by

    def remaining_mean(self, produced_tokens: int) -> float:
        """E[min(G, n)] = mean·(1 − q^n): G geometric with q = 1 − 1/mean, n tokens left to the bound (at least 1)."""
        if self.at_most_tokens is None:
            return self.mean_tokens
        left = max(1, self.at_most_tokens - produced_tokens)
        return max(1.0, self.mean_tokens * (1.0 - (1.0 - 1.0 / self.mean_tokens) ** left))

    def remaining_quantile(self, probability: float, produced_tokens: int) -> int:
        """Least n with 1 − q^n ≥ probability, and no more than is left to the bound."""
        if self.mean_tokens == 1:
            return 1
        tokens = max(1, math.ceil(math.log1p(-probability) / math.log1p(-1.0 / self.mean_tokens)))
        return tokens if self.at_most_tokens is None else min(tokens, max(1, self.at_most_tokens - produced_tokens))

    def remaining_survival(self, tokens: int, produced_tokens: int) -> float:
        """q^n, and 0 from what is left to the bound."""
        if tokens < 1:
            return 1.0
        if self.at_most_tokens is not None and tokens >= max(1, self.at_most_tokens - produced_tokens):
            return 0.0
        return float((1.0 - 1.0 / self.mean_tokens) ** tokens)

    def __repr__(self) -> str:
        return f"GeometricEstimate({self.mean_tokens:g}, {self.at_most_tokens}, {self.made_by!r})"
