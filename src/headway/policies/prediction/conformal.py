"""Conformal correction: another predictor's intervals, kept honest by how it did lately."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque

from headway.domain.estimate import LengthEstimate, law_moves, remaining_survival
from headway.domain.event import Arrived, Cancelled, Completed, Event, Refused
from headway.domain.request import RequestId, RequestView
from headway.policies.contracts import LengthPredictor
from headway.policies.event_fanout import EventFanout
from headway.policies.prediction.histogram import Histogram

_TAIL = 0.99  # above this probability of the inner law scores go on by the logarithm of the length
_LEAST = 1e-3


class Conformal:
    """Another predictor, with its quantiles corrected by how its latest estimates came true.

    Idea: ask of each completion at which of the inner law's quantiles it fell. If the law is right these are even. If
        they are not, how they are spread says which quantile to give instead of the one that is wanted.
    Source: split conformal prediction on a sliding window of the last `window_requests` completions (Vovk, Gammerman,
        Shafer 2005; the window for drift as in Barber et al., arXiv 2202.13415), with the inner probability as score
        (conformal calibrators; recalibration of Kuleshov et al., arXiv 1807.00263). Ours: lengths past the inner 99 %
        quantile are scored by the logarithm of how far past, so that a change of scale beyond all the inner law knows
        is corrected as well. With n scores the quantile p is the ⌈p(n+1)⌉-th of them. Before `least_requests`
        completions the inner law stands as it is. "conformal/running-mean" corrects another predictor.
    Reads: what the inner predictor reads, and the output lengths of completed requests.
    Wins when: traffic changes and the inner law is late: coverage is back once the window has seen the new traffic.
    Loses when: the inner law is right already, since a window adds noise, at 99 % most; or completions are few.
    """

    def __init__(
        self, *, inner: LengthPredictor | None = None, window_requests: int = 300, least_requests: int = 20
    ) -> None:
        if not 2 <= least_requests <= window_requests:
            raise ValueError(
                f"least_requests must be from 2 to window_requests, got {least_requests} and {window_requests}"
            )
        self._inner: LengthPredictor = Histogram() if inner is None else inner
        self._inner_listeners = EventFanout(self._inner).listeners
        self._least_requests = least_requests
        self._by_age: deque[float] = deque(maxlen=window_requests)
        self._scores: list[float] = []
        self._last_estimate: LengthEstimate | None = None  # the last answer
        self._inside: OrderedDict[RequestId, LengthEstimate] = OrderedDict()  # the inner law's estimate at entry

    def predict(self, request: RequestView) -> LengthEstimate:
        """The inner estimate, corrected by the scores of the window as it is now."""
        estimate = self._inner.predict(request)
        if len(self._scores) >= self._least_requests:
            estimate = CorrectedEstimate(estimate, tuple(self._scores), request.max_output_tokens)
        self._last_estimate = estimate
        return estimate

    def observe(self, event: Event) -> None:
        """Score a completion by the law that stood at its entry; then let the inner predictor learn."""
        if isinstance(event, Arrived):
            estimate = event.request.estimate
            if estimate is not None and estimate is self._last_estimate:  # not a client's hint
                self._inside[event.request.id] = estimate.inner if isinstance(estimate, CorrectedEstimate) else estimate
        elif isinstance(event, (Cancelled, Refused)):
            self._inside.pop(event.request.id, None)
        elif isinstance(event, Completed):
            inner = self._inside.pop(event.request.id, None)
            if inner is not None and event.output_tokens >= 1:
                self._record(score(inner, event.output_tokens))
        for listener in self._inner_listeners:
            listener.observe(event)

    def _record(self, value: float) -> None:
        if len(self._by_age) == self._by_age.maxlen:
            del self._scores[bisect_left(self._scores, self._by_age[0])]
        self._by_age.append(value)
        insort(self._scores, value)


def score(inner: LengthEstimate, output_tokens: int) -> float:
    """Where a length falls in a law: its probability up to 0.99, from there on 0.99 + ln(length / that quantile).

    The middle of its jump where the law has one, as at a point.
    """
    tail = inner.remaining_quantile(_TAIL, 0)
    if output_tokens > tail:
        return _TAIL + math.log(output_tokens / tail)
    at_most = 1.0 - remaining_survival(inner, output_tokens, 0)
    below = 1.0 - remaining_survival(inner, output_tokens - 1, 0)
    return min(_TAIL, (at_most + below) / 2)


class CorrectedEstimate:
    """A `LengthEstimate`: an inner law and the scores it earned lately, in order."""

    __slots__ = ("_at_most_tokens", "_scores", "inner", "made_by")

    def __init__(self, inner: LengthEstimate, scores: tuple[float, ...], at_most_tokens: int | None) -> None:
        self.inner = inner
        self.made_by = f"conformal/{inner.made_by}"
        self._scores = scores
        self._at_most_tokens = at_most_tokens

    def remaining_mean(self, produced_tokens: int) -> float:
        """Mean of 9 evenly spread quantiles of what remains: 0.1 … 0.9 of the corrected law have no better mean."""
        quantiles = [self.remaining_quantile((2 * step + 1) / 18, produced_tokens) for step in range(9)]
        return sum(quantiles) / 9

    def remaining_quantile(self, probability: float, produced_tokens: int) -> int:
        """The inner quantile at the score that this share of the recent ones did not exceed; at most to the bound.

        Of a request that outlives all that the window knows the inner law says what it always does.
        """
        outlived = bisect_right(self._scores, score(self.inner, produced_tokens)) if produced_tokens else 0
        if outlived == len(self._scores):
            remaining = self.inner.remaining_quantile(probability, produced_tokens)
        else:
            gone = outlived / (len(self._scores) + 1)
            total = self._length_at(self._score_at(gone + probability * (1.0 - gone)))
            remaining = max(1, total - produced_tokens)
        bound = self._at_most_tokens
        return remaining if bound is None else max(1, min(remaining, bound - produced_tokens))

    @property
    def law_moves(self) -> bool:
        """Whether the inner law moves with every completion."""
        return law_moves(self.inner)

    def _score_at(self, probability: float) -> float:
        place = math.ceil(probability * (len(self._scores) + 1)) - 1
        return self._scores[max(0, min(place, len(self._scores) - 1))]

    def _length_at(self, value: float) -> int:
        if value > _TAIL:
            return math.ceil(self.inner.remaining_quantile(_TAIL, 0) * math.exp(min(value - _TAIL, 40.0)))
        return self.inner.remaining_quantile(max(_LEAST, value), 0)

    def __repr__(self) -> str:
        return f"CorrectedEstimate({self.inner!r}, {len(self._scores)} scores)"
