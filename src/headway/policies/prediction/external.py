"""Length predictor that calls a user-supplied function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TypeAlias

from headway.domain.estimate import LengthEstimate, PointEstimate
from headway.domain.piecewise_estimate import PiecewiseEstimate
from headway.domain.request import RequestView

Answer: TypeAlias = float | Mapping[float, float]
"""Output tokens, or output tokens by probability: {0.5: 120, 0.9: 600}."""
Asked: TypeAlias = Callable[[RequestView], Answer]


class External:
    """The answer of a user-supplied function.

    Idea: a trained model should need no policy of its own. `function` names a callable, "package.module:name",
        that takes the request (a `RequestView`) and returns its output tokens, as one number or as quantiles by
        probability. Between quantiles, and from 0 to the first, the law is taken as even; past the last, even up to
        twice its length. The client's bound cuts it off.
    Source: ours. The default function is an example to copy: an answer as long as its prompt.
    Reads: whatever the function reads.
    Wins when: a model of your own knows more of a request than lengths and names.
    Loses when: the function is slow (it runs on the scheduler's path), or answers differently when asked again: a run
        then cannot be repeated.
    """

    def __init__(self, *, function: str = "headway.policies.prediction.external:as_long_as_the_prompt") -> None:
        self._name = function
        self._ask = _load(function)

    def predict(self, request: RequestView) -> LengthEstimate:
        """The function's answer as an estimate. Raises ValueError where the answer is no length."""
        answer = self._ask(request)
        try:
            return _estimate(answer, request.max_output_tokens)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{self._name} answered {answer!r}; it must return output tokens, at least 1, as a number or as a "
                "mapping of probability to tokens that rises with the probability"
            ) from error


def as_long_as_the_prompt(request: RequestView) -> float:
    """An example: the output is expected to be as long as the prompt."""
    return request.prompt_tokens


def _load(function: str) -> Asked:
    module, colon, name = function.partition(":")
    if not colon or not module or not name:
        raise ValueError(f"function must be written package.module:name, got {function!r}")
    try:
        loaded = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"function {function!r} cannot be loaded: {error}") from error
    if not callable(loaded):
        raise ValueError(f"function {function!r} is not callable but {type(loaded).__name__}")
    ask: Asked = loaded
    return ask


def _estimate(answer: Answer, bound: int | None) -> LengthEstimate:
    if not isinstance(answer, Mapping):
        if not 1 <= answer < math.inf:
            raise ValueError("not a length")
        tokens = math.ceil(answer)
        return PointEstimate(tokens if bound is None else max(1, min(tokens, bound)), "external")
    edges, survival = [0], [1.0]
    for probability, value in sorted(answer.items()):
        tokens = math.ceil(value)
        if not 0 < probability < 1 or tokens < max(1, edges[-1]):
            raise ValueError("quantiles do not rise")
        if tokens == edges[-1]:
            survival[-1] = 1.0 - probability  # a jump: as many end here as the higher of the two says
        else:
            edges.append(tokens)
            survival.append(1.0 - probability)
    return PiecewiseEstimate(edges, survival, "external", bound)
