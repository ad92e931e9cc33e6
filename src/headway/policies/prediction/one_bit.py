"""One bit of length: short or long, with the border and the two lengths learnt."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable

from headway.domain.estimate import PointEstimate
from headway.domain.event import Completed, Event
from headway.domain.request import RequestView
from headway.policies.prediction.histogram import kinds_of


class OneBit:
    """Short or long, each class standing for its mean length.

    Idea: knowing whether an output is shorter or longer than the median is most of what an order can use. Learn the
        median, the mean length on either side of it, and how often each kind of request is long. Answer with the mean
        of the likelier class.
    Source: 1-bit SVF, arXiv 2606.22327v2, which takes the bit from a fine-tuned classifier and leaves threshold and
        class lengths of its experiments unpublished. Here: threshold = median, class lengths = class means, both of the
        last `window_requests` completions, and the bit is the majority of the request's kind (tenant, session, declared
        bound, prompt length; as in histogram). A sparse kind leans on its parent with the weight of `parent_requests`
        completions. `--ordering smallest-volume-first --prediction one-bit` is 1-bit SVF.
    Reads: tenant, session, prompt length, the client's bound, the output lengths of completed requests.
    Wins when: outputs fall into two classes that kinds tell apart; a bit is learnt from few completions.
    Loses when: kinds do not differ, for then all get the same bit; or admission asks for it: a class mean says
        nothing of the spread.
    """

    hears = (Completed,)

    def __init__(
        self, *, window_requests: int = 1_000, parent_requests: float = 10.0, prior_tokens: float = 256.0
    ) -> None:
        if window_requests < 2:
            raise ValueError(f"window_requests must be at least 2, got {window_requests}")
        for name, value in (("parent_requests", parent_requests), ("prior_tokens", prior_tokens)):
            if not 1 <= value < math.inf:
                raise ValueError(f"{name} must be at least 1, got {value:g}")
        self._parent_requests = parent_requests
        self._prior_tokens = prior_tokens
        self._by_age: deque[tuple[int, list[Hashable]]] = deque()
        self._window_requests = window_requests
        self._by_size: list[int] = []
        self._lengths: dict[Hashable, list[int]] = {}  # of each kind, in order of size

    @property
    def threshold_tokens(self) -> int:
        """The longest length that counts as short: the lower median of the window."""
        return self._by_size[(len(self._by_size) - 1) // 2] if self._by_size else math.ceil(self._prior_tokens)

    def predict(self, request: RequestView) -> PointEstimate:
        """A point: the mean of the class it is believed to be in, at most its bound."""
        tokens = max(1, round(self._class_mean(self.share_long(request) > 0.5)))
        bound = request.max_output_tokens
        return PointEstimate(tokens if bound is None else max(1, min(tokens, bound)), "one-bit")

    def share_long(self, request: RequestView) -> float:
        """How many of its kind are believed to be longer than the threshold; 0.5 before anything is known."""
        share, threshold = 0.5, self.threshold_tokens
        for kind in kinds_of(request):
            lengths = self._lengths.get(kind)
            if lengths is not None:
                long = len(lengths) - bisect_left(lengths, threshold + 1)
                share = (long + self._parent_requests * share) / (len(lengths) + self._parent_requests)
        return share

    def observe(self, event: Event) -> None:
        """Learn from a completion; forget the one that leaves the window."""
        if not isinstance(event, Completed) or event.output_tokens < 1:
            return
        kinds = kinds_of(event.request)
        self._by_age.append((event.output_tokens, kinds))
        insort(self._by_size, event.output_tokens)
        for kind in kinds:
            insort(self._lengths.setdefault(kind, []), event.output_tokens)
        if len(self._by_age) > self._window_requests:
            self._forget(*self._by_age.popleft())

    def _forget(self, length: int, kinds: list[Hashable]) -> None:
        del self._by_size[bisect_left(self._by_size, length)]
        for kind in kinds:
            lengths = self._lengths[kind]
            del lengths[bisect_left(lengths, length)]
            if not lengths:
                del self._lengths[kind]

    def _class_mean(self, long: bool) -> float:
        """Mean length of a class; of an empty one, half or twice the threshold."""
        border = bisect_left(self._by_size, self.threshold_tokens + 1)
        members = self._by_size[border:] if long else self._by_size[:border]
        if not members:
            return self.threshold_tokens * (2.0 if long else 0.5)
        return sum(members) / len(members)
