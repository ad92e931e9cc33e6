"""The oracle with an error: what a predictor of stated quality would say, in a simulator only."""

from __future__ import annotations

import math
from collections.abc import Callable
from hashlib import blake2b

from headway.domain.estimate import PointEstimate
from headway.domain.request import RequestId, RequestView
from headway.policies.contracts import Need


class OracleNoisy:
    """The true output length times a log-normal error.

    Idea: predict o·e^(σz), z standard normal: right in the median, high in the mean by e^(σ²/2), and off by more than
        a factor of e^σ either way for a third of the requests. The client's own bound caps it.
    Source: a multiplicative log-normal error is a usual model of length predictors; σ = 0.7 (a factor of 2) is ours.
    Reads: the true length, through the `truth` that only a simulator can supply; the client's bound; the seed.
    Wins when: one asks how good a predictor must be for an order to keep its gain: sweep σ.
    Loses when: taken for a real predictor: real errors are biased and grow with the length.
    """

    NEEDS = frozenset([Need.TRUE_LENGTHS])

    def __init__(self, *, truth: Callable[[RequestId], int], seed: int, sigma: float = 0.7) -> None:
        if not 0 <= sigma < math.inf:
            raise ValueError(f"sigma must be at least 0 (0 is the oracle), got {sigma:g}")
        self._truth = truth
        self._seed = seed
        self._sigma = sigma

    def predict(self, request: RequestView) -> PointEstimate:
        """A point; the error depends on the seed and the request's id alone, so every order meets the same one."""
        noisy = self._truth(request.id) * math.exp(self._sigma * _standard_normal(self._seed, request.id))
        tokens = max(1, round(min(noisy, 2.0**53)))
        if request.max_output_tokens is not None:
            tokens = max(1, min(tokens, request.max_output_tokens))
        return PointEstimate(tokens, "oracle-noisy")


def _standard_normal(seed: int, request_id: RequestId) -> float:
    """A standard normal number by hash (Box and Muller, 1958)."""
    digest = blake2b(f"{seed}/{request_id!r}".encode(), digest_size=16, person=b"oracle-noisy").digest()
    radius_lot = ((int.from_bytes(digest[:8], "big") >> 11) + 1) * 2.0**-53  # in (0, 1]
    angle_lot = (int.from_bytes(digest[8:], "big") >> 11) * 2.0**-53
    return math.sqrt(-2 * math.log(radius_lot)) * math.cos(2 * math.pi * angle_lot)
