"""Past-Future's law of lengths: the last outputs, drawn again from those longer than what was produced."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque

from headway.domain.event import Completed, Event
from headway.domain.request import RequestView


class PastFuturePrediction:
    """The distribution of the latest output lengths, above the tokens that the request has produced.

    Idea: what comes will be like what was. Keep the last lengths; a request that has produced d tokens is like one of
        those that were longer than d.
    Source: Past-Future, arXiv 2507.10150, and its code (ModelTC/lightllm, branch `future_past_router`): a window of
        W = 200, half filled at the start with the longest output allowed (`default_max_tokens`, where the code takes
        total less input limit); lengths recorded whatever the reason they stopped; d = 0 draws one of the window; d > 0
        interpolates between d, the longer ones in order, and the bound if it is longer still. `default_max_tokens` is
        also the bound of a client that gave none. One repair: where the bound is reached and nothing longer is known
        the published code fails on a support of one point; here one token is left. The law is that of the window at
        the time of asking, as published, not at entry.
    Reads: the output lengths of the last completed requests, the client's bound, tokens produced.
    Wins when: lengths are of one kind and drift slowly, or for admission by past-future, which it was made for.
    Loses when: requests differ in kind: it never looks at the request, so no order can tell two of them apart. Outputs
        cut off by one client's bound stand for all. The start is cautious: half of the window is the maximum.
    """

    hears = (Completed,)

    def __init__(self, *, window_requests: int = 200, default_max_tokens: int = 4_096) -> None:
        if window_requests < 2:
            raise ValueError(f"window_requests must be at least 2, got {window_requests}")
        if default_max_tokens < 1:
            raise ValueError(f"default_max_tokens must be at least 1, got {default_max_tokens}")
        self._default_max_tokens = default_max_tokens
        self._window = Window(window_requests, [default_max_tokens] * (window_requests // 2))

    def predict(self, request: RequestView) -> EmpiricalLaw:
        """The law of the window, whatever the window will be when it is asked."""
        bound = request.max_output_tokens
        return EmpiricalLaw(self._window, self._default_max_tokens if bound is None else bound)

    def observe(self, event: Event) -> None:
        """Record a completion."""
        if isinstance(event, Completed):
            self._window.add(event.output_tokens)


class Window:
    """The last lengths, in order of size."""

    __slots__ = ("_by_age", "by_size")

    def __init__(self, size: int, lengths: list[int]) -> None:
        self._by_age = deque(lengths, maxlen=size)
        self.by_size = sorted(lengths)

    def add(self, length: int) -> None:
        """Take one in; the oldest goes when the window is full."""
        if len(self._by_age) == self._by_age.maxlen:
            del self.by_size[bisect_left(self.by_size, self._by_age[0])]
        self._by_age.append(length)
        insort(self.by_size, length)


class EmpiricalLaw:
    """A `LengthEstimate` of Past-Future: law of L given L > d, with d the tokens produced."""

    __slots__ = ("_bound", "_window")
    made_by = "past-future"
    law_moves = True  # with every completion: what was derived from it has to be derived again

    def __init__(self, window: Window, bound: int) -> None:
        self._window = window
        self._bound = bound

    def remaining_mean(self, produced_tokens: int) -> float:
        """Mean of the law, less what was produced; at least 1."""
        lengths, bound = self._window.by_size, self._bound
        if produced_tokens == 0:
            mean = sum([min(length, bound) for length in lengths]) / len(lengths)
            return max(1.0, mean)
        support = self._support(produced_tokens)
        if len(support) == 1:
            return 1.0
        # Linear interpolation at an even draw: each piece counts with the mean of its ends.
        mean = (sum(support) - (support[0] + support[-1]) / 2) / (len(support) - 1)
        return max(1.0, mean - produced_tokens)

    def remaining_quantile(self, probability: float, produced_tokens: int) -> int:
        """What the even draw `probability` gives: the published sample, at least 1."""
        if produced_tokens == 0:
            lengths = self._window.by_size
            return max(1, min(self._bound, lengths[min(int(probability * len(lengths)), len(lengths) - 1)]))
        lengths, bound = self._window.by_size, self._bound
        first = bisect_right(lengths, produced_tokens)
        longer = len(lengths) - first
        with_bound = bound > (lengths[-1] if longer else produced_tokens)
        pieces = longer + with_bound
        if pieces == 0:
            return 1
        piece, part = divmod(probability * pieces, 1)
        low = produced_tokens if piece == 0 else lengths[first + int(piece) - 1]
        high = lengths[first + int(piece)] if piece < longer else bound
        return max(1, round(low + (high - low) * part) - produced_tokens)

    def _support(self, produced_tokens: int) -> list[int]:
        """[d], the recorded lengths above d in order, and the bound if it is larger than the last of these."""
        lengths = self._window.by_size
        support = [produced_tokens, *lengths[bisect_right(lengths, produced_tokens) :]]
        if support[-1] < self._bound:
            support.append(self._bound)
        return support

    def __repr__(self) -> str:
        return f"EmpiricalLaw({len(self._window.by_size)} lengths, at most {self._bound})"
