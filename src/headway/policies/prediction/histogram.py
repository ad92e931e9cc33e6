"""Decayed histograms of output lengths by what a scheduler can see; a sparse one leans on a coarser one."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import Any

from headway.domain.event import Completed, Event
from headway.domain.piecewise_estimate import PiecewiseEstimate
from headway.domain.request import RequestView


class Histogram:
    """Learnt distribution of the output lengths of similar requests.

    Idea: requests that look alike end alike. Keep a histogram of lengths, log-spaced, for each kind of request, from
        all down to the single conversation, and let a kind seen seldom lean on the one above it. What is counted is how
        many ended in a bin, of those that reached it (hazards). So a request cut off by its own bound is counted as far
        as it got (Kaplan and Meier, 1958).
    Source: ours. Kinds, each a refinement of the one before: all; tenant; tenant with declared bound and half-octave of
        prompt; session. A bin's hazard is (ended + k·parent's hazard) / (reached it + k), the posterior mean under a
        beta law around the parent, with k = `parent_requests`. Weights halve every `half_life_requests` completions of
        the kind. Above all stands a log-logistic law of index 2 and median `prior_tokens`, counted as `parent_requests`
        completions. The client's bound cuts the estimate off.
    Reads: tenant, session, prompt length, the client's bound, the output lengths of completed requests.
    Wins when: traffic is a mix of kinds that a tenant, a prompt length or a conversation tells apart, or one asks for
        an honest spread rather than a number.
    Loses when: all requests look alike, since then only the common spread is known; or kinds are new all the time.
        Short outputs complete first, so that after a start or a change the estimate is low for a while.
    """

    hears = (Completed,)

    def __init__(
        self,
        *,
        parent_requests: float = 20.0,
        half_life_requests: float = 300.0,
        prior_tokens: float = 256.0,
        kinds_max: int = 20_000,
    ) -> None:
        for name, value in (
            ("parent_requests", parent_requests),
            ("half_life_requests", half_life_requests),
            ("prior_tokens", prior_tokens),
            ("kinds_max", kinds_max),
        ):
            if not 1 <= value < math.inf:
                raise ValueError(f"{name} must be at least 1, got {value:g}")
        self._parent_requests = parent_requests
        self._growth = 2.0 ** (1.0 / half_life_requests)
        self._prior = _log_logistic_hazards(prior_tokens)
        self._kinds_max = kinds_max
        self._counts: OrderedDict[Hashable, _Counts] = OrderedDict()  # the least recently learnt of first

    def predict(self, request: RequestView) -> PiecewiseEstimate:
        """The survival curve of its kind, cut off at its bound."""
        bound = request.max_output_tokens
        edges = EDGES if bound is None else EDGES[: bisect_left(EDGES, bound) + 2]  # nothing beyond is looked at
        hazards: Sequence[float] = self._prior[: len(edges) - 1]
        for kind in kinds_of(request):
            counts = self._counts.get(kind)
            if counts is not None:
                hazards = counts.hazards(hazards, self._parent_requests)
        survival = list(accumulate([1.0 - hazard for hazard in hazards], mul, initial=1.0))
        return PiecewiseEstimate(edges, survival, "histogram", bound)

    def observe(self, event: Event) -> None:
        """Learn from a completion."""
        if not isinstance(event, Completed) or event.output_tokens < 1:
            return
        bound = event.request.max_output_tokens
        cut_off = bound is not None and event.output_tokens >= bound
        position = bin_of(event.output_tokens)
        for kind in kinds_of(event.request):
            counts = self._counts.get(kind)
            if counts is None:
                counts = self._counts[kind] = _Counts()
                if len(self._counts) > self._kinds_max:
                    self._counts.popitem(last=False)
            else:
                self._counts.move_to_end(kind)
            counts.add(position, cut_off, self._growth)

    def state(self) -> dict[str, object]:
        """What it has learned, as plain values that JSON can hold; conversations are left out, they end by themselves.

        `kinds` lists [[tenant, …], {bin: [ended, left]}], the least recently learnt of first; the newest completion of
        a kind weighs 1. Only the 1,000 kinds learnt of last are in it: a server writes it down between two requests.
        """
        kinds = [kind for kind in map(_parts, self._counts) if kind[1:2] != ("session",)]
        kept = kinds[-_SAVED_KINDS_MAX:]
        return {"edges": len(EDGES), "kinds": [[list(kind), self._counts[kind or ""].state()] for kind in kept]}

    def restore(self, state: Mapping[str, object]) -> None:
        """Go on from what `state` gave, all of it or nothing. Raises ValueError when it is something else."""
        if state.get("edges") != len(EDGES):
            raise ValueError(f"it was counted in {state.get('edges')!r} bins, not in {len(EDGES)}")
        try:
            kinds: Any = state["kinds"]
            listed = [(_kind(kind), _Counts.of(counts)) for kind, counts in kinds]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"a kind is missing or not written as it should be: {error}") from error
        self._counts = OrderedDict(listed[-int(self._kinds_max) :])


def kinds_of(request: RequestView) -> list[Hashable]:
    """The kinds a request belongs to, from the coarsest to the finest."""
    tenant, tokens = request.tenant, request.prompt_tokens
    octave = tokens.bit_length()
    half = (tokens >> (octave - 2)) & 1 if tokens > 1 else 0  # of its octave
    kinds: list[Hashable] = ["", (tenant,), (tenant, request.max_output_tokens, 2 * octave + half)]
    if request.session is not None:
        kinds.append((tenant, "session", request.session))
    return kinds


def _parts(kind: Hashable) -> tuple[object, ...]:
    """What tells a kind from others; nothing for the one of all requests."""
    return kind if isinstance(kind, tuple) else ()


def _kind(listed: Any) -> Hashable:
    """A kind as `kinds_of` makes it, from its JSON."""
    fits = isinstance(listed, list) and len(listed) in (0, 1, 3)
    fits = fits and all(isinstance(part, str) for part in listed[:1])
    if not fits or not all(part is None or isinstance(part, int) for part in listed[1:]):
        raise ValueError(f"{listed!r} is no kind")
    return tuple(listed) if listed else ""


def bin_of(output_tokens: int) -> int:
    """The bin (EDGES[i], EDGES[i + 1]] that holds a length; the last takes whatever is longer."""
    return min(bisect_left(EDGES, output_tokens), len(EDGES) - 1) - 1


def _edges() -> tuple[int, ...]:
    """0, every length to 8, then four to an octave up to 2^18."""
    wide = [round(2 ** (quarter / 4)) for quarter in range(13, 73)]
    return (*range(9), *wide)


EDGES = _edges()
"""Bounds of the bins in tokens."""
_NAMES = [str(number) for number in range(len(EDGES))]
_HEAVIEST = 1e12
_SAVED_KINDS_MAX = 1_000


def _log_logistic_hazards(median_tokens: float) -> list[float]:
    """Share of those longer than the lower edge that end within each bin, for P(L > x) = 1 / (1 + (x/median)²)."""
    survival = [1.0 / (1.0 + (edge / median_tokens) ** 2) for edge in EDGES]
    return [1.0 - after / before for before, after in pairwise(survival)]


class _Counts:
    """Decayed counts of one kind: instead of shrinking the old, each new one weighs more."""

    __slots__ = ("_ended", "_left", "_reached", "_stale", "_weight")

    def __init__(self) -> None:
        self._ended = [0.0] * (len(EDGES) - 1)  # in this bin, for good
        self._left = [0.0] * (len(EDGES) - 1)  # in this bin, for good or cut off
        self._reached = [0.0] * len(EDGES)  # in this bin or a later one; summed from the last bin down
        self._stale = 0  # the first so many sums are out of date: those up to the latest completions
        self._weight = 1.0

    def add(self, position: int, cut_off: bool, growth: float) -> None:
        self._weight *= growth
        if self._weight > _HEAVIEST:
            self._ended = [weight / self._weight for weight in self._ended]
            self._left = [weight / self._weight for weight in self._left]
            self._weight = 1.0
            self._stale = len(self._left)
        self._left[position] += self._weight
        if position >= self._stale:
            self._stale = position + 1
        if not cut_off:
            self._ended[position] += self._weight

    def state(self) -> dict[str, list[float]]:
        """Bins that are not empty, bin → [ended, left], where the newest completion weighs 1."""
        ended, weight = self._ended, self._weight
        return {_NAMES[n]: [ended[n] / weight, left / weight] for n, left in enumerate(self._left) if left}

    @classmethod
    def of(cls, state: Mapping[str, Sequence[float]]) -> _Counts:
        """What `state` gave. Raises ValueError, TypeError or AttributeError when it is something else."""
        counts = cls()
        for position, (ended, left) in state.items():
            place = int(position)
            if not (0 <= place < len(EDGES) - 1 and 0 <= ended <= left <= _HEAVIEST):
                raise ValueError(f"bin {position} holds {ended!r} of {left!r}")
            counts._ended[place], counts._left[place] = float(ended), float(left)
        counts._stale = len(counts._left)
        return counts

    def hazards(self, parent: Sequence[float], parent_requests: float) -> list[float]:
        """Hazard of each bin that the parent has, leaning on the parent's."""
        if self._stale:
            self._sum_again()
        lean = parent_requests * self._weight
        return [(e + lean * h) / (r + lean) for e, h, r in zip(self._ended, parent, self._reached, strict=False)]

    def _sum_again(self) -> None:
        """Bring the sums up to date. A completion changes none above its own bin, and short ones are the many."""
        stale, reached = self._stale, self._reached
        sums = list(accumulate(reversed(self._left[:stale]), initial=reached[stale]))
        sums.reverse()
        reached[: stale + 1] = sums
        self._stale = 0
