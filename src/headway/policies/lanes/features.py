"""Size of a request: the number from which its lane and its score are computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

from headway.domain.request import RequestView, expected_output_tokens, uncached_prefill_tokens

Feature: TypeAlias = Literal["prompt-tokens", "uncached-tokens", "kv-volume"]
FEATURES: tuple[Feature, ...] = get_args(Feature)


def prompt_tokens(request: RequestView) -> int:
    """The whole prompt, cached or not, in tokens: as published."""
    return request.prompt_tokens


def kv_volume_tokens(request: RequestView) -> int:
    """√(2·V) of the predicted KV volume V = s·o + (o² + o)/2, in tokens; s is what KV holds, o what is to come.

    V is in token-steps: the tokens held, summed over the steps they are held for (arXiv 2606.22327). Its root has the
    unit of the other features and the same order as V: a request of no prompt and o outputs has a size of about o.
    """
    held = request.prompt_tokens + request.produced_tokens
    coming = expected_output_tokens(request)
    return max(1, int(math.sqrt(2 * held * coming + coming * coming + coming)))


SIZE_OF: dict[Feature, Callable[[RequestView], int]] = {
    "prompt-tokens": prompt_tokens,
    "uncached-tokens": uncached_prefill_tokens,
    "kv-volume": kv_volume_tokens,
}
"""feature -> its size of a request, whole tokens ≥ 0."""
