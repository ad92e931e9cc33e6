"""Laws of prediction: an estimate is a distribution, and the same events give the same estimate."""

from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.event import Admitted, Arrived, Completed, FirstToken, Listener
from headway.domain.request import Request
from headway.policies.contracts import LengthPredictor
from headway.testing.examples import examples
from headway.testing.strategies import request_lists

MakePrediction = Callable[[], LengthPredictor]

PRODUCED_TOKENS = (0, 1, 2, 7, 39, 40, 41, 100, 5_000, 1_000_000)
PROBABILITIES = (0.001, 0.1, 0.5, 0.9, 0.99, 0.999)


def estimates_are_distributions(make: MakePrediction) -> None:
    """Of a request that goes on, something is always left; more certainty needs more tokens, never fewer."""

    @settings(deadline=None, max_examples=examples(30))
    @given(requests=request_lists(), lengths=st.lists(st.integers(1, 5_000), min_size=8, max_size=8))
    def check(requests: list[Request], lengths: list[int]) -> None:
        predictor = make()
        for request, length in zip(requests, lengths, strict=False):
            estimate = predictor.predict(request)
            assert estimate.made_by, "the estimate does not say who made it"
            for produced in PRODUCED_TOKENS:
                mean = estimate.remaining_mean(produced)
                assert 0 < mean < math.inf, f"{mean} tokens to come after {produced}: {estimate!r}"
                quantiles = [estimate.remaining_quantile(probability, produced) for probability in PROBABILITIES]
                assert quantiles[0] >= 1, f"{quantiles} tokens to come after {produced}: {estimate!r}"
                assert quantiles == sorted(quantiles), f"quantiles fall, {quantiles} after {produced}: {estimate!r}"
                assert all(isinstance(quantile, int) for quantile in quantiles), f"not whole tokens: {quantiles}"
            _live(predictor, request, length)

    check()


def predictions_repeat_themselves(make: MakePrediction) -> None:
    """Two predictors that saw the same say the same; asking teaches nothing."""

    @settings(deadline=None, max_examples=examples(30))
    @given(requests=request_lists(), lengths=st.lists(st.integers(1, 5_000), min_size=8, max_size=8))
    def check(requests: list[Request], lengths: list[int]) -> None:
        predictor, twin = make(), make()
        for request, length in zip(requests, lengths, strict=False):
            for _ in range(3):
                curious = predictor.predict(request)
            calm = twin.predict(request)
            for produced in PRODUCED_TOKENS:
                assert curious.remaining_mean(produced) == calm.remaining_mean(produced)
                for probability in PROBABILITIES:
                    assert curious.remaining_quantile(probability, produced) == calm.remaining_quantile(
                        probability, produced
                    )
            _live(predictor, request, length)
            _live(twin, request, length)

    check()


def _live(predictor: LengthPredictor, request: Request, output_tokens: int) -> None:
    """Let the predictor hear the whole life of a request."""
    if not isinstance(predictor, Listener):
        return
    at = request.arrived_at
    request.produced_tokens = 0
    predictor.observe(Arrived(request, at))
    predictor.observe(Admitted(request, at))
    request.produced_tokens = 1
    predictor.observe(FirstToken(request, at))
    request.produced_tokens = output_tokens
    predictor.observe(Completed(request, at, output_tokens))
    request.produced_tokens = 0
