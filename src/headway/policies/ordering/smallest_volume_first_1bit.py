"""Smallest volume first, knowing only whether the output will be short or long."""

from __future__ import annotations

import math
from typing import NamedTuple

from headway.domain.request import RequestView, expected_output_tokens
from headway.policies.ordering.smallest_volume_first import volume


class SmallestVolumeFirst1bit:
    """Smallest proxy volume first: one bit of length is enough.

    Idea: predict only "short" or "long", let each class stand for one output length, and order by the volume that
        results. Classes are no tiers: a tiny prompt with a long answer may precede a huge prompt with a short one.
    Source: 1-bit SVF, arXiv 2606.22327v2. The defaults are its worst-case setting for a context of T = 65,536
        tokens: threshold √T, class lengths T^(1/4) and T^(3/4), with a ratio of O(T) in a burst. The values of its
        experiments are not published; class means of your own traffic do better (`geometric_proxies` gives the
        paper's values for geometric lengths). Deviations: as for smallest-volume-first; and the bit is the
        predictor's expected length compared with the threshold, not a classifier's answer.
    Reads: prompt length, tokens produced, the length estimate as one bit.
    Wins when: KV memory is the bottleneck and only a coarse classifier is to be had.
    Loses when: lengths inside a class differ widely, or the predictor gives every request the same bit (running-mean
        does): the order is then by prompt alone.
    """

    follows_what_is_learned = True

    def __init__(
        self, *, threshold_tokens: float = 256.0, short_tokens: float = 16.0, long_tokens: float = 4096.0
    ) -> None:
        if not 0 < threshold_tokens < math.inf:
            raise ValueError(f"threshold_tokens must be above 0 and finite, got {threshold_tokens:g}")
        if not 0 < short_tokens < long_tokens < math.inf:
            raise ValueError(
                "short_tokens must be above 0 and below long_tokens, both finite, "
                f"got {short_tokens:g} and {long_tokens:g}"
            )
        self._threshold_tokens = threshold_tokens
        self._short_tokens = short_tokens
        self._long_tokens = long_tokens

    def rank(self, request: RequestView) -> float:
        """Proxy volume, token·steps."""
        short = expected_output_tokens(request) <= self._threshold_tokens
        return volume(
            request.prompt_tokens + request.produced_tokens, self._short_tokens if short else self._long_tokens
        )


class GeometricProxies(NamedTuple):
    """What each class stands for when output lengths are geometric, and what knowing one bit costs."""

    short_tokens: float
    long_tokens: float
    penalty_volume: float


def geometric_proxies(mean_output_tokens: float, threshold_tokens: float) -> GeometricProxies:
    """Class means for geometric output lengths, tokens, and the penalty ε, token·steps (arXiv 2606.22327v2, Thm 3.5).

    Raises:
        ValueError: the mean is not above 1 or the threshold not above 0.
    """
    if mean_output_tokens <= 1 or threshold_tokens <= 0:
        raise ValueError(
            "mean_output_tokens must be above 1 and threshold_tokens above 0, "
            f"got {mean_output_tokens:g} and {threshold_tokens:g}"
        )
    beyond: float = (1 - 1 / mean_output_tokens) ** threshold_tokens  # share of requests that outlive the threshold
    shift = threshold_tokens * beyond / (1 - beyond)
    return GeometricProxies(mean_output_tokens - shift, threshold_tokens + mean_output_tokens, shift * shift / 2)
